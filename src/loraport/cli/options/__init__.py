"""The options that commands share, as dataclasses, and what is checked about them before the work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from loraport.cli.options.completion import complete_model, complete_pair
from loraport.cli.options.expansion import SettingFlags
from loraport.errors import OutputError, SettingsError
from loraport.files.accelerator_names import fitted
from loraport.files.presets.pairs import published_pair
from loraport.methods.settings import Changes

if TYPE_CHECKING:
    from loraport.console import Terminal
    from loraport.inputs.config import RankRule, TransferConfig
    from loraport.transfers.results import BatchResult

FILES, METHOD, OUTPUT, MACHINE = "Files", "Method and layers", "Output", "Machine"
"""Headings of `--help`."""
MODEL_FORMS = (
    "a safetensors or GGUF file, a folder of shards, a diffusers folder, a .pt/.pth/.ckpt/.bin, a Hub id, or a name "
    "from `loraport presets`"
)
NEEDED = "[required, unless --for has it]"

Lora = Annotated[
    str,
    typer.Argument(metavar="LORA", help="A safetensors file, a PEFT folder, or a Hub id.", rich_help_panel=FILES),
]
Loras = Annotated[
    list[str],
    typer.Argument(
        metavar="LORA...", help="Safetensors files, PEFT folders, or Hub ids; one or several.", rich_help_panel=FILES
    ),
]
Source = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help=f"The model that the LoRA was trained on: {MODEL_FORMS}. {NEEDED}",
        autocompletion=complete_model,
        show_default=False,
    ),
]
Target = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="The distilled model to run it on, likewise; or 'MODEL+ACCELERATOR.safetensors*0.8' for a model with an "
        "accelerator LoRA (strength 1 if none is given), where MODEL may be the word source, and ACCELERATOR a name "
        f"from `loraport presets`, which has a strength of its own. {NEEDED}",
        autocompletion=complete_model,
        show_default=False,
    ),
]
Pair = Annotated[
    str | None,
    typer.Option(
        "--for", metavar="PAIR", help="A published pair: source and target at once, by the name of a distilled model "
        "or an accelerator from `loraport presets` (fastwan, rolling-forcing, lightx2v-lora-wan2.1-t2v-14b). A model "
        "that is named besides takes the place of the pair's.",
        autocompletion=complete_pair,
    ),
]  # fmt: skip
_PART = "an entry of a .pt file (generator; default generator_ema) or a subfolder of a pipeline (transformer_2)"
SourcePart = Annotated[str | None, typer.Option(metavar="NAME", help=f"Which part of the source: {_PART}.")]
TargetPart = Annotated[str | None, typer.Option(metavar="NAME", help="Which part of the target, likewise.")]
Part = Annotated[
    str | None, typer.Option(metavar="NAME", help=f"Which part of the model: {_PART}.", rich_help_panel=FILES)
]
LoraPart = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Which of several LoRAs in one file: transformer_2, or an adapter's name.",
        rich_help_panel=FILES,
    ),
]  # fmt: skip
Output = Annotated[
    str,
    typer.Option(
        "-o", "--output", metavar="OUT", help="The new LoRA: a .safetensors file, or a folder for peft.",
        rich_help_panel=OUTPUT,
    ),
]  # fmt: skip
OutputOrFolder = Annotated[
    str,
    typer.Option(
        "-o",
        "--output",
        metavar="OUT",
        help="The new LoRA: a .safetensors file, or a folder for peft. With several LoRAs or methods, a folder that "
        "gets LORA-METHOD.safetensors of each (style-casa.safetensors, style-direct-1.15.safetensors).",
        rich_help_panel=OUTPUT,
    ),
]
FormatName = Annotated[
    str,
    typer.Option(
        metavar="FORMAT", help="same (as the input), comfy, diffusers, peft, kohya or tencent.", rich_help_panel=OUTPUT
    ),
]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="fp32, bf16 or fp16.", rich_help_panel=OUTPUT)]
ForceDrift = Annotated[
    bool,
    typer.Option(
        "--force-drift", help="Also transfer layers whose drift is within rounding error.", rich_help_panel=METHOD
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.", rich_help_panel=OUTPUT)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a result that is already there.", rich_help_panel=OUTPUT)
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="CASA's settings: paper or published-code; single settings win over it.",
        show_default="paper",
    ),
]  # fmt: skip
Seed = Annotated[int, typer.Option(metavar="INT", help="Seed of everything random.", rich_help_panel=MACHINE)]
CacheDir = Annotated[
    str | None,
    typer.Option("--cache", metavar="DIR", help="Folder of the cache.", show_default="the user's cache folder"),
]


@dataclass(frozen=True)
class PairOptions:
    """Two models: each by itself, or both by the name of a published pair."""

    heading: ClassVar[str] = FILES
    needed: ClassVar[bool] = True
    """Whether there have to be two; else a manifest may have them."""
    source: Source = ""
    target: Target = ""
    pair: Pair = None

    def __post_init__(self) -> None:
        """Fill in what the pair says. Raises SettingsError for an unknown pair, and where a model is missing."""
        if self.pair is not None:
            for name, place in zip(("source", "target"), published_pair(self.pair), strict=True):
                object.__setattr__(self, name, getattr(self, name) or place)
        if self.needed and (missing := [f"--{name}" for name in ("source", "target") if not getattr(self, name)]):
            raise SettingsError(
                f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing: name the model, or a "
                "published pair with --for, such as --for fastwan"
            )
        object.__setattr__(self, "target", fitted(self.target, self.source))


@dataclass(frozen=True)
class ModelOptions(PairOptions):
    """The two models, and which parts of them."""

    source_part: SourcePart = None
    target_part: TargetPart = None


@dataclass(frozen=True)
class SettingOptions:
    """A preset, and the settings of all methods."""

    heading: ClassVar[str] = METHOD
    preset: Preset = None
    changes: Annotated[Changes, SettingFlags()] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerOptions:
    """Which layers are transferred, and what of them."""

    heading: ClassVar[str] = METHOD
    include: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Transfer only matching layers; copy the others.")
    ] = None
    exclude: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Copy matching layers as they are.")] = (
        None
    )
    force_drift: ForceDrift = False
    qkv: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYOUT",
            help="How the rows of fused q, k and v lie, where names do not tell (MiniMax-H3): stacked or interleaved, "
            "of all files, or lora=, source= or target= before it.",
            show_default="as the files and their drift tell",
        ),
    ] = None
    pairing: Annotated[
        str,
        typer.Option(
            metavar="RULE",
            help="How layers of source and target are paired: by name, by similarity (of singular subspaces), or auto: "
            "by similarity where the models differ in depth.",
        ),
    ] = "auto"
    pair_min: Annotated[float, typer.Option(metavar="NUMBER", help="Least similarity of a pair, 0 to 1.")] = 0.8
    dora: Annotated[
        str,
        typer.Option(
            metavar="READING",
            help="What of a DoRA is transferred: effective, all that it adds to the source's weights; or magnitude: "
            "its factors, with the magnitudes rescaled to the target's rows.",
        ),
    ] = "effective"
    transfer_diffs: Annotated[
        bool,
        typer.Option("--transfer-diffs", help="Also transfer full differences (.diff) of matrices; else copy them."),
    ] = False


@dataclass(frozen=True)
class ResultOptions:
    """How the new LoRA is written."""

    heading: ClassVar[str] = OUTPUT
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="RANK", help="auto (exact where the method is, else twice the LoRA's), source, full, a number, or "
            "a share of the energy such as 0.95.",
            show_default="auto, published-code: 32",
        ),
    ] = None  # fmt: skip
    format: FormatName = "same"
    dtype: Dtype = "bf16"
    dry_run: DryRun = False
    overwrite: Overwrite = False
    report: Annotated[str | None, typer.Option(metavar="OUT.html", help="Also write a page about the transfer.")] = None

    def rank_rule(self) -> RankRule | None:
        """Return the rule that was typed; None leaves it to the presets. Raises SettingsError for none of the rules."""
        from loraport.inputs.config import RankRule

        return None if self.rank is None else RankRule.parse(self.rank)


@dataclass(frozen=True)
class DeviceOptions:
    """Where it runs, and what it keeps for the next time."""

    heading: ClassVar[str] = MACHINE
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = "auto"
    cache: CacheDir = None
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no singular bases or samples on disk.")] = False

    @property
    def folder(self) -> str | None:
        """The folder of the cache; None with --no-cache. Raises SettingsError where both are given."""
        if self.no_cache and self.cache is not None:
            raise SettingsError("--cache and --no-cache contradict each other; give one of them")
        return None if self.no_cache else cache_folder(self.cache)


@dataclass(frozen=True)
class RunOptions(DeviceOptions):
    """The same with a seed."""

    seed: Seed = 0


@dataclass(frozen=True)
class MessageOptions:
    """What is printed."""

    heading: ClassVar[str] = "Messages"
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")] = (
        False
    )
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing on stderr but errors.")] = False
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Print more: a line for every layer, key, file or entry.")
    ] = False

    def terminal(self) -> Terminal:
        """Return what shows progress and messages, or tells them to the program that asked for it."""
        from loraport.cli.options.told_lines import ToldLines, is_asked_for
        from loraport.console import Terminal

        shown = ToldLines if is_asked_for() else Terminal
        return shown(quiet=self.quiet, verbose=self.verbose)


def transfer_config(
    lora: str,
    output: str,
    models: ModelOptions,
    layers: LayerOptions,
    result: ResultOptions,
    run: RunOptions,
    *,
    lora_part: str | None = None,
    form: str = "lora",
) -> TransferConfig:
    """Return the configuration of a transfer by its options, without a method. Raises SettingsError for bad values."""
    from loraport.inputs.config import TransferConfig, chosen_format, chosen_output

    return TransferConfig(
        lora, models.source, models.target, output,
        source_part=models.source_part, target_part=models.target_part, lora_part=lora_part,
        format=chosen_format(result.format), as_diff=chosen_output(form) == "diff", dora=layers.dora,
        transfer_diffs=layers.transfer_diffs, dtype=result.dtype, include=tuple(layers.include or ()),
        exclude=tuple(layers.exclude or ()), force_drift=layers.force_drift, pairing=layers.pairing,
        pair_min=layers.pair_min, qkv=tuple(layers.qkv or ()), device=run.device, seed=run.seed, cache=run.folder,
    )  # fmt: skip


def write_report(batch: BatchResult, page: Path, messages: MessageOptions) -> None:
    """Write the page of a finished transfer. Raises OutputError, which says that the LoRA is written all the same."""
    from loraport.reports.transfer_page import write_transfer_page

    try:
        lacking = write_transfer_page(batch, page)
    except (OutputError, OSError) as error:
        outputs = ", ".join(run.output for run in batch.runs)
        raise OutputError(f"{outputs} is written and whole, but the page about it is not: {error}") from error
    for sentence in lacking:
        messages.terminal().note(sentence)


def cache_folder(named: str | None) -> str:
    """Return the folder of the cache: the named one, else the user's."""
    from loraport.store.cache_folder import default_folder

    return named or str(default_folder())


