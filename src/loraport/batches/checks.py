"""Check all jobs before the work: what is refused, what is finished already, what is left to do."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loraport.batches.finished import WeightHashes, earlier_header, is_finished, is_unfinished
from loraport.batches.jobs import JobPlan, Pass
from loraport.errors import InputError, LoraportError, OutputError
from loraport.files.disk.free_space import check_writable
from loraport.files.disk.protect_inputs import ProtectedInputs
from loraport.files.disk.user_paths import expand_home
from loraport.files.models.headers import HeadersUnknownError
from loraport.files.models.presets import Opener, open_model
from loraport.inputs.config import TransferConfig
from loraport.inputs.open import TransferInputs, check_names, check_output, check_room, prepare_each
from loraport.progress import NO_PROGRESS, Progress, counter
from loraport.transfers.results import NotWritten

AT_ONCE = 64
"""Jobs that are opened, and go through the layers, together. Memory grows with these and not with all; weights are read
once for all of them, so that a larger number would save less than a sixtieth of the reading."""


@dataclass(frozen=True)
class Portion:
    """Jobs that go through the layers together, and their opened inputs where they are still held."""

    jobs: Pass
    opened: tuple[TransferInputs, ...] | None = None

    def open(
        self, progress: Progress, *, keep_going: bool = False
    ) -> tuple[tuple[TransferInputs, ...], list[NotWritten]]:
        """Return the opened inputs, and what has become unusable since it was checked."""
        return (self.opened, []) if self.opened is not None else prepare_portion(self.jobs, progress, None, keep_going)


@dataclass(frozen=True)
class CheckedPlan:
    """A plan whose inputs and outputs have been looked at."""

    portions: tuple[Portion, ...]
    finished: tuple[TransferConfig, ...]
    """Their outputs are there already, made of the same contents with the same settings."""
    refused: tuple[NotWritten, ...]
    replaced: tuple[str, ...]
    """Outputs of earlier transfers that were another's work: they are made again."""

    @property
    def jobs(self) -> tuple[TransferConfig, ...]:
        """What is left to do."""
        return tuple(job for portion in self.portions for job in portion.jobs)


def check_plan(
    plan: JobPlan,
    *,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
    headers: Opener | None = None,
    keep_going: bool = False,
) -> CheckedPlan:
    """Open every LoRA and both models of every pass, and look at every output. Nothing is written or raised for them.

    `overwrite`: whatever is there is made again. `headers`: how models are opened by their headers alone, for a dry
    run; their weights are not compared then with those that finished outputs were made of. `keep_going`: where the
    program itself fails on a LoRA, that one is refused, too.
    """
    protected = ProtectedInputs(job.lora for job in plan.jobs)
    held = len(plan.jobs) <= AT_ONCE
    report = counter(NO_PROGRESS if held else progress, "checking", len(plan.jobs))
    refused, finished, replaced = list(plan.refused), [], []
    portions: list[Portion] = []
    for jobs in plan.passes:
        hashes, left = WeightHashes(), []
        for some in _in_portions(jobs):
            ready, wrong = prepare_portion(some, progress, headers, keep_going)
            refused += wrong
            todo = []
            for inputs in ready:
                try:
                    check_names(inputs)
                    check_output(inputs, protected)
                    check_writable(Path(inputs.config.output))
                    state = _standing(inputs, None if headers else hashes, overwrite)
                except LoraportError as error:
                    refused.append(NotWritten.of(inputs.config, error))
                    continue
                if state == "finished":
                    finished.append(inputs.config)
                    continue
                replaced += [inputs.config.output] if state == "another's" else []
                todo.append(inputs)
            check_room(todo)
            left += [inputs.config for inputs in todo]
            if held and todo:  # else they are opened again: memory must not grow with the jobs
                portions.append(Portion(tuple(left), tuple(todo)))
            report(len(some), f"{some[-1].lora}: checked")
        portions += [] if held else [Portion(some) for some in _in_portions(tuple(left))]
    return CheckedPlan(tuple(portions), tuple(finished), tuple(refused), tuple(replaced))


def _in_portions(jobs: Pass) -> Iterator[Pass]:
    for start in range(0, len(jobs), AT_ONCE):
        yield jobs[start : start + AT_ONCE]


def prepare_portion(
    jobs: Pass, progress: Progress, headers: Opener | None, keep_going: bool
) -> tuple[tuple[TransferInputs, ...], list[NotWritten]]:
    """Open some jobs; where their models cannot be opened, all of them are refused for it."""
    try:
        ready, refused = prepare_each(jobs, progress, open_model=headers or open_model)
    except HeadersUnknownError:  # of a dry run: only fetching would tell
        raise
    except LoraportError as error:
        return (), [NotWritten.of(job, error) for job in jobs]
    except Exception as fault:
        if not keep_going or isinstance(fault, OSError):
            raise
        if len(jobs) == 1:
            return (), [NotWritten.of(jobs[0], fault_of_ours(fault))]
        alone = [prepare_portion((job,), progress, headers, keep_going) for job in jobs]
        return tuple(one for ready, _ in alone for one in ready), [one for _, refused in alone for one in refused]
    return ready, [NotWritten.of(one.config, one.error) for one in refused]


def fault_of_ours(fault: Exception) -> InputError:
    """Return an unexpected error as the reason why one job of many was not done: the others must not wait for it."""
    *_, last = traceback.extract_tb(fault.__traceback__)
    where = f"{os.path.basename(last.filename)}:{last.lineno}"
    return InputError(
        f"a fault of the program, {type(fault).__name__} in {where}: {fault}; please report it, with this LoRA"
    )


def _standing(inputs: TransferInputs, hashes: WeightHashes | None, overwrite: bool) -> str:
    """Return what lies under the output's name. Raises OutputError for what is not ours, unless it may be replaced."""
    output = inputs.config.output
    place = expand_home(output)
    if overwrite or not os.path.lexists(place):
        return "nothing"
    header = earlier_header(output)
    if header is not None and not is_finished(inputs, header, hashes):
        return "another's"
    if header is not None and not is_unfinished(output):  # else its layers are waiting there to be put away
        return "finished"
    if is_unfinished(output) or (place.is_dir() and not any(place.iterdir())):
        return "nothing"
    raise OutputError(f"{output} is there already and is no transfer; give --overwrite to replace it, or another name")
