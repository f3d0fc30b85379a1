"""RECIPES on one layer, one file each, with its settings and its paper.

recipe = find_recipe("casa")                 # or "direct:1.15", "undo:0.25", "rollback", ...
update = recipe(Layer(lora, drift, basis))   # an Update: low-rank part, dense correction, facts
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loraport.errors import SettingsError, unknown_name
from loraport.methods.casa import CASA_PRESETS, PAPER, CasaSettings, casa
from loraport.methods.controls import (
    UndoSettings,
    arbitrate_only,
    direct_matched,
    restore_only,
    rollback,
    undo,
    undo_matched,
)
from loraport.methods.direct import DirectSettings, direct
from loraport.methods.layer import Layer, Update

__all__ = ["CASA_PRESETS", "METHODS", "CasaSettings", "Layer", "Method", "Recipe", "Update", "find_recipe"]


@dataclass(frozen=True)
class Method:
    """A rule for one layer, and what it needs to know."""

    rule: Callable[[Layer, Any], Update]
    amount: type[DirectSettings] | type[UndoSettings] | None = None
    """What `name:number` sets; None for the methods that take CASA's settings."""
    needs_basis: bool = True
    low_rank: bool = False
    """Whether the result has the LoRA's own rank, exactly."""


METHODS = {
    "casa": Method(casa),
    "direct": Method(direct, DirectSettings, needs_basis=False, low_rank=True),
    "direct-matched": Method(direct_matched, low_rank=True),
    "undo": Method(undo, UndoSettings, needs_basis=False),
    "undo-matched": Method(undo_matched),
    "rollback": Method(rollback),
    "restore-only": Method(restore_only),
    "arbitrate-only": Method(arbitrate_only),
}


@dataclass(frozen=True)
class Recipe:
    """A method with its settings filled in."""

    name: str
    method: Method
    settings: CasaSettings | DirectSettings | UndoSettings

    def __call__(self, layer: Layer) -> Update:
        """The layer's new update."""
        return self.method.rule(layer, self.settings)


def find_recipe(text: str, casa_settings: CasaSettings = PAPER) -> Recipe:
    """The recipe that a name such as `casa` or `direct:1.15` stands for.

    Raises SettingsError for an unknown name (listing the known ones), and for a number where none belongs or none is.
    """
    name, colon, number = text.partition(":")
    method = METHODS.get(name)
    if method is None:
        raise unknown_name("method", name, METHODS)
    if method.amount is not None:
        return Recipe(text, method, method.amount(_number(text, number)) if colon else method.amount())
    if colon:
        raise SettingsError(f"method {name!r} takes no number, but {text!r} has one; write {name!r}")
    return Recipe(text, method, casa_settings)


def _number(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise SettingsError(f"method {text!r}: {number!r} is not a number; write for example 'direct:1.15'")
    return value
