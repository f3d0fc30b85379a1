"""Handle weights that stand whole beside a LoRA's factors: trained biases, modules_to_save, networks of their own.

PEFT keeps them absolute, so what they do to a model is their difference to the model's own, which is what is carried on
(`.diff`, `.diff_b`). What no model has (UniAnimate's pose encoder) is carried as it is: its loader puts it on.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from loraport.errors import MismatchError, SettingsError
from loraport.files.additions import check_finite, misfit_reason
from loraport.files.lora.extras import respell_extras
from loraport.files.lora.read import Lora
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.names.dialects import WHOLE, Dialect, LoraKey

ENDINGS = {".weight": ".diff", ".bias": ".diff_b"}
"""The parameter -> the ending of a difference to it."""


def whole_weights(lora: Lora) -> list[LoraKey]:
    """Return the keys of weights that stand whole beside the factors."""
    return [one for one in map(lora.parse, lora.extras) if one.part in WHOLE and not one.text_encoder]


def as_differences(lora: Lora, base: Checkpoint) -> Lora:
    """Return the LoRA with its whole weights as differences to those of the base; one that changes nothing is left out.

    What has another shape there is dropped with the reason. Raises MismatchError for the weight of several layers,
    InputError for values that are not finite.
    """
    extras, dropped, idle, moved = dict(lora.extras), list(lora.dropped), 0, 0
    for key in whole_weights(lora):
        names = [f"{name}{key.part}" for name, _ in key.pieces]
        if not any(name in base for name in names):
            continue
        if not key.whole:
            raise MismatchError(f"{lora.path}: {key.key!r} is a whole weight of several layers, which is not read")
        stored = extras.pop(key.key)
        check_finite(lora, key.key, stored)
        if stored.shape != base.shape(names[0]):
            dropped.append((key.key, misfit_reason(stored.shape, base, names[0])))
            continue
        difference = (stored.read().float() - base.tensor(names[0]).float()).to(stored.dtype)
        if not difference.any():
            idle += 1
            continue
        moved += 1
        extras[f"{key.prefix}{key.module}{ENDINGS[key.part]}"] = replace(stored, read=partial(_same, difference))
    notes = list(lora.notes)
    if moved + idle:
        same = f"; {idle} are the same there" if idle else ""
        notes.append(
            f"{moved} whole weights beside the factors are taken as differences to those of {base.where}{same}"
        )
    return replace(lora, extras=extras, dropped=tuple(dropped), notes=tuple(notes))


def _same(tensor: Tensor) -> Tensor:
    return tensor


def check_without_base(lora: Lora) -> None:
    """Raise SettingsError for whole weights that need a base: those under names of a family's table."""
    known = [key.key for key in whole_weights(lora) if key.dialect.family is not None]
    if known:
        raise SettingsError(
            f"{lora.path}: {known[0]!r} is a whole weight or bias beside the factors (PEFT's bias or modules_to_save), "
            "of which only the difference can be carried; name the model that it was trained on: --source"
        )


def carried_note(lora: Lora, dialect: Dialect, where: str) -> tuple[str, ...]:
    """Return the note on whole weights that a dialect carries through as they are; `where` says why they are."""
    kept, _ = respell_extras(lora, dialect, lora.layers)
    names = sorted(key.key for key in whole_weights(lora) if key.key in kept)
    if not names:
        return ()
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return (f"{len(names)} whole weights that {where} are carried through as they are: {shown}",)
