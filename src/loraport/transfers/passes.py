"""Run transfers between several pairs of models in turn, such as the two experts of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loraport.files.models.presets import Opener, open_model
from loraport.inputs.config import TransferConfig
from loraport.inputs.open import TransferInputs, check_outputs, prepare_many
from loraport.progress import NO_PROGRESS, Progress, observer
from loraport.transfers.results import BatchResult, joined
from loraport.transfers.run import transfer_many


@dataclass(frozen=True)
class Pass:
    """Runs between one pair of models."""

    configs: tuple[TransferConfig, ...]
    name: str = ""
    """How messages name it where there are several: the expert's title."""
    notes: tuple[str, ...] = ()
    """What the user should know of how its files were chosen."""


def prepare_passes(
    passes: Sequence[Pass], *, open_model: Opener = open_model
) -> tuple[tuple[TransferInputs, ...], ...]:
    """Return the opened inputs and plans of all runs, with each pass's own notes among the plan's warnings."""
    return tuple(
        tuple(
            replace(inputs, plan=replace(inputs.plan, warnings=(*one.notes, *inputs.plan.warnings)))
            for inputs in prepare_many(one.configs, open_model=open_model)
        )
        for one in passes
    )


def transfer_passes(passes: Sequence[Pass], *, progress: Progress = NO_PROGRESS) -> BatchResult:
    """Run `transfer_many` for several pairs of models in turn; nothing begins if any of them is refused."""
    progress = observer(progress)
    if len(passes) > 1:  # an output of one may be an input of another
        check_outputs([inputs for one in passes for inputs in prepare_many(one.configs)])
    for note in dict.fromkeys(note for one in passes for note in one.notes):
        progress.note(note)
    batches = []
    for one in passes:
        batch = transfer_many(one.configs, progress=LabelledProgress(progress, one.name) if one.name else progress)
        runs = tuple(replace(run, warnings=(*one.notes, *run.warnings)) for run in batch.runs)
        batches.append(replace(batch, runs=runs))
    return joined(batches)


@dataclass(frozen=True)
class LabelledProgress:
    """Puts the name of a pass in front of every report."""

    progress: Progress
    label: str

    def step(self, text: str, done: int, total: int) -> None:
        """Report a step of this pass."""
        self.progress.step(f"{self.label}: {text}", done, total)

    def advance(self, text: str, done: int, total: int, part: str = "") -> None:
        """Report a share of this pass."""
        self.progress.advance(f"{self.label}: {text}", done, total, part)

    def note(self, text: str) -> None:
        """Report a note on this pass."""
        self.progress.note(f"{self.label}: {text}")
