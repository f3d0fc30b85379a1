"""What commands share: their arguments and options, and the places and parts that they check before the work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from loraport.errors import OutputError, SettingsError

MODEL_FORMS = (
    "a safetensors or GGUF file, a folder of shards, a diffusers folder, a .pt/.pth/.ckpt/.bin, a Hub id, or a name "
    "from `loraport presets`"
)

Lora = Annotated[str, typer.Argument(metavar="LORA", help="A safetensors file, a PEFT folder, or a Hub id.")]
Loras = Annotated[
    list[str], typer.Argument(metavar="LORA...", help="Safetensors files, PEFT folders, or Hub ids; one or several.")
]
Source = Annotated[str, typer.Option(metavar="MODEL", help=f"The model that the LoRA was trained on: {MODEL_FORMS}.")]
Target = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="The distilled model that it shall run on, likewise; or 'MODEL+ACCELERATOR.safetensors*0.8' for a model "
        "with an accelerator LoRA (its strength 1 if none is given), where MODEL may be the word source.",
    ),
]
_PART = "of a .pt file which entry (generator; generator_ema is preferred), of a pipeline which folder (transformer_2)"
SourcePart = Annotated[str | None, typer.Option(metavar="NAME", help=f"Of the source, {_PART}.")]
TargetPart = Annotated[str | None, typer.Option(metavar="NAME", help=f"Of the target, {_PART}.")]
Part = Annotated[str | None, typer.Option(metavar="NAME", help=f"O{_PART[1:]}.")]
LoraPart = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which of several LoRAs in one file: transformer_2, or an adapter.")
]
Output = Annotated[
    str, typer.Option("-o", "--output", metavar="OUT", help="The new LoRA: a .safetensors file, or a folder for peft.")
]
OutputOrFolder = Annotated[
    str,
    typer.Option(
        "-o",
        "--output",
        metavar="OUT",
        help="The new LoRA: a .safetensors file, or a folder for peft. With several LoRAs or methods, a folder for "
        "LORA-METHOD.safetensors each (style-casa.safetensors; a colon becomes a dash: style-direct-1.15.safetensors).",
    ),
]
Methods = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="METHOD[,METHOD...]",
        help="casa, direct[:λ], direct-matched[:METHOD], undo[:β], undo-matched, core, drift-orthogonal[:k], prolora, "
        "lora-x, rollback, restore-only or arbitrate-only; several of them, with commas; or auto: the guard chooses.",
    ),
]
Method = Annotated[
    str,
    typer.Option(
        help="casa, direct[:λ], direct-matched[:METHOD], undo[:β], undo-matched, core, drift-orthogonal[:k], prolora, "
        "lora-x, rollback, restore-only or arbitrate-only."
    ),
]
Preset = Annotated[
    str | None, typer.Option(help="CASA's settings: paper (the default) or published-code; flags win over it.")
]
Tau = Annotated[float | None, typer.Option(help="Predicted rotation that joins two directions (Eq. 4).")]
Eps = Annotated[float | None, typer.Option(help="Added to the gap of two singular values (Eq. 4); 1e-6.")]
EpsContext = Annotated[
    float | None, typer.Option(help="Added to the product of norms in the context of an entry (Eq. 11); 1e-8.")
]
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
Pairing = Annotated[
    str,
    typer.Option(
        help="Which source layer each target layer takes after: name, similarity (of singular subspaces), or auto: "
        "similarity where the models differ in depth."
    ),
]
PairMin = Annotated[float, typer.Option(help="Least similarity of a pair, 0 to 1.")]
PhiMin = Annotated[
    float | None, typer.Option(help="ProLoRA: layers whose subspaces overlap less get no adapter; 0 keeps all.")
]
Split = Annotated[
    bool,
    typer.Option(
        "--split",
        help="Two files that add up: what is left of the LoRA in OUT, what is taken back of the drift in "
        "OUT-counter-drift.",
    ),
]
Experts = Annotated[
    bool,
    typer.Option(
        "--experts",
        help="Both experts of Wan 2.2 A14B, each with its own: OUT-high_noise and OUT-low_noise. One LoRA is for both, "
        "unless its name says high or low (HIGH, high_noise, HighNoise, -H) and the other one's lies beside it; two "
        "are the high-noise and the low-noise one's. MODEL: a folder or repository with both, wan2.2-t2v-a14b, or one "
        "expert's place whose name says so.",
    ),
]
Guard = Annotated[
    bool, typer.Option("--guard", help="Sample both models, and keep direct reuse unless the result is surely closer.")
]
GuardClips = Annotated[
    int, typer.Option("--guard-clips", min=2, help="Clips that the guard draws; 8 at least to be sure of anything.")
]
Calibrated = Annotated[bool, typer.Option("--calibrated", help="With the guard: let a calibrated adapter compete too.")]
SamplingFlags = Annotated[
    list[str] | None,
    typer.Option(
        "--sampling",
        metavar="KEY=VALUE",
        help="With the guard, how pipelines are sampled: the options of score, as in --sampling target-steps=3.",
    ),
]
Rank = Annotated[
    str | None,
    typer.Option(help="auto (exact, or twice the LoRA's), source, full, a number, or a share of energy such as 0.95."),
]
FormatName = Annotated[str, typer.Option(help="same (as the input), comfy, diffusers, peft, kohya or tencent.")]
As = Annotated[str, typer.Option("--as", help="lora, or diff: dense .diff keys, lossless and large.")]
Dora = Annotated[
    str,
    typer.Option(
        help="What of a DoRA is transferred: effective, all that it adds to the source's weights; or magnitude, its "
        "factors, and magnitudes rescaled to the target's rows."
    ),
]
TransferDiffs = Annotated[
    bool, typer.Option("--transfer-diffs", help="Transfer full differences (.diff) of matrices too; else copy them.")
]
Dtype = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]
Include = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Transfer only layers that fit; copy the others.")
]
Exclude = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Copy layers that fit as they are.")]
ForceDrift = Annotated[
    bool, typer.Option("--force-drift", help="Transfer layers whose drift is within twice what rounding makes, too.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int, typer.Option(help="Seed of the randomised factorisation.")]
CacheDir = Annotated[
    str | None, typer.Option("--cache", metavar="DIR", help="Folder of the bases; the user's cache by default.")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no bases on disk.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]
Report = Annotated[str | None, typer.Option(metavar="OUT.html", help="Also write a page about the transfer.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a result that is there already.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors on stderr.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="A line for every layer.")]


def cache_folder(folder: str | None, no_cache: bool) -> str | None:
    """Return the folder of the cache, or None with --no-cache."""
    from loraport.store.cache_folder import default_folder

    if no_cache and folder is not None:
        raise SettingsError("--cache and --no-cache contradict each other; give one of them")
    return None if no_cache else folder or str(default_folder())


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
    """Where a page will go; refused before the work where it could not be written after it."""
    path = Path(os.path.expanduser(place))
    if path.suffix != ".html" or not path.parent.is_dir():
        raise OutputError(f"{place} cannot be a page: name an .html file in a folder that exists")
    return path


def folder_path(place: str) -> Path:
    """The folder, made if it is not there. Raises OutputError where it cannot be."""
    folder = Path(os.path.expanduser(place))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{place} cannot be made: {error.strerror or error}; name another folder") from error
    return folder
