"""The page itself, and the same jobs as an API: what stands where, and what each button does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, get_args

import gradio as gr

from loraport.app.asks import COMPARED, SETTINGS, Ask, Kind
from loraport.app.jobs import Office, View
from loraport.app.looks import EMPTY_PAGE, EMPTY_STATE, page_html, state_html
from loraport.diagnosis.rule.advice import RECOMMEND
from loraport.files.models.named_places import named_entries
from loraport.files.models.presets import PRESETS
from loraport.inputs.config import DTYPES, FORMATS
from loraport.methods.recipes import METHODS
from loraport.methods.settings import CASA_PRESETS

TITLE = "loraport"
_INTRO = (
    "# loraport\nMove a LoRA from the model that it was trained on to a distilled, faster variant of that model: by "
    "linear algebra on the weights, without data and without training."
)
_METHODS = {
    RECOMMEND: "recommend: what the weights speak for",
    "casa": "casa: the paper's method",
    "direct": "direct: the LoRA as it is",
    "undo:0.25": "undo:0.25: take a quarter of the drift back",
    "undo-orthogonal:0.25": "undo-orthogonal:0.25: the same, what the LoRA holds of the drift counted in",
    "core": "core: take the drift back inside the LoRA's own directions",
}
_DIAGNOSE = """Say which method a LoRA and two models speak for, from their weights alone.

    Args:
        lora: The LoRA: a name in a shared folder of the machine, a Hub id (org/repo), or a toy: name.
        source: The model that the LoRA was trained on: a preset, a name in a shared folder, a Hub id, or a toy: name.
        target: The distilled model, likewise; or MODEL+ACCELERATOR.safetensors*0.8, where MODEL may be: source.
        upload: A .safetensors file that was uploaded, instead of a name; leave it out over MCP.

    Returns:
        facts: The verdict (direct, casa, undo:0.25, choose or not-this-pair), why, how sure, and what to type next.
        page: The page about the pair.
    """
_TRANSFER = """Move a LoRA from the model that it was trained on to a distilled variant, and give the new file back.

    Args:
        lora: The LoRA: a name in a shared folder of the machine, a Hub id (org/repo), or a toy: name.
        source: The model that the LoRA was trained on: a preset, a name in a shared folder, a Hub id, or a toy: name.
        target: The distilled model, likewise; or MODEL+ACCELERATOR.safetensors*0.8, where MODEL may be: source.
        method: recommend, casa, direct, undo:0.25, core or another one's name.
        rank: auto, source, full, a whole number, or a share of the energy; empty for the usual one.
        format: same (as the LoRA), comfy, diffusers, peft, kohya or tencent.
        dtype: bf16, fp16 or fp32.
        preset: CASA's settings, paper or published-code; empty for the paper's.
        settings: Settings of the method, such as tau=0.9 q-dom=0.6.
        include: Patterns of layers to transfer; the others are copied.
        exclude: Patterns of layers to copy as they are.
        upload: A .safetensors file that was uploaded, instead of a name; leave it out over MCP.

    Returns:
        facts: What was done, and what was lost.
        files: The new LoRA: a file, or the files of a PEFT folder.
        page: The page about the transfer.
    """


def build(office: Office) -> gr.Blocks:
    """Return the page with all that its buttons do."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(_INTRO, elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                inputs = _inputs(office)
            with gr.Column(scale=6, min_width=320):
                outputs = _outputs()
        _connect(office, inputs, outputs)
        _endpoints(office)
        page.unload(_leaver(office))
    return page


