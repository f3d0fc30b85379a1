"""Every number and every curve of the paper's analysis of one layer (CASA, arXiv 2605.01929, §3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from loraport.analysis.measures import concentration as spread
from loraport.analysis.measures.interference import head_interference, interference, majority, overlap
from loraport.analysis.measures.intruders import intruders
from loraport.analysis.measures.mixing import (
    MIXED,
    adjusted_rand_index,
    kept_directions,
    mixing,
    observed_clusters,
    windows,
)
from loraport.analysis.measures.rigidity import degenerate, spectral_change
from loraport.methods.casa import Decisions, decide, decided_update
from loraport.methods.layer import Layer, Update
from loraport.methods.prolora import prolora
from loraport.methods.settings import PAPER, PROLORA, CasaSettings
from loraport.spectral.basis import Basis
from loraport.spectral.clusters import cluster_sizes, singular_clusters
from loraport.spectral.head import head_share
from loraport.spectral.kernels import norm
from loraport.spectral.low_rank import cosine
from loraport.spectral.routing import directional_alignment

TAUS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Where the stability of the clusters is looked at."""

WINDOW = 64
"""Directions in a head, middle or tail window, at most a third of all."""

MAP = 96
"""Cells along the side of a map; a larger layer's entries are averaged into them."""


@dataclass(frozen=True)
class AnalyzedLayer:
    """A layer with the bases of its weight before and after each update; `layer.basis` and `layer.target` are set."""

    layer: Layer
    with_lora: Basis
    """W_s + D_lora"""
    both: Basis | None = None
    """W_t + D_lora, for the detailed layers alone"""

    @property
    def source(self) -> Basis:
        """The basis of W_s. Raises TypeError where it is not set."""
        if self.layer.basis is None or self.layer.target is None:
            raise TypeError("a analyzed needs the bases of source and target")
        return self.layer.basis

    @property
    def after(self) -> dict[str, Basis]:
        """The bases after each of the two updates."""
        target = self.layer.target
        return {"lora": self.with_lora, "drift": target} if target is not None else {}


@dataclass(frozen=True)
class LayerStatistics:
    """What is measured of one layer: numbers for the table, curves for figures (detailed layers only)."""

    numbers: Mapping[str, float | int | None]
    curves: Mapping[str, Tensor]


def layer_statistics(
    analyzed: AnalyzedLayer, settings: CasaSettings = PAPER, *, detail: bool = False
) -> LayerStatistics:
    """Return every statistic of one layer; senders are inputs and receivers outputs, whatever its shape.

    The clusters are those that CASA's predicted rotation makes of the LoRA, for LoRA and drift alike, so that the two
    can be compared block by block.
    """
    tall = analyzed.layer.drift.shape[0] >= analyzed.layer.drift.shape[1]
    upright = analyzed.layer if tall else analyzed.layer.transposed()
    decisions = decide(upright, settings)
    routing = _Routings.of(analyzed, decisions, tall)
    numbers: dict[str, Any] = {}
    for part in (
        _sizes(analyzed),
        _rigidity(analyzed, len(decisions.labels)),
        _clusters(analyzed, routing, settings),
        _routing(analyzed, routing),
        _interference(routing),
        _intervention(decisions, settings),
        _intruders(analyzed, len(decisions.labels)),
        _norms(analyzed, decided_update(upright, decisions, settings)),
    ):
        numbers |= part
    finite = {name: _plain(value) for name, value in numbers.items()}
    return LayerStatistics(finite, _curves(analyzed, routing, decisions, tall) if detail else {})


@dataclass(frozen=True)
class _Routings:
    """Both updates in the source's basis, the layer's own way round."""

    S: Float[Tensor, " n"]
    labels: Int[Tensor, " k"]
    C: Mapping[str, Float[Tensor, "n n"]]
    send: Mapping[str, Float[Tensor, " n"]]
    """‖D·v_j‖, the complement included"""
    receive: Mapping[str, Float[Tensor, " n"]]

    @classmethod
    def of(cls, analyzed: AnalyzedLayer, decisions: Decisions, tall: bool) -> _Routings:
        basis, lora = decisions.basis, analyzed.layer.lora if tall else analyzed.layer.lora.transposed()
        Y = (basis.Vh @ lora.A.mT).mT
        send_lora = torch.linalg.vector_norm(torch.linalg.qr(lora.B).R @ Y, dim=0)
        send = {"lora": send_lora, "drift": decisions.drift_routing.send}
        receive = {"lora": torch.linalg.vector_norm(decisions.C_lora, dim=1), "drift": decisions.drift_routing.receive}
        C = {"lora": decisions.C_lora, "drift": decisions.drift_routing.C}
        if not tall:
            C, send, receive = {name: X.mT for name, X in C.items()}, receive, send
        return cls(analyzed.source.S, decisions.labels, C, send, receive)

    @property
    def k(self) -> int:
        return len(self.labels)

    def block(self, name: str) -> Float[Tensor, "k k"]:
        """Return the routing among the leading directions."""
        return self.C[name][: self.k, : self.k]

    def sides(self) -> Iterator[tuple[str, str, Tensor, Tensor]]:
        """Yield side, update, strengths, and the routing with that side's members as columns."""
        for name, C in self.C.items():
            yield "send", name, self.send[name], C[:, : self.k]
            yield "receive", name, self.receive[name], C.mT[:, : self.k]


