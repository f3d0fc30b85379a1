"""Take the advice: a transfer whose method a diagnosis of its own inputs chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loraport.diagnosis.diagnose import Named, diagnose_transfer
from loraport.diagnosis.result import Diagnosis
from loraport.diagnosis.rule.advice import RECOMMEND
from loraport.errors import MismatchError, SettingsError
from loraport.inputs.config import TransferConfig
from loraport.progress import NO_PROGRESS, Progress


def is_recommended(methods: Sequence[str], preset: str | None, changes: Mapping[str, Any] | None) -> bool:
    """Return whether the method is to be the advised one.

    Raises SettingsError where others are named beside it, and for settings, which are of a method that is known.
    """
    if RECOMMEND not in methods:
        return False
    if len(methods) > 1:
        raise SettingsError(f"--method {','.join(methods)}: {RECOMMEND} stands for one method; give it alone")
    if preset or changes:
        raise SettingsError(f"settings belong to a method by name; with --method {RECOMMEND}, leave them out")
    return True


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
