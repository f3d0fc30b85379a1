"""The settings of all methods: their names, types and defaults, and how each is called on the command line.

Nothing heavy is imported here, so that `--help` shows them without loading torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, ClassVar, Literal, TypeVar, get_args, get_type_hints

from loraport.errors import SettingsError
from loraport.field_types import check_fields

Value = float | int | bool | str
Changes = Mapping[str, Value]
"""Settings by name that differ from a preset's or from the defaults."""
Kind = TypeVar("Kind", bound="AnySettings")


@dataclass(frozen=True)
class Flag:
    """The command-line option of a setting. A setting without one is set by `METHOD:VALUE`, or by a preset alone."""

    help: str
    needs: str | None = None
    """The switch that must be on for this setting to mean anything."""
    also: str | None = None
    """Another setting that gets the same value."""


@dataclass(frozen=True)
class AnySettings:
    """What the settings of all methods have in common."""

    title: ClassVar[str] = ""
    """Whose settings these are, in messages."""
    group: ClassVar[str] = ""
    """The heading above their options in `--help`."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class CasaSettings(AnySettings):
    """The settings of CASA; the defaults are the paper's (§5.1 and appendix)."""

    title: ClassVar[str] = "CASA"
    group: ClassVar[str] = "CASA and its ablations"

    energy: Annotated[
        float, Flag("Share of the energy ΣS² that the leading directions hold (Eq. 3).", also="energy_rectangular")
    ] = 0.9
    """Raise it to let weaker directions cluster and dominate; beyond it nothing does, and the drift is taken back."""
    energy_rectangular: float = 0.9
    """The same for layers that are not square; the published code takes all of their directions (1.0)."""
    tau: Annotated[
        float, Flag("Predicted rotation above which two directions join a cluster (Eq. 4); 1 to 10 give the same.")
    ] = 1.0
    """Lower it where clusters stay single. Near 0.5 one giant cluster forms: all of it dominates, and CASA does little;
    the report's share of the largest cluster shows that."""
    eps: Annotated[float, Flag("Added to the gap of two singular values (Eq. 4).")] = 1e-6
    """In units of singular values; only for weights at an unusual scale."""
    eps_context: Annotated[
        float, Flag("Added to the product of norms in the context of an entry (Eq. 11); the published code's value.")
    ] = 1e-8
    """In units of weights squared; 0 makes Eq. 11 the same at every scale."""
    q_dom: Annotated[float, Flag("Clusters at or above this quantile are dominant (Eq. 5-6).")] = 0.5
    """Raise it to take back more of the drift, lower it to keep more: at 0 every cluster dominates."""
    q_act: Annotated[float, Flag("Entries above this quantile of risk are arbitrated (Eq. 13).", needs="arbitrate")] = (
        0.85
    )
    """Lower it where LoRA and drift together overshoot; 1 arbitrates nothing."""
    restore: Annotated[
        float, Flag("Share of the weak drift that is taken back, 0 to 1 (Eq. 8); 0 is Table 2's ablation.")
    ] = 1.0
    """Lower it where the target loses what it was distilled for, such as few steps."""
    arbitrate: Annotated[bool, Flag("Arbitrate risky entries (Eq. 14); without is Table 2's ablation.")] = True
    densities: Literal["whole", "block"] = "whole"
    """Norms over whole rows and columns (the paper), or inside the k × k block (the published code)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("q_dom", "q_act", "restore"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, but it must lie in [0, 1]")
        for name in ("energy", "energy_rectangular"):
            if not 0 < getattr(self, name) <= 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, but a share of energy lies in (0, 1]")
        for name in ("tau", "eps", "eps_context"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}, but it must be 0 or more")


@dataclass(frozen=True)
class CoreSettings(AnySettings):
    """Core undo has nothing to set."""


@dataclass(frozen=True)
class DirectSettings(AnySettings):
    """How strong the LoRA is reused."""

    amount: float = 1.0
    """λ: 1.15 to 1.6 often repairs a faded LoRA as well as anything cleverer does."""


@dataclass(frozen=True)
class DriftOrthogonalSettings(AnySettings):
    """How much of the drift is avoided."""

    directions: int = 16
    """k: how many left and right singular directions of the drift are removed; our choice, not tuned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.directions < 1:
            raise SettingsError(f"directions is {self.directions}, but it must be 1 or more")


@dataclass(frozen=True)
class UndoSettings(AnySettings):
    """How much of the whole drift is taken back."""

    amount: float = 0.25
    """β: 0 is direct reuse, 1 rolls the layer back to source + LoRA."""


@dataclass(frozen=True)
class UndoOrthogonalSettings(AnySettings):
    """How much of the drift is taken back, what the LoRA itself holds of it left out of account."""

    amount: float = 0.25
    """β: 0 makes the LoRA orthogonal to the drift, 1 leaves nothing of the drift along itself."""