def _sizes(analyzed: AnalyzedLayer) -> dict[str, Any]:
    layer, weight = analyzed.layer, norm(analyzed.source.S)
    drift = norm(layer.drift)
    return {
        "weight_norm": weight,
        "drift": drift / weight if weight else None,
        "lora": layer.lora.norm() / weight if weight else None,
        "cosine": cosine(layer.lora, layer.drift),
    }


def _rigidity(analyzed: AnalyzedLayer, k: int) -> dict[str, Any]:
    """Return Eq. 1, the turning of single directions, and how many of them are worth looking at."""
    S = analyzed.source.S
    numbers: dict[str, Any] = {"n": len(S), "k": k, "degenerate": float(degenerate(S)[:k].double().mean())}
    for name, after in analyzed.after.items():
        numbers[f"rho2_{name}"] = spectral_change(S, after.S)
        kept = kept_directions(analyzed.source, after)
        for place, window in windows(len(S), _width(len(S))).items():
            numbers[f"kept_{place}_{name}"] = float(kept[window].mean())
    if analyzed.both is not None and analyzed.layer.target is not None:
        numbers["rho2_both"] = spectral_change(analyzed.layer.target.S, analyzed.both.S)
    return numbers


def _clusters(analyzed: AnalyzedLayer, routing: _Routings, settings: CasaSettings) -> dict[str, Any]:
    """Return predicted (Eq. 4) against observed clusters, for each update by its own routing; stability over tau."""
    k, S = routing.k, routing.S[: routing.k]
    sizes = cluster_sizes(routing.labels)
    numbers: dict[str, Any] = {"clusters": len(sizes), "largest_cluster": int(sizes.max()) / k}
    for name, after in analyzed.after.items():
        predicted = singular_clusters(routing.block(name), S, tau=settings.tau, eps=settings.eps)
        observed = observed_clusters(analyzed.source, after, k)
        sizes = cluster_sizes(observed)
        numbers |= {f"observed_{name}": len(sizes), f"observed_largest_{name}": int(sizes.max()) / k}
        numbers[f"agreement_{name}"] = adjusted_rand_index(predicted, observed)
        alike = singular_clusters(routing.block(name), S, tau=MIXED, eps=settings.eps)
        numbers[f"agreement_mixed_{name}"] = adjusted_rand_index(alike, observed)
    for tau in TAUS:
        labels = singular_clusters(routing.block("lora"), S, tau=tau, eps=settings.eps)
        numbers[f"clusters_tau_{tau:g}"] = len(sizes := cluster_sizes(labels))
        numbers[f"largest_tau_{tau:g}"] = int(sizes.max()) / k
        numbers[f"agreement_tau_{tau:g}"] = adjusted_rand_index(labels, routing.labels)
    return numbers


def _routing(analyzed: AnalyzedLayer, routing: _Routings) -> dict[str, Any]:
    """Return concentration and coherence of both updates, as senders and as receivers.

    By the predicted clusters of the LoRA, which LoRA and drift share, and by each update's own observed ones, which the
    paper's §3.3 and its footnote 1 speak of.
    """
    numbers: dict[str, Any] = {}
    observed = {name: observed_clusters(analyzed.source, after, routing.k) for name, after in analyzed.after.items()}
    for side, name, strength, C in routing.sides():
        own = observed[name]
        numbers |= {
            f"gini_observed_{side}_{name}": spread.gini(spread.rms_energy(strength, own)),
            f"coherence_observed_{side}_{name}": float(spread.pattern_coherence(C, own).nanmean()),
            f"variation_observed_{side}_{name}": float(spread.variation(strength, own).nanmean()),
        }
        end = f"{side}_{name}"
        coherence = spread.pattern_coherence(C, routing.labels)
        numbers |= {
            f"gini_{end}": spread.gini(spread.rms_energy(strength, routing.labels)),
            f"top_tenth_{end}": spread.top_share(spread.cluster_energy(strength, routing.labels)),
            f"head_tenth_{end}": head_share(strength),
            f"coherence_{end}": float(coherence.nanmean()),
            f"coherence_chance_{end}": spread.chance_coherence(C),
            f"variation_{end}": float(spread.variation(strength, routing.labels).nanmean()),
        }
    return numbers


def _interference(routing: _Routings) -> dict[str, Any]:
    mass = interference(routing.block("lora"), routing.block("drift"), routing.labels)
    head = head_interference(routing.block("lora"), routing.block("drift"))
    return {
        "constructive": mass.constructive,
        "destructive": mass.destructive,
        "chance": mass.chance,
        "interference_head": head,
    }


