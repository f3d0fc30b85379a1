"""The commands: parse, call, print. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from loraport import __version__
from loraport.errors import LoraportError, OutputError, SettingsError

if TYPE_CHECKING:
    from loraport.weights.cache import BasisCache

app = typer.Typer(
    help="Move a LoRA from a base diffusion model to its distilled variants, without data and without training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache_app = typer.Typer(
    help="The store of singular bases: what is in it, is it sound, throw it away.", no_args_is_help=True
)
app.add_typer(cache_app, name="cache")

_MODEL = "a safetensors file, a folder of shards, a diffusers folder, a .pt/.pth/.ckpt/.bin, or a Hub id"

Lora = Annotated[str, typer.Argument(metavar="LORA", help="A safetensors file, a PEFT folder, or a Hub id.")]
Source = Annotated[str, typer.Option(metavar="MODEL", help=f"The model that the LoRA was trained on: {_MODEL}.")]
Target = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="The distilled model that it shall run on, likewise; or 'MODEL+ACCELERATOR.safetensors*0.8' for a model "
        "with an accelerator LoRA (its strength 1 if none is given), where MODEL may be the word source.",
    ),
]
Output = Annotated[
    str, typer.Option("-o", "--output", metavar="OUT", help="The new LoRA: a .safetensors file, or a folder for peft.")
]
Method = Annotated[
    str,
    typer.Option(
        help="casa, direct[:λ], direct-matched[:METHOD], undo[:β], undo-matched, core, drift-orthogonal[:k], prolora, "
        "lora-x, rollback, restore-only or arbitrate-only."
    ),
]
Preset = Annotated[str, typer.Option(help="CASA's settings: paper or published-code; flags win over it.")]
Tau = Annotated[float | None, typer.Option(help="Predicted rotation that joins two directions (Eq. 4).")]
QDom = Annotated[float | None, typer.Option(help="Quantile from which on a cluster dominates (Eq. 5-6).")]
QAct = Annotated[float | None, typer.Option(help="Quantile of risk above which an entry is arbitrated (Eq. 13).")]
Energy = Annotated[float | None, typer.Option(help="Share of energy of the leading directions (Eq. 3).")]
Restore = Annotated[float | None, typer.Option(help="How much of the weak drift is taken back, 0 to 1 (Eq. 8).")]
Arbitrate = Annotated[bool | None, typer.Option("--arbitrate/--no-arbitrate", help="Arbitrate risky entries (Eq. 14).")]
Subspace = Annotated[
    str | None, typer.Option(help="ProLoRA, LoRA-X: a weight's kept directions, energy:0.99, rank:320 or exact.")
]
NullSpace = Annotated[
    bool | None, typer.Option("--null-space/--no-null-space", help="ProLoRA: move what lies outside of them too.")
]
CrossTerms = Annotated[
    bool | None, typer.Option("--cross-terms/--no-cross-terms", help="ProLoRA: keep the mixed blocks that it drops.")
]
PhiMin = Annotated[
    float | None, typer.Option(help="ProLoRA: layers whose subspaces overlap less get no adapter; 0 keeps all.")
]
Rank = Annotated[
    str | None,
    typer.Option(help="auto (exact, or twice the LoRA's), source, full, a number, or a share of energy such as 0.95."),
]
FormatName = Annotated[str, typer.Option(help="same (as the input), comfy, diffusers, peft or kohya.")]
As = Annotated[str, typer.Option("--as", help="lora, or diff: dense .diff keys, lossless and large.")]
Dtype = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]
Include = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Transfer only layers that fit; copy the others.")
]
Exclude = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Copy layers that fit as they are.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int, typer.Option(help="Seed of the randomised factorisation.")]
CacheDir = Annotated[
    str | None, typer.Option("--cache", metavar="DIR", help="Folder of the bases; the user's cache by default.")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no bases on disk.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]
Report = Annotated[str | None, typer.Option(metavar="OUT.html", help="Also write a page about the transfer.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors on stderr.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="A line for every layer.")]


@app.command(
    epilog="Example: loraport transfer style.safetensors --source Wan-AI/Wan2.1-T2V-1.3B-Diffusers "
    "--target FastVideo/FastWan2.1-T2V-1.3B-Diffusers -o style-fastwan.safetensors"
)
def transfer(
    lora: Lora,
    source: Source,
    target: Target,
    output: Output,
    method: Method = "casa",
    preset: Preset = "paper",
    tau: Tau = None,
    q_dom: QDom = None,
    q_act: QAct = None,
    energy: Energy = None,
    restore: Restore = None,
    arbitrate: Arbitrate = None,
    subspace: Subspace = None,
    null_space: NullSpace = None,
    cross_terms: CrossTerms = None,
    phi_min: PhiMin = None,
    rank: Rank = None,
    format: FormatName = "same",
    as_: As = "lora",
    dtype: Dtype = "bf16",
    include: Include = None,
    exclude: Exclude = None,
    device: Device = "auto",
    seed: Seed = 0,
    cache: CacheDir = None,
    no_cache: NoCache = False,
    dry_run: DryRun = False,
    report: Report = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Transfer a LoRA from the model that it was trained on to a distilled variant of it."""
    from loraport import console
    from loraport.runs.config import TransferConfig, chosen_format, chosen_output, chosen_rank, method_settings
    from loraport.runs.execute import prepare
    from loraport.runs.execute import transfer as run

    flags = {
        "tau": tau, "q_dom": q_dom, "q_act": q_act, "energy": energy, "restore": restore, "arbitrate": arbitrate,
        "subspace": subspace, "null_space": null_space, "cross_terms": cross_terms, "phi_min": phi_min,
    }  # fmt: skip
    config = TransferConfig(
        lora=lora, source=source, target=target, output=output, method=method,
        rank=chosen_rank(rank, preset), format=chosen_format(format), as_diff=chosen_output(as_) == "diff", dtype=dtype,
        include=tuple(include or ()), exclude=tuple(exclude or ()), device=device, seed=seed,
        cache=_cache(cache, no_cache), **method_settings(method, preset, flags),
    )  # fmt: skip
    page = None if report is None else _page(report)
    if dry_run:
        console.print_plan(prepare(config).plan, json=json)
        return
    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        result = run(config, progress=terminal)
    if page is not None:
        from loraport.reports.transfer_page import write_transfer_page

        write_transfer_page(result, page)
    console.print_transfer(result, json=json, quiet=quiet)
    raise typer.Exit(3 if result.lost else 0)


