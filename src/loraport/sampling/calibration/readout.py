"""Readout: low-rank corrections of the layers that write the residual stream, solved against the output's error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loraport.errors import SettingsError
from loraport.sampling.calibration.least_squares import Term, ridge_strength, solve, truncated
from loraport.sampling.calibration.residual_writers import patched, to_output, watched, writing_layers
from loraport.sampling.end_error import EndEffect, own_velocities
from loraport.sampling.hooks import adapted, added
from loraport.sampling.pair import Chain, Clips, Look, Updates, segment_targets
from loraport.spectral.svd import LowRank

RIDGE = 0.3
RANK = 8
STRIDES = (1.0, 0.5, 0.25)


@dataclass(frozen=True)
class ReadoutStep:
    """What became of one layer: the stride that was taken, 0 where none was, and the held-out error after it."""

    layer: str
    stride: float
    error: float


@dataclass(frozen=True)
class Readout:
    """The updates with their corrections, and the way there."""

    updates: dict[str, LowRank]
    steps: tuple[ReadoutStep, ...]


def fit_readout(
    fit: EndEffect,
    check: EndEffect,
    updates: Updates,
    *,
    rank: int = RANK,
    last: int | None = None,
    guarded: bool = True,
) -> Readout:
    """Corrects the writers one after the other, last block first, each with fresh residuals from `fit`.

    The stride with the lowest END error on `check` is taken where that is lower than before; unguarded, the whole step
    always is. Raises SettingsError where the target cannot be looked into, MismatchError for an unknown family.
    """
    pair = fit.pair
    if not pair.looks:
        raise SettingsError(f"readout is not possible here: {pair.no_looks}; gains are (--no-readout)")
    layers = writing_layers(pair.network(), last)
    own = [own_velocities(pair, batch, plain, fit.meter) for batch, _, plain in fit.segments()]
    targets = [
        tuple(segment_targets(look, styled, plain, v) for look, v in zip(pair.looks, mine, strict=True))
        for (_, styled, plain), mine in zip(fit.segments(), own, strict=True)
    ]
    now, error = dict(updates), float(check.errors(updates).double().mean())
    steps = []
    for layer in layers:
        correction = _correction(fit, now, layer, targets, rank)
        tried = [added(now, {layer: correction.scaled(stride)}) for stride in (STRIDES if guarded else STRIDES[:1])]
        errors = [float(check.errors(one).double().mean()) for one in tried]
        best = min(range(len(errors)), key=errors.__getitem__)
        taken = not guarded or errors[best] < error
        if taken:
            now, error = tried[best], errors[best]
        steps.append(ReadoutStep(layer, STRIDES[best] if taken else 0.0, error))
    return Readout(now, tuple(steps))


def _correction(
    fit: EndEffect, updates: Updates, layer: str, targets: Sequence[tuple[Tensor, ...]], rank: int
) -> LowRank:
    """The closed form for one layer, from all looks of all batches."""
    sums: dict[Look, Term] = {}
    for (batch, styled, _), aims in zip(fit.segments(), targets, strict=True):
        with adapted(fit.pair.network(), updates):
            for look, aimed in zip(fit.pair.looks, aims, strict=True):
                term = _moments(fit, batch, styled, layer, look, aimed)
                before = sums.get(look)
                sums[look] = term if before is None else _joined(before, term)
        fit.meter.count("readout", target=len(batch) * fit.pair.passes.looks)
    terms = list(sums.values())
    E = solve(terms, ridge_strength(terms, RIDGE))
    C = torch.stack([term.weight**2 * term.C for term in terms]).sum(0)
    low = truncated(E, C, rank)
    return LowRank(low.B.float().cpu(), low.A.float().cpu())


@torch.no_grad()
def _moments(fit: EndEffect, batch: Clips, styled: Chain, layer: str, look: Look, aimed: Tensor) -> Term:
    """M, Σ ã·ãᵀ and Σ r·ãᵀ of one look, tokens of the other frames left out."""
    network: Any = fit.pair.network()
    with watched(network, layer) as seen:
        velocity = fit.pair.velocity(look, batch, styled).float()
    residual = patched(aimed.to(velocity.device) - velocity, network.config.patch_size)
    tokens = residual.shape[1]
    first = 0 if look.frame is None else look.frame * tokens  # frames come one after the other
    a = (seen.inputs / seen.deviation)[:, first : first + tokens].flatten(0, 1).double()
    M = look.head * to_output(network, layer, seen, first)
    return Term(look.weight, M, a.mT @ a, residual.flatten(0, 1).double().mT @ a)


def _joined(one: Term, other: Term) -> Term:
    return Term(one.weight, one.M, one.C + other.C, one.R + other.R)


def readout_passes(layers: int, fit: int, check: int, run: int, looks: int) -> int:
    """Passes of the target: the bare looks, then per layer fresh looks and the line search."""
    return looks * fit + run * check + layers * (looks * fit + len(STRIDES) * run * check)
