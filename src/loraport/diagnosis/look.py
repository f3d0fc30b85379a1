"""Look at one layer of a pair: how far it moved, where the drift sits, and whether the two weights are relatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.analysis.measures.rigidity import spectral_change
from loraport.compute import layer_generator
from loraport.diagnosis.rule.traits import LayerTraits
from loraport.errors import InputError
from loraport.inputs.layer_sample import affordable_layers, sample_layers
from loraport.inputs.plan import LayerJob
from loraport.methods.layer import Layer
from loraport.methods.recipes import find_recipe
from loraport.spectral.head import energy_inside, has_few_directions, head_count, head_directions
from loraport.spectral.kernels import energy, inner, times_few
from loraport.spectral.low_rank import LowRank, cosine
from loraport.transfers.layer_source import LayerWeights

CLOSELY = 4
"""Layers of the sample whose spectra and truncation are looked at too."""
SMALL = 640
"""Least side up to which a layer is decomposed whole, and CASA itself run on it."""
SPECTRUM = 2048
"""Least side up to which a sample's spectra are computed: beyond, they would take most of the time."""
KEPT_BY_CASA = 0.88
"""What a rank keeps of CASA's correction over what it keeps of undo's: 0.81 to 0.95 in the 18 pairs of the embedded
family, this on the mean. CASA leaves the strongest directions of the drift, so a rank holds less of what it takes."""


@dataclass(frozen=True)
class LayerLook:
    """What one layer says. Sizes are shares of ‖W_s‖; what was not looked at is None."""

    name: str
    weight: float
    """‖W_s‖"""
    drift: float
    """As the files have it"""
    floor: float
    rounding: bool
    """Whether the drift is within what rounding makes, or is nothing else: it counts as none"""
    lora: float
    same: float
    """Cosine of W_s and W_t: 1 for relatives, 0 for strangers"""
    along: float | None
    """⟨W_s, D⟩ / ‖D‖²: about 0 if the drift was added to the source, about −1 if it was to the target"""
    head_drift: float | None = None
    head_lora: float | None = None
    cosine: float | None = None
    """Of LoRA and drift"""
    few_directions: bool = False
    """Whether the drift has so few directions that it must be an accelerator's"""
    rho2: float | None = None
    overlap: float | None = None
    """Share of the source's head that lies in the target's"""
    overlap_chance: float | None = None
    """The same for unrelated weights"""
    kept: float | None = None
    """Share of CASA's correction that the default rank keeps; estimated where CASA was not run"""
    undone: float | None = None
    """The same of `undo:0.25`"""
    moved: float = 0.0
    """‖D‖² of what counts as drift: how much the layer counts in what is kept"""

    @property
    def traits(self) -> LayerTraits:
        """What the rule looks at."""
        return LayerTraits(
            self.drift,
            self.floor,
            self.rounding,
            self.lora,
            self.head_drift,
            self.few_directions,
            self.rho2,
            self.cosine,
        )

    def as_json(self) -> dict[str, Any]:
        """Return its row in the JSON output."""
        return asdict(self)


def chosen_layers(jobs: Sequence[LayerJob], *, exact: bool) -> tuple[tuple[LayerJob, ...], frozenset[str]]:
    """Return the layers to look at, spread over kinds and depths, and those to look at closely."""
    names = [job.name for job in jobs]
    if exact:
        return tuple(jobs), frozenset(names)
    sample = affordable_layers({job.name: job.shape for job in jobs})
    closely = frozenset(sample_layers(sample, CLOSELY))
    return tuple(job for job in jobs if job.name in sample), closely