def _intervention(decisions: Decisions, settings: CasaSettings) -> dict[str, Any]:
    """Return the shares of CASA's three decisions, over all entries and over the blocks of the leading directions."""
    facts, k, labels = decisions.facts(settings), len(decisions.labels), decisions.labels
    blocks = majority(decisions.arbitrated[:k, :k], labels)
    share = {"restored": facts["restored"], "arbitrated": facts["arbitrated"] / decisions.C_lora.numel()}
    return {
        **share,
        "preserved": 1 - share["restored"] - share["arbitrated"],
        "blocks_arbitrated": float(blocks.double().mean()),
    }


def _intruders(analyzed: AnalyzedLayer, k: int) -> dict[str, Any]:
    """Return both sides' intruders; the authors' script looks at the left side only, and that is `intruders_`."""
    numbers: dict[str, Any] = {}
    source = analyzed.source
    for name, after in analyzed.after.items():
        left = intruders(source.U, after.U, after.S, k)
        right = intruders(source.Vh.mT, after.Vh.mT, after.S, k)
        numbers |= {
            f"intruders_{name}": left.count,
            f"intruders_right_{name}": right.count,
            f"intruder_energy_{name}": left.energy,
            f"similarity_{name}": float(left.similarity.min()),
            f"inside_{name}": float(left.inside.min()),
        }
    return numbers


def _norms(analyzed: AnalyzedLayer, by_casa: Update) -> dict[str, Any]:
    """Return the sizes of the transferred updates before truncation, over ‖W_s‖, as ProLoRA's Fig. 8 plots them."""
    weight = norm(analyzed.source.S)
    moved = {"casa": by_casa, "prolora": prolora(analyzed.layer, replace(PROLORA, phi_min=0.0))}
    return {f"norm_{name}": update.norm() / weight if weight else None for name, update in moved.items()}


def _curves(analyzed: AnalyzedLayer, routing: _Routings, decisions: Decisions, tall: bool) -> dict[str, Tensor]:
    """Return what the figures of a detailed layer draw; maps and windows in 8 bits."""
    n, k = len(routing.S), routing.k
    curves = {"S": routing.S, "labels": routing.labels}
    pairs = {name: (analyzed.source, after) for name, after in analyzed.after.items()}
    if analyzed.both is not None and analyzed.layer.target is not None:
        pairs["both"] = (analyzed.layer.target, analyzed.both)
    for name, (before, after) in pairs.items():
        curves[f"S_{name}"] = after.S
        for place, window in windows(n, _width(n)).items():
            left, right = (
                mixing(before.U[:, window], after.U[:, window]),
                (before.Vh[window] @ after.Vh[window].mT).abs(),
            )
            curves |= {f"mixing_U_{name}_{place}": _bytes(left), f"mixing_V_{name}_{place}": _bytes(right)}
    for name, after in analyzed.after.items():
        curves[f"observed_{name}"] = observed_clusters(analyzed.source, after, k)
    for side, name, strength, C in routing.sides():
        curves[f"energy_{side}_{name}"] = spread.rms_energy(strength, routing.labels)
        curves[f"coherence_{side}_{name}"] = spread.pattern_coherence(C, routing.labels)
        curves[f"variation_{side}_{name}"] = spread.variation(strength, routing.labels)
    curves |= _maps(routing, decisions, tall)
    return {name: value.cpu().contiguous() for name, value in curves.items()}


def _maps(routing: _Routings, decisions: Decisions, tall: bool) -> dict[str, Tensor]:
    """Return block maps over the leading directions, in the order of their clusters."""
    k, labels = routing.k, routing.labels
    lora, drift = routing.block("lora"), routing.block("drift")
    arbitrated, restored = decisions.arbitrated[:k, :k], decisions.restored[:k, :k]
    if not tall:
        arbitrated, restored = arbitrated.mT, restored.mT
    decided = majority(arbitrated, labels) * 2.0 + majority(restored, labels) * 1.0  # restored and arbitrated exclude
    maps = {
        "map_energy_lora": spread.block_energy(lora, labels),
        "map_energy_drift": spread.block_energy(drift, labels),
        "map_overlap": overlap(lora, drift, labels),
        "map_alignment": directional_alignment(lora, drift, labels),
        "map_decision": decided,
    }
    order = labels.argsort(stable=True)
    place = labels[order]
    return {name: _shrunk(blocks[place][:, place], name != "map_decision") for name, blocks in maps.items()}


def _shrunk(X: Float[Tensor, "k k"], averaged: bool) -> Float[Tensor, "a a"]:
    """Return a matrix as a map of at most MAP × MAP cells: averages, or middle entries where averages mean nothing."""
    k = X.shape[0]
    if k <= MAP:
        return X.float()
    if averaged:
        return torch.nn.functional.adaptive_avg_pool2d(X[None, None].float(), MAP)[0, 0]
    places = ((torch.arange(MAP, device=X.device) + 0.5) * k / MAP).long()
    return X[places][:, places].float()


def _bytes(cosines: Float[Tensor, "a b"]) -> UInt8[Tensor, "a b"]:
    return (cosines.clamp(0, 1) * 255).round().to(torch.uint8)


def _width(n: int) -> int:
    return max(1, min(WINDOW, n // 3))


def _plain(value: Any) -> Any:
    """Return None for NaN, which a statistic gives that has nothing to look at."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