def _inputs(office: Office) -> dict[str, Any]:
    """Make what a visitor fills in; return it by the fields of `Ask`."""
    shared = office.places.listed()
    made: dict[str, Any] = {}
    gr.Markdown("## 1. The LoRA", elem_classes="step")
    made["upload"] = gr.File(
        label=f"LoRA, .safetensors, up to {office.limits.upload_words}", file_types=[".safetensors", ".sft"],
        height=140, elem_id="upload",
    )  # fmt: skip
    toys = [[name] for name in _example()] or [[], [], []]  # the embedded family, to try the page with
    made["lora"] = _named(
        "or name one", [*toys[0], *shared], "In a shared folder, or a Hub id such as org/repo.", "lora"
    )  # fmt: skip
    gr.Markdown("## 2. The two models", elem_classes="step")
    made["source"] = _named(
        "Source: the LoRA was trained on it", [*toys[1], *PRESETS, *shared],
        "A preset, a name in a shared folder, or a Hub id. Models are never uploaded.", "source",
    )  # fmt: skip
    made["target"] = _named(
        "Target: the distilled model", [*toys[2], *PRESETS, *shared],
        "Likewise; with an accelerator LoRA, source+accelerator.safetensors*0.8.", "target",
    )  # fmt: skip
    if example := _example():
        fill = gr.Button("Fill in a small example", size="sm", elem_id="example")
        fill.click(
            lambda: example, None, [made[name] for name in ("lora", "source", "target")], queue=False,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
    gr.Markdown("## 3. How", elem_classes="step")
    others = [(name, name) for name in METHODS if name not in _METHODS]
    made["method"] = gr.Dropdown(
        [*((text, name) for name, text in _METHODS.items()), *others], value=RECOMMEND, label="Method",
        allow_custom_value=True, elem_id="method",
    )  # fmt: skip
    with gr.Accordion("Further settings", open=False, elem_id="further"):
        made |= _further()
    return made


def _further() -> dict[str, Any]:
    made: dict[str, Any] = {}
    with gr.Row():
        made["rank"] = gr.Textbox(
            label="Rank", placeholder="auto", info="auto, source, full, a number, or a share of the energy (0.95)"
        )
        made["preset"] = gr.Dropdown(
            [("the paper's", ""), *((name, name) for name in CASA_PRESETS if name != "paper")], value="",
            label="CASA's settings",
        )  # fmt: skip
    with gr.Row():
        made["format"] = gr.Dropdown([*FORMATS], value="same", label="File format")
        made["dtype"] = gr.Dropdown([*DTYPES], value="bf16", label="Number format")
    made["settings"] = gr.Textbox(
        label="Settings of the method", placeholder="tau=0.9 q-dom=0.6",
        info="Known: " + ", ".join(row.option[2:] for row in SETTINGS.values()),
    )  # fmt: skip
    with gr.Row():
        made["include"] = gr.Textbox(label="Only layers like", placeholder="attn1", info="the others are copied")
        made["exclude"] = gr.Textbox(label="All layers but", placeholder="ffn", info="these are copied")
    made["prompts"] = gr.Slider(1, 30, value=2, step=1, label="Prompts to compare")
    return made


def _outputs() -> dict[str, Any]:
    """Make what a visitor gets to see."""
    made: dict[str, Any] = {}
    with gr.Row(elem_id="buttons"):
        made["diagnose"] = gr.Button("Diagnose", elem_id="diagnose", min_width=0)
        made["transfer"] = gr.Button("Transfer", variant="primary", elem_id="transfer", min_width=0)
        made["compare"] = gr.Button("Compare", elem_id="compare", min_width=0)
        made["stop"] = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop", min_width=0)
    made["state"] = gr.HTML(EMPTY_STATE, elem_id="state")
    made["files"] = gr.File(
        label="The new LoRA", visible=False, file_count="multiple", interactive=False, elem_id="files"
    )
    made["command"] = gr.Textbox(
        label="The same in a terminal", visible=False, lines=1, max_lines=4, buttons=["copy"], interactive=False,
        elem_id="command",
    )  # fmt: skip
    with gr.Tabs():
        with gr.Tab("Report"):
            made["page"] = gr.HTML(EMPTY_PAGE, elem_id="page")
        with gr.Tab("Log"):
            made["log"] = gr.Textbox(
                label="Messages", lines=14, max_lines=24, interactive=False, elem_id="log", autoscroll=True,
                placeholder="What the program says while it works.",
            )  # fmt: skip
    return made


def _connect(office: Office, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    """Connect the buttons."""
    shown = [outputs[name] for name in ("state", "files", "command", "page", "log", "stop")]
    for kind in get_args(Kind):
        outputs[kind].click(
            _shower(office, kind, tuple(inputs)), [*inputs.values()], shown, show_progress="hidden",
            concurrency_limit=None, api_visibility="private", trigger_mode="multiple",
        )  # fmt: skip

    def stop(request: gr.Request) -> None:
        office.stop(str(request.session_hash))

    outputs["stop"].click(stop, None, None, queue=False, show_progress="hidden", api_visibility="private")
    if why := office.why_no_comparison():
        gr.Markdown(f"**Compare**: {why}", elem_classes="hint", elem_id="no-card")
    else:
        gr.Markdown(
            f"**Compare** samples clips of both models with direct reuse and the method (with `{RECOMMEND}`: "
            f"`{COMPARED}`) and shows them side by side.",
            elem_classes="hint",
        )
    gr.Markdown(
        f"A file that you upload stays on this machine and is removed after {office.limits.keep_uploads / 3600:g} "
        f"hours, results after {office.limits.keep_results / 3600:g}. When this tab is closed, what it has running is "
        "stopped. The page asks no other address, except the Hub for what you name there.",
        elem_classes="hint",
    )


def _shower(office: Office, kind: Kind, names: tuple[str, ...]) -> Callable[..., AsyncGenerator[list[Any], None]]:
    """Return what a button does: it yields what the page shows at each moment."""

    async def show(request: gr.Request, *values: Any) -> AsyncGenerator[list[Any], None]:
        ask = Ask(kind, **{name: _typed(name, value) for name, value in zip(names, values, strict=True)})
        yield [
            state_html(View("waiting", "Looking at what was chosen.")), gr.update(visible=False, value=None),
            gr.update(visible=False), EMPTY_PAGE, "", gr.update(interactive=True),
        ]  # fmt: skip
        async with aclosing(office.run(ask, str(request.session_hash))) as views:
            async for view in views:
                yield _shown(office, view)

    # Gradio gives a request to whatever parameter is annotated with its class
    show.__annotations__["request"] = gr.Request
    return show


def _typed(name: str, value: Any) -> Any:
    """Return the value of a field as `Ask` takes it: an empty one is None where it comes from Gradio."""
    if name == "upload":
        return value
    return int(value) if name == "prompts" else "" if value is None else str(value)


def _shown(office: Office, view: View) -> list[Any]:
    """Return a moment as the page's parts show it."""
    files, command, page = gr.skip(), gr.skip(), gr.skip()
    if view.result is not None:
        made = [str(file) for file in view.result.files]
        files = gr.update(visible=bool(made), value=made or None)
        command = gr.update(visible=True, value=view.result.command)
        page = EMPTY_PAGE if view.result.page is None else page_html(address(office, view), "Report")
    is_over = view.state in ("done", "refused", "stopped")
    return [state_html(view), files, command, page, view.log, gr.update(interactive=not is_over)]


def address(office: Office, view: View) -> str:
    """Return where the server shows the page of a result."""
    if view.result is None or view.result.page is None:
        return ""
    return f"/results/{view.result.page.relative_to(office.folder.jobs).as_posix()}"


def _endpoints(office: Office) -> None:
    """Make the jobs an API: no part of the page, but called by name."""
    lora, source, target, upload = _hidden("LoRA"), _hidden("Source"), _hidden("Target"), gr.File(visible=False)
    facts, files, page = gr.JSON(visible=False), gr.File(visible=False, file_count="multiple"), gr.File(visible=False)
    names = ("rank", "format", "dtype", "preset", "settings", "include", "exclude")
    usual = {"format": "same", "dtype": "bf16"}
    more = [_hidden(name, usual.get(name, "")) for name in names]

    async def diagnose(
        request: gr.Request, lora: str, source: str, target: str, upload: str | None = None
    ) -> AsyncGenerator[Any, None]:
        ask = Ask("diagnose", source, target, lora, upload)
        async for told, _, page in _answered(office, ask, request):
            yield told, page

    async def transfer(
        request: gr.Request, lora: str, source: str, target: str, method: str, rank: str, format: str, dtype: str,
        preset: str, settings: str, include: str, exclude: str, upload: str | None = None,
    ) -> AsyncGenerator[Any, None]:  # fmt: skip
        ask = Ask(
            "transfer", source, target, lora, upload, method, rank, format, dtype, preset, settings, include, exclude
        )  # fmt: skip
        async for answer in _answered(office, ask, request):
            yield answer

    for function, text in ((diagnose, _DIAGNOSE), (transfer, _TRANSFER)):
        function.__doc__ = text
        function.__annotations__["request"] = gr.Request
    hidden = gr.Button(visible=False)
    hidden.click(
        diagnose, [lora, source, target, upload], [facts, page], api_name="diagnose", concurrency_limit=None,
        show_progress="hidden",
    )  # fmt: skip
    hidden.click(
        transfer, [lora, source, target, _hidden("Method", RECOMMEND), *more, upload], [facts, files, page],
        api_name="transfer", concurrency_limit=None, show_progress="hidden",
    )  # fmt: skip


async def _answered(office: Office, ask: Ask, request: gr.Request) -> AsyncGenerator[tuple[Any, Any, Any], None]:
    """Yield the moments of a job as an API gives them; what is refused is an error with the sentence as its text."""
    async with aclosing(office.run(ask, str(request.session_hash))) as views:
        async for view in views:
            if view.state in ("refused", "stopped"):
                raise gr.Error(view.sentence, print_exception=False)
            facts = {"state": view.state, "sentence": view.sentence, "share": view.share}
            if view.result is None:
                yield facts, None, None
            else:
                page = None if view.result.page is None else str(view.result.page)
                told = {**facts, **view.result.facts, "command": view.result.command, "log": view.log.splitlines()}
                yield told, [str(file) for file in view.result.files] or None, page


def _leaver(office: Office) -> Callable[..., None]:
    """Return what happens when a session ends: its jobs stop."""

    def leave(request: gr.Request) -> None:
        office.stop(str(request.session_hash))

    leave.__annotations__["request"] = gr.Request
    return leave


def _named(label: str, choices: list[str], info: str, id: str) -> gr.Dropdown:
    """Make a field for a name, of the list or any other."""
    return gr.Dropdown(choices, value=None, label=label, info=info, allow_custom_value=True, elem_id=id)


def _hidden(label: str, value: str = "") -> gr.Textbox:
    return gr.Textbox(value=value, label=label, visible=False)


def _example() -> list[str]:
    """Return a LoRA and two models of the embedded family, where it is installed."""
    return ["toy:noir", "toy:base", "toy:one-step"] if "toy" in named_entries() else []