def look_at(name: str, weights: LayerWeights, lora: LowRank, rank: int, *, closely: bool, exact: bool) -> LayerLook:
    """Return what a layer says; `rank` is that of a transfer's file. Raises InputError for NaN and infinite weights."""
    facts, device = weights.facts, weights.drift.device
    if not torch.isfinite(torch.tensor([facts.weight, facts.drift])).all():
        raise InputError(f"layer {name} holds NaN or infinite values in one of the models; use undamaged files")
    W_s, W_t, size = weights.W_s.to(device), weights.W_t, facts.weight
    if W_t is None:
        raise ValueError("a diagnosis reads both weights")
    W_t = W_t.to(device)
    after = energy(W_t) ** 0.5
    seen: dict[str, Any] = {"name": name, "weight": size, "floor": facts.floor / size if size else 0.0}
    seen["drift"], seen["rounding"] = (
        facts.drift / size if size else 0.0,
        (facts.within_rounding or (facts.source_rounded and not facts.drift)),
    )
    seen["lora"] = lora.norm() / size if size else 0.0
    seen["same"] = inner(W_s, W_t) / (size * after) if size and after else 0.0
    seen["along"] = inner(W_s, weights.drift) / weights.drift_norm**2 if weights.drift_norm else None
    if not weights.drift_norm or not size:
        return LayerLook(**seen)
    layer = weights.layer(lora, basis=False)
    whole = exact or min(layer.drift.shape) <= SMALL
    seen |= _exactly(name, weights, lora, rank) if whole else _quickly(name, W_s, W_t, layer, closely=closely)
    seen |= {
        "cosine": cosine(layer.lora, layer.drift),
        "few_directions": has_few_directions(layer.drift, facts.floor, layer_generator(0, name)),
        "moved": weights.drift_norm**2,
    }
    if closely or whole:
        seen["undone"] = _kept("undo:0.25", layer, rank, name)
        if not whole and seen["undone"] is not None:
            seen["kept"] = KEPT_BY_CASA * seen["undone"]
    return LayerLook(**seen)


def _exactly(name: str, weights: LayerWeights, lora: LowRank, rank: int) -> dict[str, Any]:
    """Return what whole bases say."""
    layer = weights.layer(lora, target=True, routing=True)
    if layer.basis is None or layer.target is None:
        raise ValueError("both bases were asked for")
    upright = layer.transposed() if layer.is_wide else layer
    of_source, of_target = upright.basis, upright.target
    count = head_count(len(layer.basis.S))
    V_s, V_t = (one.Vh[:count].mT for one in (of_source, of_target) if one is not None)
    return {
        **_heads(upright, V_s, V_t),
        "rho2": spectral_change(layer.basis.S, layer.target.S),
        "kept": _kept("casa", layer, rank, name),
    }


def _quickly(name: str, W_s: Tensor, W_t: Tensor, layer: Layer, *, closely: bool) -> dict[str, Any]:
    """Return the same from the head's directions alone, and spectra where they are quick."""
    if layer.is_wide:
        W_s, W_t, layer = W_s.mT, W_t.mT, layer.transposed()
    V_s = head_directions(W_s, layer_generator(0, name))
    V_t = head_directions(W_t, layer_generator(0, name)) if closely else None
    rho2 = None
    if closely and min(W_s.shape) <= SPECTRUM:
        rho2 = spectral_change(torch.linalg.svdvals(W_s), torch.linalg.svdvals(W_t))
    return {**_heads(layer, V_s, V_t), "rho2": rho2}


def _heads(upright: Layer, V_s: Float[Tensor, "n k"], V_t: Float[Tensor, "n k"] | None) -> dict[str, Any]:
    lora = upright.lora
    R = torch.linalg.qr(lora.B).R  # ‖B·A·V‖ = ‖R·A·V‖
    return {
        "head_drift": energy_inside(upright.drift, V_s),
        "head_lora": energy_inside(R @ lora.A, V_s),
        "overlap": None if V_t is None else energy(times_few(V_s.mT, V_t)) / V_s.shape[1],
        "overlap_chance": None if V_t is None else V_s.shape[1] / V_s.shape[0],
    }


def _kept(method: str, layer: Layer, rank: int, name: str) -> float | None:
    """Return what a rank keeps of a method's correction."""
    update = find_recipe(method)(layer)
    return update.kept_correction(update.factorized(min(rank, *layer.drift.shape), layer_generator(0, name)))
