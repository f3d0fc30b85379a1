"""The table of methods, and recipes: a method with its settings filled in, called on one layer.

recipe = find_recipe("casa")                 # or "direct:1.15", "prolora", "direct-matched:prolora", ...
update = recipe(Layer(lora, drift, basis))   # an Update: low-rank part, dense correction, facts

The rules' modules are imported when a rule is first called, so that names and settings are checked without PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from loraport.errors import SettingsError, unknown_name
from loraport.methods.settings import (
    AnySettings,
    CasaSettings,
    CoreSettings,
    DirectSettings,
    DriftOrthogonalSettings,
    LoraxSettings,
    ProloraSettings,
    UndoOrthogonalSettings,
    UndoSettings,
    changed,
    setting_names,
)

if TYPE_CHECKING:
    from loraport.methods.layer import Layer, Parts, Update


@dataclass(frozen=True)
class Method:
    """A rule for one layer, and what it needs to know."""

    rule: str
    """`module.function` of this package, which takes a layer and settings and returns an Update."""
    settings: type[AnySettings] = CasaSettings
    argument: str | None = None
    """The setting that `name:value` sets; None for the methods whose name stands alone."""
    needs_basis: bool = True
    """Whether it looks at the singular basis of the source weight."""
    needs_target: bool = False
    """Whether it looks at the singular basis of the target weight."""
    needs_routing: bool = False
    """Whether it looks at the drift in the source's basis, which the cache keeps for tall and wide layers."""
    low_rank: bool = False
    """Whether the result has the LoRA's own rank, exactly."""
    reuses: bool = True
    """Whether it returns the LoRA unchanged where there is no drift."""
    fixed: tuple[str, ...] = ()
    """Settings of its class that it sets itself, or does not look at."""
    parts: str | None = None
    """The function that gives the same update in two, for methods that take drift back; None for others."""


def _function(name: str) -> Callable[[Layer, Any], Any]:
    """Return the function that `module.name` means among the modules of this package."""
    module, _, name = name.partition(".")
    function: Callable[[Layer, Any], Any] = getattr(import_module(f"loraport.methods.{module}"), name)
    return function


_RESTORES = ("arbitrate", "q_act")
"""Settings that mean nothing to methods that only restore."""

METHODS = {
    "casa": Method("casa.casa", needs_routing=True, parts="casa.casa_parts"),
    "direct": Method("direct.direct", DirectSettings, "amount", needs_basis=False, low_rank=True, reuses=False),
    "direct-matched": Method("controls.direct_matched", low_rank=True),
    "undo": Method("controls.undo", UndoSettings, "amount", needs_basis=False, parts="controls.undo_parts"),
    "undo-orthogonal": Method(
        "undo_orthogonal.undo_orthogonal",
        UndoOrthogonalSettings,
        "amount",
        needs_basis=False,
        parts="undo_orthogonal.undo_orthogonal_parts",
    ),
    "undo-matched": Method(
        "controls.undo_matched", needs_routing=True, fixed=_RESTORES, parts="controls.undo_matched_parts"
    ),
    "core": Method("core_undo.core", CoreSettings, needs_basis=False, low_rank=True, parts="core_undo.core_parts"),
    "drift-orthogonal": Method(
        "drift_orthogonal.drift_orthogonal", DriftOrthogonalSettings, "directions", needs_basis=False, low_rank=True
    ),
    "prolora": Method("prolora.prolora", ProloraSettings, needs_target=True, reuses=False),
    "lora-x": Method("lorax.lorax", LoraxSettings, needs_basis=False, needs_target=True, low_rank=True, reuses=False),
    "rollback": Method(
        "controls.rollback", needs_routing=True, reuses=False, fixed=_RESTORES, parts="controls.rollback_parts"
    ),
    "restore-only": Method(
        "controls.restore_only", needs_routing=True, fixed=_RESTORES, parts="controls.restore_only_parts"
    ),
    "arbitrate-only": Method(
        "controls.arbitrate_only",
        needs_routing=True,
        fixed=("restore", "arbitrate"),
        parts="controls.arbitrate_only_parts",
    ),
}


@dataclass(frozen=True)
class Recipe:
    """A method with its settings filled in."""

    name: str
    method: Method
    settings: AnySettings
    matched: Recipe | None = None
    """The recipe whose size `direct-matched` takes; its settings are this one's."""
    rank: int | None = None
    """The rank of the result that its preset asks for; None leaves it to the run."""

    def __call__(self, layer: Layer) -> Update:
        """Return the layer's new update."""
        rule: Callable[[Layer, Any], Update] = _function(self.method.rule)
        return rule(layer, self.matched(layer) if self.matched else self.settings)

    def parts(self, layer: Layer) -> Parts:
        """Return the layer's new update in two. Raises as `check_parts`."""
        return self.check_parts()(layer, self.settings)

    def check_parts(self) -> Callable[[Layer, Any], Parts]:
        """Return the rule that gives the update in two. Raises SettingsError for a method that takes no drift back."""
        if self.method.parts is None:
            known = ", ".join(name for name, method in METHODS.items() if method.parts)
            raise SettingsError(
                f"method {self.name!r} takes nothing of the drift back, so it cannot be split; these can: {known}"
            )
        return _function(self.method.parts)

    @property
    def knobs(self) -> set[str]:
        """The names of the settings that change what it gives."""
        return setting_names(type(self.settings)) - {*(self.matched or self).method.fixed}

    @property
    def needs_routing(self) -> bool:
        """Whether it looks at the drift in the source's basis."""
        return (self.matched or self).method.needs_routing

    @property
    def needs_basis(self) -> bool:
        """Whether `Layer.basis` must be there."""
        return (self.matched or self).method.needs_basis

    @property
    def needs_target(self) -> bool:
        """Whether `Layer.target` must be there."""
        return (self.matched or self).method.needs_target

    @property
    def reuses(self) -> bool:
        """Whether the LoRA comes back as it is where there is no drift."""
        return (self.matched or self).method.reuses


def find_recipe(text: str, settings: AnySettings | None = None) -> Recipe:
    """Return the recipe that a name such as `casa`, `direct:1.15` or `direct-matched:prolora` stands for.

    `settings` are of the method's own class; None takes its defaults. A value in the name wins over them.
    Raises SettingsError for an unknown name (listing the known ones), a wrong value, one where none belongs, and
    settings of another method.
    """
    name, colon, value = text.partition(":")
    method = METHODS.get(name)
    if method is None:
        raise unknown_name("method", name, METHODS)
    if name == "direct-matched":
        matched = find_recipe(value if colon else "casa", settings)
        if matched.matched is not None:
            raise SettingsError(f"method {text!r} matches itself; name another method, for example {name}:casa")
        return Recipe(text, method, matched.settings, matched)
    if colon and method.argument is None:
        raise SettingsError(f"method {name!r} takes no number, but {text!r} has one; write {name!r}")
    own = method.settings() if settings is None else settings
    if type(own) is not method.settings:
        raise SettingsError(f"method {text!r} takes {method.settings.__name__}, not {type(own).__name__}")
    if colon and method.argument is not None:
        number = _number(text, value, whole=isinstance(getattr(own, method.argument), int))
        own = changed(own, {method.argument: number})
    return Recipe(text, method, own)


def _number(text: str, number: str, *, whole: bool) -> float | int:
    try:
        value = int(number) if whole else float(number)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        kind, example = ("whole number", "drift-orthogonal:16") if whole else ("number", "direct:1.15")
        raise SettingsError(f"method {text!r}: {number!r} is not a {kind}; write for example {example!r}")
    return value