Subspace = Annotated[
    str, Flag("Which directions of a weight count as its subspace: energy:0.99, rank:320 or exact (all of them).")
]
DEFAULT_SUBSPACE = "energy:0.99"
"""No source states ProLoRA's cut-off. Exact rank would make it direct reuse on every square layer of full rank, against
the paper's own ablation; 99 % of the energy is what Cross-LoRA (arXiv 2508.05232) reports for its 320 directions."""
_PROJECTIONS = "ProLoRA and LoRA-X"


def parse_subspace(rule: str) -> tuple[str, float]:
    """Return kind and value of `energy:x`, `rank:k` or `exact` (value 0). Raises SettingsError for anything else."""
    kind, _, text = rule.partition(":")
    try:
        value = float(text) if kind != "exact" else 0.0
    except ValueError:
        value = float("nan")
    if (kind == "energy" and 0 < value <= 1) or (kind == "rank" and text.isdecimal() and value >= 1):
        return kind, value
    if rule == "exact":
        return kind, value
    raise SettingsError(
        f"subspace {rule!r} is none of: energy:x with a share x in (0, 1] (energy:0.99), rank:k with a whole number "
        "from 1 on (rank:320), exact"
    )


@dataclass(frozen=True)
class ProloraSettings(AnySettings):
    """What ProLoRA's paper leaves open, and its ablations."""

    title: ClassVar[str] = "ProLoRA"
    group: ClassVar[str] = _PROJECTIONS

    subspace: Subspace = DEFAULT_SUBSPACE
    null_space: Annotated[
        bool, Flag("ProLoRA: also move the part outside both subspaces; without is the paper's ablation.")
    ] = True
    cross_terms: Annotated[bool, Flag("ProLoRA: keep the two mixed blocks, which the paper drops; our control.")] = (
        False
    )
    phi_min: Annotated[
        float,
        Flag("ProLoRA: layers whose subspaces overlap less get no adapter (paper's section 5.3.4); 0 keeps all."),
    ] = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_subspace(self.subspace)
        if not 0 <= self.phi_min <= 1:
            raise SettingsError(f"phi_min is {self.phi_min}, but an overlap lies in [0, 1]")
        if self.cross_terms and not self.null_space:
            raise SettingsError("cross terms are made with the null space; leave out --cross-terms or --no-null-space")


@dataclass(frozen=True)
class LoraxSettings(AnySettings):
    """How large the target's subspace is; both papers use 320 directions (rank:320)."""

    title: ClassVar[str] = "LoRA-X"
    group: ClassVar[str] = _PROJECTIONS

    subspace: Subspace = DEFAULT_SUBSPACE

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_subspace(self.subspace)


KINDS: tuple[type[AnySettings], ...] = (
    *(CasaSettings, CoreSettings, DirectSettings, DriftOrthogonalSettings, UndoSettings),
    *(ProloraSettings, LoraxSettings),
)
"""The settings classes of all methods, in the order of the groups in `--help`."""


@dataclass(frozen=True)
class Preset:
    """Settings under a name, and the rank of the result that goes with them."""

    settings: CasaSettings
    rank: int | None = None
    """None: the rank that a run has without a preset."""


PAPER = CasaSettings()
PUBLISHED_CODE = CasaSettings(tau=0.5, energy_rectangular=1.0, densities="block")
CASA_PRESETS = {"paper": Preset(PAPER), "published-code": Preset(PUBLISHED_CODE, rank=32)}
CORE, DIRECT, UNDO = CoreSettings(), DirectSettings(), UndoSettings()
DRIFT_ORTHOGONAL = DriftOrthogonalSettings()
UNDO_ORTHOGONAL = UndoOrthogonalSettings()
PROLORA = ProloraSettings()
LORAX = LoraxSettings()


@dataclass(frozen=True)
class FlaggedSetting:
    """A setting that has an option: what its class says of it."""

    name: str
    type: type[Value]
    default: Value
    flag: Flag

    @property
    def option(self) -> str:
        """The option as it is typed."""
        return f"--{self.name.replace('_', '-')}"


def flagged_settings(kind: type[AnySettings]) -> Iterator[FlaggedSetting]:
    """Yield the settings of one class that have an option of their own."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        plain, *notes = get_args(hints[field.name]) or (hints[field.name],)
        for flag in notes:
            if isinstance(flag, Flag):
                yield FlaggedSetting(field.name, plain, getattr(kind, field.name), flag)


def changed(settings: Kind, changes: Changes) -> Kind:
    """Return the settings with some of them changed, and what goes along with these."""
    also = {
        row.flag.also: changes[row.name]
        for row in flagged_settings(type(settings))
        if row.flag.also is not None and row.name in changes
    }
    return replace(settings, **{**also, **changes})


def setting_names(kind: type[AnySettings]) -> set[str]:
    """Return the names of all settings of one class."""
    return {field.name for field in fields(kind)}