def refuse_idle(context: typer.Context, idle: Mapping[str, str]) -> None:
    """Raise SettingsError for an option that was typed and would do nothing; `idle`: parameter -> why."""
    for parameter in context.command.params:
        typed = getattr(context.get_parameter_source(parameter.name or ""), "name", "DEFAULT")
        if parameter.name in idle and typed != "DEFAULT":
            raise SettingsError(f"{parameter.opts[0]} would do nothing here: {idle[parameter.name]}; leave it out")


def need(*modules: str, extra: str) -> None:
    """Refuse, with the line to type, where an optional part is not installed."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise SettingsError(
            f"this command needs {', '.join(missing)}; install them with: pip install 'loraport[{extra}]'"
        )


def page_path(place: str) -> Path:
    """Return where a page will go. Raises OutputError, before the work, where it could not be written after it."""
    from loraport.files.disk.free_space import check_writable

    path = Path(os.path.expanduser(place))
    if path.suffix != ".html" or path.is_dir():
        raise OutputError(f"{place} cannot be a page: name an .html file")
    check_writable(path)
    return path


def folder_path(place: str) -> Path:
    """Return the folder, made if it is not there. Raises OutputError where it cannot be."""
    folder = Path(os.path.expanduser(place))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{place} cannot be made: {error.strerror or error}; name another folder") from error
    return folder
