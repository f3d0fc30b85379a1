"""Tell whether a source is really the target's base: every layer's drift, against what rounding makes of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loraport.files.models.checkpoint import Checkpoint
from loraport.files.names.blocks import layer_depth, layer_kind
from loraport.inputs.accelerator import Target
from loraport.inputs.drift import within_floor
from loraport.spectral.kernels import at_least_zero, inner
from loraport.transfers.layer_source import read_weights

UNRELATED = 0.7
"""Median ‖D_fft‖ / ‖W_s‖ above which models are probably unrelated: independent weights of one size drift by √2."""


@dataclass(frozen=True)
class LayerDrift:
    """How far one layer moved."""

    name: str
    kind: str
    depth: int | None
    identical: bool
    drift: float | None
    """‖W_t − W_s‖ / ‖W_s‖; None for a zero weight"""
    cosine: float | None
    """Of W_s and W_t: 1 for relatives, 0 for strangers"""
    floor: float | None
    """What rounding in the coarser of the two files alone would make of it, / ‖W_s‖"""

    @property
    def above_rounding(self) -> bool | None:
        """Whether the drift is more than rounding; None where that is not known."""
        if self.drift is None or self.floor is None:
            return None
        return not within_floor(self.drift, self.floor)


@dataclass(frozen=True)
class Survey:
    """The drift of all layers that both models have, and what does not fit together."""

    layers: tuple[LayerDrift, ...]
    only_source: int
    only_target: int
    other_shape: int
    not_fetched: int = 0
    """Weights in files on the Hub that hold nothing of the LoRA's, and were not downloaded."""

    @property
    def identical(self) -> float:
        """Share of the layers that are the same in both, bit by bit."""
        return sum(layer.identical for layer in self.layers) / max(1, len(self.layers))

    @property
    def rounding(self) -> tuple[str, ...]:
        """Layers that are not identical, but whose drift cannot be told from rounding."""
        return tuple(layer.name for layer in self.layers if not layer.identical and layer.above_rounding is False)

    def median(self) -> float | None:
        """Return the median drift of the layers that moved; None where none did."""
        moved = [layer.drift for layer in self.layers if layer.drift]
        return statistics.median(moved) if moved else None

    def outliers(self) -> tuple[str, ...]:
        """Return layers whose drift is far off: by a factor of 2 and by 3.5 robust deviations of the logarithm."""
        logs = {layer.name: math.log(layer.drift) for layer in self.layers if layer.drift}
        if len(logs) < 5:
            return ()
        middle = statistics.median(logs.values())
        spread = 1.4826 * statistics.median(abs(value - middle) for value in logs.values())
        far = max(math.log(2), 3.5 * spread)
        return tuple(name for name, value in logs.items() if abs(value - middle) > far)

    def verdict(self) -> str:
        """Return one sentence: relatives, the same model, or strangers."""
        median = self.median()
        if not self.layers:
            return "The two models have no layer in common."
        if median is None:
            return "Source and target have the same weights: there is no drift to look at."
        if median > UNRELATED:
            return (
                "This source is probably not the target's base model: in the median layer the weights differ by "
                f"{100 * median:.0f} % of their norm. The rest of this report means nothing for such a pair."
            )
        return (
            f"The target is a relative of this source: in the median layer the weights differ by {100 * median:.1f} %."
        )

    def as_json(self) -> dict[str, Any]:
        """Return what analysis.json holds of it."""
        return {
            "verdict": self.verdict(),
            "identical": self.identical,
            "median_drift": self.median(),
            "outliers": list(self.outliers()),
            "not_above_rounding": list(self.rounding),
            "only_source": self.only_source,
            "only_target": self.only_target,
            "other_shape": self.other_shape,
            "not_fetched": self.not_fetched,
            "layers": [asdict(layer) for layer in self.layers],
        }


def shared_layers(source: Checkpoint, target: Target) -> tuple[tuple[str, ...], Survey]:
    """Return the layers that both models have in one shape, and a survey that counts the others."""
    in_target = set(target.layers)
    away = _away(source) | (_away(target) if isinstance(target, Checkpoint) else set())
    both = [name for name in source.layers if name in in_target]
    fit = [name for name in both if source.shape(f"{name}.weight") == target.shape(f"{name}.weight")]
    alone = [{*one} - {*both} - away for one in (source.layers, in_target)]
    return tuple(fit), Survey((), len(alone[0]), len(alone[1]), len(both) - len(fit), len(away))


def _away(model: Checkpoint) -> set[str]:
    """Return what has a weight in shards that were not opened; which of these weights are matrices is not known."""
    return {name.removesuffix(".weight") for name in model.absent if name.endswith(".weight")}


def drifts(names: Sequence[str], source: Checkpoint, target: Target) -> Iterator[LayerDrift]:
    """Yield the drift of each layer, one in memory at a time."""
    for name in names:
        yield layer_drift(name, source, target)


def layer_drift(name: str, source: Checkpoint, target: Target) -> LayerDrift:
    """Return how far one layer moved, from the original weights."""
    weights = read_weights(name, source, target)
    W_s, D = weights.W_s, weights.drift
    size, moved = weights.facts.weight, weights.facts.drift
    along = size**2 + inner(W_s, D)
    after = math.sqrt(at_least_zero(2 * along - size**2 + moved**2))
    return LayerDrift(
        name, layer_kind(name), layer_depth(name),
        identical=weights.facts.source_hash == weights.facts.target_hash or moved == 0,
        drift=moved / size if size else None,
        cosine=along / (size * after) if size and after else None,
        floor=weights.facts.floor / size if size else None,
    )  # fmt: skip
