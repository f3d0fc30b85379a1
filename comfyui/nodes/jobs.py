"""What the nodes do with files: loraport's functions, called with what places and choices were found to mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import loraport
from loraport import InputError, OutputError, TransferConfig
from loraport.batches.finished import earlier_header, is_finished
from loraport.diagnosis.result import Diagnosis
from loraport.files.disk.protect_inputs import protect_inputs
from loraport.files.formats.safetensors_read import read_safetensors
from loraport.files.formats.safetensors_write import OWN_PREFIX
from loraport.inputs.accelerator import AcceleratedModel, target_places
from loraport.inputs.open import prepare_many
from loraport.methods.recipes import METHODS

from .places import choices_of
from .progress import NodeProgress
from .words import conversion_text, diagnosis_text, facts_text, transfer_words

RECOMMEND = "recommend"
_WITH_NUMBER = {
    "direct": "direct:1.15",
    "undo": "undo:0.25",
    "undo-orthogonal": "undo-orthogonal:0.25",
    "drift-orthogonal": "drift-orthogonal:16",
}
METHOD_CHOICES = [
    RECOMMEND,
    *(name for method in METHODS for name in (method, *([_WITH_NUMBER[method]] if method in _WITH_NUMBER else []))),
]
"""Methods to choose from. Others, such as undo:0.4, are given by a text in their place."""
FORMAT_CHOICES = ["same", "comfy", "diffusers", "kohya"]
"""PEFT's format is a folder, which ComfyUI does not list."""
DTYPE_CHOICES = ["bf16", "fp16", "fp32"]
REUSE, AGAIN = "use it if it is this transfer", "make it again"
EXISTING_CHOICES = [REUSE, AGAIN]


@dataclass(frozen=True)
class Outcome:
    """A file that is there now, and what to say of it."""

    path: Path
    text: str


@dataclass(frozen=True)
class Inputs:
    """The LoRA and the two models, as loraport names them, and where to compute."""

    lora: Path
    source: str
    target: str
    device: str
    cache: str | None
    lora_part: str | None = None
    """Which of several LoRAs in the file."""

    def config(self, output: Path, method: str, **settings: Any) -> TransferConfig:
        """Return the transfer by a method. Raises SettingsError for a method, a rank or a format that there is not."""
        return TransferConfig(
            str(self.lora), self.source, self.target, str(output), method=method, device=self.device, cache=self.cache,
            lora_part=self.lora_part, **settings,
        )  # fmt: skip


def check_method(method: str) -> str:
    """Return a method that there is. Raises SettingsError."""
    if method != RECOMMEND:
        loraport.find_recipe(method)
    return method


def advised(inputs: Inputs, method: str, progress: NodeProgress) -> tuple[str, str]:
    """Return the method to use, and the verdict that chose it; "" where the user did.

    Raises InputError where the weights say that this LoRA does not belong to these models.
    """
    if method != RECOMMEND:
        return method, ""
    told = diagnosed(inputs, progress)
    if told.method is None:
        raise InputError(f"{told.why}; to move it all the same, choose a method by its name, such as casa")
    return told.method, told.line()


def diagnosed(inputs: Inputs, progress: NodeProgress, *, exact: bool = False) -> Diagnosis:
    """Return what the weights speak for."""
    progress.make_room(inputs.device)
    return loraport.diagnose(
        str(inputs.lora), inputs.source, inputs.target, exact=exact, device=inputs.device, cache=inputs.cache,
        lora_part=inputs.lora_part, progress=progress,
    )  # fmt: skip


def transfer_file(
    inputs: Inputs, output: Path, name: str, method: str, *, existing: str, progress: NodeProgress, **settings: Any
) -> Outcome:
    """Transfer to a file, unless it is there already and nothing it was made of has changed.

    A file of somebody else is never replaced. Raises InputError and OutputError as `loraport.transfer` does.
    """
    check_method(method)
    choices_of(existing, EXISTING_CHOICES, what="way with files that are there already")
    inputs.config(output, "direct", **settings)  # what is wrong with the settings is said before anything is read
    protect_inputs(output, [inputs.lora, inputs.source, *target_places(inputs.target)])
    header = earlier_header(str(output))
    if header is None and output.exists():
        raise OutputError(f"{output} is there already, and no transfer has made it; give another name")
    chosen, advice = advised(inputs, method, progress)
    config = inputs.config(output, chosen, **settings)
    config = replace(config, advised=advice)
    where = _where(inputs, name)
    if header is not None and existing == REUSE and _is_current(config, header, output):
        return Outcome(output, f"{name} is there already: the same LoRA, models and settings.\n{where}")
    if header is not None:
        progress.note(f"{name}, an earlier transfer, is replaced")
    progress.make_room(inputs.device)
    result = loraport.transfer(config, progress=progress)
    return Outcome(output, transfer_words(result, advice, progress.notes, where))


def diagnose_text(inputs: Inputs, progress: NodeProgress, *, exact: bool) -> tuple[str, str]:
    """Return the method that a diagnosis advises, "" where none makes sense, and what it says."""
    told = diagnosed(inputs, progress, exact=exact)
    return told.method or "", diagnosis_text(told)


def convert_file(lora: Path, output: Path, name: str, form: str, dtype: str, rank: str, source: str | None) -> Outcome:
    """Write a LoRA in another format. A file that is there is replaced only if it is this node's."""
    choices_of(form, FORMAT_CHOICES[1:], what="format")
    protect_inputs(output, [lora])
    if output.exists() and not _is_converted(output):
        raise OutputError(f"{output} is there already, and no conversion has made it; give another name")
    own = None if dtype == "same" else choices_of(dtype, DTYPE_CHOICES, what="dtype")
    done = loraport.convert(lora, form, output, dtype=own, rank=rank, source=source)
    return Outcome(output, conversion_text(done, name))


def inspect_text(place: Path | str) -> str:
    """Return what a LoRA or a model is."""
    return facts_text(loraport.inspect(place))


def _where(inputs: Inputs, name: str) -> str:
    """Return how to load a result."""
    beside = inputs.target.split("+")[1:] if inputs.target.startswith("source+") else []
    text = f"Load {name} at strength 1 on {Path(inputs.target.partition('+')[0]).name or 'the target'}"
    if beside:
        named = [one.rpartition("*") for one in beside]
        text = f"Load {name} at strength 1 on the source, with " + " and ".join(
            f"{Path(path).name} at strength {strength}" for path, _, strength in named
        )
    return f"{text}."


def _is_current(config: TransferConfig, header: Any, output: Path) -> bool:
    """Return whether a file was made by this transfer, from the models as they are: none is newer than the file."""
    inputs = prepare_many([config])[0]
    made = output.stat().st_mtime_ns
    named = {"source": Path(config.source).name, "target": Path(config.target).name}
    if isinstance(inputs.target, AcceleratedModel):
        named |= inputs.target.provenance()
    return (
        is_finished(inputs, header, None)
        and all(header.get(f"{OWN_PREFIX}{name}") == text for name, text in named.items())
        and all(Path(path).stat().st_mtime_ns <= made for path in (*inputs.source.paths, *inputs.target.paths))
    )


def _is_converted(place: Path) -> bool:
    try:
        return f"{OWN_PREFIX}converted" in read_safetensors(place).metadata
    except InputError:
        return False
