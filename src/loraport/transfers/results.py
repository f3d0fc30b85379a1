"""The result of a run: a value for each layer and one for the whole, as the JSON output and the report show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from loraport.diagnosis.rule.advice import Advice
from loraport.errors import LoraportError
from loraport.files.lora.key_account import KeyAccount

if TYPE_CHECKING:
    from loraport.inputs.config import TransferConfig

MOSTLY_GONE = 0.5
"""Rounding that changes more than this share of an update leaves little of it: 1 is a layer of zeros."""

Status = Literal["transferred", "copied", "skipped"]


@dataclass(frozen=True)
class LayerResult:
    """The result of one layer. Sizes are shares of ‖W_s‖; what a method does not have is None."""

    name: str
    status: Status
    reason: str | None
    """Why it was copied or skipped, or a note on what the method did"""
    shape: tuple[int, int]
    rank_in: int
    rank_out: int | None
    """None for a dense difference, and for a layer that is not written"""
    drift: float | None = None
    """‖D_fft‖ / ‖W_s‖"""
    floor: float | None = None
    """Expected norm of the rounding error in the coarser of the two files, / ‖W_s‖"""
    source_rounded: bool = False
    """Whether W_s was first rounded to the target's dtype, in which its training began"""
    lora: float | None = None
    """‖D_lora‖ / ‖W_s‖"""
    update: float | None = None
    """‖D'‖ / ‖W_s‖ of what was written"""
    correction: float | None = None
    """‖D' − D_lora‖ / ‖W_s‖ before truncation, where the method adds a dense part"""
    cosine: float | None = None
    """Cosine of D' and D_lora"""
    kept_energy: float | None = None
    """Share of the update's energy that the written rank keeps"""
    kept_correction: float | None = None
    """Share of the correction that the written rank keeps, where the method adds one"""
    rounding: float | None = None
    """‖written − D'‖ / ‖D'‖: what rounding to the output's dtype alone changes of the layer"""
    k: int | None = None
    """Leading directions of W_s (Eq. 3), or directions of a projection's subspace"""
    clusters: int | None = None
    """Clusters of leading directions (Eq. 4)"""
    largest_cluster: float | None = None
    """Share of the leading directions in the largest cluster"""
    restored: float | None = None
    """Share of the n × n routing entries from which CASA takes the drift back, n = min(shape)"""
    arbitrated: int | None = None
    """How many of these entries CASA leaves to the stronger update alone"""
    borderline: int | None = None
    """Entries that lie closer to the threshold of arbitration than the arithmetic is exact: rounding decides there"""
    amount: float | None = None
    """The strength or undo share that a matched control found; core undo's share of the drift"""
    k_target: int | None = None
    """Directions of the target's subspace; `k` are the source's, or the drift's"""
    overlap: float | None = None
    """Φ of the two subspaces, the smaller of left and right"""
    overlap_random: float | None = None
    """What Φ would be for unrelated subspaces"""
    weight_norm: float | None = None
    """‖W_s‖"""
    kind: str = "LoRA"
    """What the file holds for the layer: LoRA, LoHa, LoKr, DoRA or difference"""
    drift_unknown: bool = False
    """Whether it was copied because the source has no such layer, which the user did not ask for"""
    head_drift: float | None = None
    """Share of the drift's energy in the first tenth of the source's singular directions; None where it was not looked
    for: methods without bases look in some layers only"""
    few_directions: bool | None = None
    """Whether the drift has as few directions as a LoRA's; looked for in some layers only"""
    source_hash: str | None = None
    """BLAKE3 of W_s, whatever file it lies in"""
    target_hash: str | None = None
    """The same of W_t"""
    seconds: float = 0.0
    facts: Mapping[str, float] = field(default_factory=dict)
    """What a method says of the layer that no field above is for"""

    def as_json(self) -> dict[str, Any]:
        """Return the layer's row in the JSON output and in pages."""
        row = asdict(self)
        return row | row.pop("facts")

    @property
    def preserved(self) -> float | None:
        """Share of the routing entries that CASA leaves as they are; None for other methods."""
        if self.restored is None or self.arbitrated is None:
            return None
        return 1 - self.restored - self.arbitrated / min(self.shape) ** 2


def kept_correction(layers: Iterable[LayerResult]) -> float | None:
    """Return the share of the layers' corrections that their written ranks keep; None where none was corrected."""
    pairs = [
        (row.kept_correction, _square(row.correction, row.weight_norm))
        for row in layers
        if row.kept_correction is not None
    ]
    whole = sum(size for _, size in pairs)
    return sum(kept * size for kept, size in pairs) / whole if whole else None


