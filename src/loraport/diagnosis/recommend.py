"""Take the advice: a transfer whose method a diagnosis of its own inputs chooses."""

from __future__ import annotations

from dataclasses import replace

from loraport.diagnosis.diagnose import Named, diagnose_transfer
from loraport.diagnosis.result import Diagnosis
from loraport.errors import MismatchError
from loraport.inputs.config import TransferConfig
from loraport.progress import NO_PROGRESS, Progress


def recommended(
    config: TransferConfig, *, named: Named | None = None, progress: Progress = NO_PROGRESS
) -> tuple[TransferConfig, Diagnosis]:
    """Return the transfer by the method that its weights speak for, with the verdict recorded, and the diagnosis.

    Where the verdict is to choose by samples, the method is the one that risks least without them. Raises MismatchError
    where no transfer makes sense. `named`: what the inputs are called, where their places do not tell.
    """
    told = diagnose_transfer(config, named, progress=progress)
    if told.method is None:
        raise MismatchError(f"{told.why}; to move it all the same, name a method, such as --method casa")
    return replace(config, method=told.method, settings=None, advised=told.line()), told