@app.command(epilog="Example: loraport convert style.safetensors --to comfy -o style-comfy.safetensors")
def convert(
    lora: Lora,
    to: Annotated[str, typer.Option(metavar="FORMAT", help="comfy, diffusers, peft or kohya.")],
    output: Output,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; the input's own by default.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a LoRA in another dialect: the same updates, with alpha inside the factors."""
    from loraport import console
    from loraport.runs.convert import convert as run

    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        result = run(lora, to, output, dtype=dtype, each=terminal.detail)
    console.print_outcome(result.as_json(), result.words(), json=json, quiet=quiet)
    raise typer.Exit(3 if result.lost else 0)


@app.command(epilog="Example: loraport merge fastwan/ 'style-fastwan.safetensors*0.8' -o fastwan-style/")
def merge(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"The checkpoint: {_MODEL}.")],
    loras: Annotated[
        list[str], typer.Argument(metavar="LORA...", help="LoRAs of this model; 'LORA*0.8' (quoted) sets a strength.")
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="OUT", help="A .safetensors file; a folder where MODEL is one.")
    ],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Bake LoRAs into a checkpoint: same names, dtypes, shards and index, for inference code that loads no LoRA."""
    from loraport import console
    from loraport.runs.merge import merge as run

    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        result = run(model, loras, output, watch=terminal.share)
    console.print_outcome(result.as_json(), result.words(), json=json, quiet=quiet)
    raise typer.Exit(3 if result.lost else 0)


@app.command(epilog="Example: loraport inspect style.safetensors")
def inspect(
    place: Annotated[str, typer.Argument(metavar="FILE|MODEL", help="A LoRA or a model, as transfer takes them.")],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what a file is: family, dialect, layers, ranks, where its alpha was found, and what would be refused."""
    from loraport import console
    from loraport.weights.describe import describe

    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        facts = describe(place, each=terminal.detail)
    console.print_facts(facts, json=json)