@dataclass(frozen=True)
class TransferResult:
    """A finished transfer."""

    output: str
    method: str
    settings: Mapping[str, Any]
    layers: tuple[LayerResult, ...]
    keys: KeyAccount
    """Where each key of the LoRA went: transferred, copied, or dropped with the reason."""
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_rss_bytes: int = 0
    lora: str = ""
    """The input, as it was named."""
    source: str = ""
    """Its model, as it was named; `target` likewise."""
    target: str = ""
    pairing: Mapping[str, Any] | None = None
    """Where layers were paired by similarity: the pairs, what has none, the similarities."""
    device: str = "cpu"
    """What it was computed on."""
    advice: Advice | None = None
    """What the weights of the moved layers speak for; None where none was looked at."""

    @property
    def kept_energy(self) -> float | None:
        """Share of all layers' update energy that the written ranks keep."""
        pairs = [(r.kept_energy, _square(r.update, r.weight_norm)) for r in self.layers if r.kept_energy]
        whole = sum(written / kept for kept, written in pairs)
        return sum(written for _, written in pairs) / whole if whole else None

    @property
    def kept_correction(self) -> float | None:
        """Share of all layers' correction that the written ranks keep: the number that truncation hurts."""
        return kept_correction(self.layers)

    @property
    def lost(self) -> bool:
        """Whether something of the input is gone without the user having asked for it."""
        gone = (layer.drift_unknown or (layer.rounding or 0) > MOSTLY_GONE for layer in self.layers)
        return bool(self.keys.dropped) or any(gone)

    def as_json(self) -> dict[str, Any]:
        """Return the one object that `--json` prints."""
        return {
            "output": self.output,
            "method": self.method,
            "settings": dict(self.settings),
            "kept_energy": self.kept_energy,
            "kept_correction": self.kept_correction,
            "layers": [layer.as_json() for layer in self.layers],
            "keys": self.keys.as_json(),
            "warnings": list(self.warnings),
            "seconds": dict(self.seconds),
            "peak_rss_bytes": self.peak_rss_bytes,
            "device": self.device,
            "pairing": None if self.pairing is None else dict(self.pairing),
            "advice": None if self.advice is None else self.advice.as_json(),
        }


class NotWritten(NamedTuple):
    """An output that could not be written, and why."""

    output: str
    reason: str
    lora: str = ""
    """The LoRA that it would have been made of, as it was named."""
    method: str = ""
    source: str = ""
    target: str = ""

    @classmethod
    def of(cls, config: TransferConfig, error: LoraportError) -> NotWritten:
        """Return what became of a run that ended with an error."""
        return cls(config.output, str(error), config.lora, config.method, config.source, config.target)


@dataclass(frozen=True)
class BatchResult:
    """The finished transfers of one pass over the layers."""

    runs: tuple[TransferResult, ...]
    not_written: tuple[NotWritten, ...] = ()
    """What one of several runs could not write, such as a LoRA that a filter took whole."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_rss_bytes: int = 0

    @property
    def several(self) -> bool:
        """Whether it was asked for more than one output."""
        return len(self.runs) + len(self.not_written) > 1

    @property
    def lost(self) -> bool:
        """Whether something of an input is gone without the user having asked for it."""
        return bool(self.not_written) or any(run.lost for run in self.runs)

    def as_json(self) -> dict[str, Any]:
        """Return the one object that `--json` prints: that of a single run as it is, else all of them under `runs`."""
        if not self.several and self.runs:
            return self.runs[0].as_json()
        return {
            "runs": [{"lora": run.lora, **run.as_json()} for run in self.runs],
            "not_written": [[one.output, one.reason] for one in self.not_written],
            "seconds": dict(self.seconds),
            "peak_rss_bytes": self.peak_rss_bytes,
        }


def joined(batches: Sequence[BatchResult]) -> BatchResult:
    """Return passes over different models as one result: their runs in order, their times added up."""
    if len(batches) == 1:
        return batches[0]
    return BatchResult(
        tuple(run for batch in batches for run in batch.runs),
        tuple(one for batch in batches for one in batch.not_written),
        {name: sum(batch.seconds[name] for batch in batches) for name in batches[0].seconds},
        max(batch.peak_rss_bytes for batch in batches),
    )


def _square(share: float | None, norm: float | None) -> float:
    return ((share or 0.0) * (norm or 0.0)) ** 2
