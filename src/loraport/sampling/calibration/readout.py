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
from loraport.sampling.pair import Chain, Clips, Evaluation, Updates, segment_targets
from loraport.spectral.low_rank import LowRank

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
    always is. Raises SettingsError where the target has no evaluations, MismatchError for an unknown family.
    """
    pair = fit.pair
    if not pair.evaluations:
        raise SettingsError(f"readout is not possible here: {pair.no_evaluations_reason}; gains are (--no-readout)")
    layers = writing_layers(pair.network(), last)
    own = [own_velocities(pair, batch, plain, fit.counter) for batch, _, plain in fit.segments()]
    targets = [
        tuple(
            segment_targets(evaluation, styled, plain, v) for evaluation, v in zip(pair.evaluations, mine, strict=True)
        )
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
    """The closed form for one layer, from all evaluations of all batches."""
    sums: dict[Evaluation, Term] = {}
    for (batch, styled, _), aims in zip(fit.segments(), targets, strict=True):
        with adapted(fit.pair.network(), updates):
            for evaluation, aimed in zip(fit.pair.evaluations, aims, strict=True):
                term = _moments(fit, batch, styled, layer, evaluation, aimed)
                before = sums.get(evaluation)
                sums[evaluation] = term if before is None else _joined(before, term)
        fit.counter.count("readout", target=len(batch) * fit.pair.passes.evaluations)
    terms = list(sums.values())
    E = solve(terms, ridge_strength(terms, RIDGE))
    C = torch.stack([term.weight**2 * term.C for term in terms]).sum(0)
    low = truncated(E, C, rank)
    return LowRank(low.B.float().cpu(), low.A.float().cpu())


@torch.no_grad()
def _moments(fit: EndEffect, batch: Clips, styled: Chain, layer: str, evaluation: Evaluation, aimed: Tensor) -> Term:
    """M, Σ ã·ãᵀ and Σ r·ãᵀ of one evaluation, tokens of the other frames left out."""
    network: Any = fit.pair.network()
    with watched(network, layer) as seen:
        velocity = fit.pair.velocity(evaluation, batch, styled).float()
    residual = patched(aimed.to(velocity.device) - velocity, network.config.patch_size)
    tokens = residual.shape[1]
    first = 0 if evaluation.frame is None else evaluation.frame * tokens  # frames come one after the other
    a = (seen.inputs / seen.deviation)[:, first : first + tokens].flatten(0, 1).double()
    M = evaluation.head * to_output(network, layer, seen, first)
    return Term(evaluation.weight, M, a.mT @ a, residual.flatten(0, 1).double().mT @ a)


def _joined(one: Term, other: Term) -> Term:
    return Term(one.weight, one.M, one.C + other.C, one.R + other.R)


def readout_passes(layers: int, fit: int, check: int, run: int, evaluations: int) -> int:
    """Passes of the target: the bare evaluations, then per layer fresh evaluations and the line search."""
    return evaluations * fit + run * check + layers * (evaluations * fit + len(STRIDES) * run * check)