@app.command(epilog="Example: loraport demo -o demo")
def demo(
    output: Annotated[str, typer.Option("-o", "--output", metavar="FOLDER", help="Where the page goes.")] = "demo",
    style: Annotated[str, typer.Option(help="Which of the embedded LoRAs: noir or retro.")] = "noir",
    method: Method = "casa",
    clips: Annotated[int, typer.Option(min=2, help="How many clips each column makes.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts and of the noise that all columns share.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Transfer a LoRA between the embedded models, make clips with each, and write a page that compares them."""
    _need("diffusers", "peft", extra="toy")
    from loraport import console
    from loraport.reports.demo_page import demo_facts, write_demo
    from loraport.runs.config import TransferConfig
    from loraport.runs.execute import transfer as run
    from loraport.toy.demo import demo_columns, run_demo
    from loraport.toy.family import BASE, STUDENT, adapter_path

    folder = _folder(output)
    new = folder / f"{style}-{method.replace(':', '-')}.safetensors"
    inputs = str(adapter_path(style)), str(BASE), str(STUDENT)
    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        config = TransferConfig(*inputs, str(new), method=method, format="diffusers")
        result = run(config, progress=terminal)
        columns = demo_columns(style, new, method)
        shown = run_demo(columns, style=style, clips=clips, seed=seed, progress=terminal.step)
    page = write_demo(shown, result, folder)
    console.print_facts(demo_facts(shown, result, page, words=not json), json=json)


@cache_app.command("list", epilog="Example: loraport cache list")
def cache_list(cache: CacheDir = None, json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """The bases that are kept, and their size; with -v each of them."""
    from loraport import console

    store, terminal = _store(cache), console.Terminal(quiet=quiet, verbose=verbose)
    entries = store.list()
    for entry in entries:
        terminal.detail(f"{entry.key}: {entry.bytes} bytes")
    size = store.total_bytes()
    shown = {"folder": str(store.folder), "bases": len(entries), "size": f"{size / 1e9:.2f} GB"}
    rows = [{"key": entry.key, "bytes": entry.bytes} for entry in entries]
    console.print_facts({"folder": str(store.folder), "entries": rows, "bytes": size} if json else shown, json=json)


@cache_app.command("verify", epilog="Example: loraport cache verify")
def cache_verify(cache: CacheDir = None, json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Check every basis against its checksum; damaged ones are recomputed by the next transfer that needs them."""
    from loraport import console

    store = _store(cache)
    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        broken = [{"path": str(entry.path), "reason": why} for entry, why in store.verify(watch=terminal.share)]
    console.print_facts({"folder": str(store.folder), "checked": len(store.list()), "broken": broken}, json=json)


@cache_app.command("clear", epilog="Example: loraport cache clear")
def cache_clear(cache: CacheDir = None, json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Remove every basis; nothing but time is lost."""
    from loraport import console

    store, terminal = _store(cache), console.Terminal(quiet=quiet, verbose=verbose)
    for entry in store.list():
        terminal.detail(f"{entry.key}: removed")
    files, size = store.clear()
    console.print_facts({"folder": str(store.folder), "removed": files, "bytes": size}, json=json)


@app.callback(invoke_without_command=True)
def version_option(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    """Options of the program itself."""
    if version:
        typer.echo(f"loraport {__version__}")
        raise typer.Exit


def _cache(folder: str | None, no_cache: bool) -> str | None:
    from loraport.weights.cache import default_folder

    if no_cache and folder is not None:
        raise SettingsError("--cache and --no-cache contradict each other; give one of them")
    return None if no_cache else folder or str(default_folder())


def _need(*modules: str, extra: str) -> None:
    """Refuse, with the line to type, where an optional part is not installed."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise SettingsError(
            f"this command needs {', '.join(missing)}; install them with: pip install 'loraport[{extra}]'"
        )


def _page(place: str) -> Path:
    """Where a page will go; refused before the work where it could not be written after it."""
    path = Path(place)
    if path.suffix != ".html" or not path.parent.is_dir():
        raise OutputError(f"{place} cannot be a page: name an .html file in a folder that exists")
    return path


def _folder(place: str) -> Path:
    """The folder, made if it is not there. Raises OutputError where it cannot be."""
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{place} cannot be made: {error.strerror or error}; name another folder") from error
    return Path(place)


def _store(folder: str | None) -> BasisCache:
    from loraport.weights.cache import BasisCache

    return BasisCache(_cache(folder, False))


def main() -> NoReturn:
    """Run the command line: exit 0 done, 1 our failure, 2 the user's input, 3 done but something was lost."""
    try:
        app()
    except LoraportError as error:
        print(f"loraport: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        print("loraport: this is a fault of the program; please report the lines above", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)
