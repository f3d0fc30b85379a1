"""Readout: low-rank corrections of the layers that write the residual stream, fitted to the error of the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loraport.compute import in_double
from loraport.errors import SettingsError
from loraport.sampling.calibration.least_squares import Term, ridge_strength, solve, truncated
from loraport.sampling.calibration.residual_writers import patched, recorded_pass, to_output, writing_layers
from loraport.sampling.end_error import EndEffect, bare_velocities
from loraport.sampling.hooks import adapted, add_updates
from loraport.sampling.pair import Chain, Clips, Evaluation, Updates, readout_target
from loraport.spectral.low_rank import LowRank

RIDGE = 0.3
RANK = 8
READOUT_STRIDES = (1.0, 0.5, 0.25)
"""Shares of a correction that are tried, the whole first."""


@dataclass(frozen=True)
class ReadoutStep:
    """The outcome of one layer: the stride that was taken, 0 where none was, and the held-out error after it."""

    layer: str
    stride: float
    error: float


@dataclass(frozen=True)
class Readout:
    """The updates with their corrections, and the steps in their order."""

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
    """Correct the writing layers one after the other, last block first, each with fresh residuals from `fit`.

    The stride with the lowest end error on `check` is taken where that is lower than before; unguarded, the whole step
    always is. Raises SettingsError where the target has no evaluations, MismatchError for an unknown family.
    """
    pair = fit.pair
    if not pair.evaluations:
        raise SettingsError(
            f"readout is not possible here: {pair.no_evaluations_reason}; gains alone are (--no-readout)"
        )
    layers = writing_layers(pair.network(), last)
    own = [bare_velocities(pair, batch, plain, fit.counter) for batch, _, plain in fit.segments()]
    targets = [
        tuple(
            readout_target(evaluation, styled, plain, v)
            for evaluation, v in zip(pair.evaluations, velocities, strict=True)
        )
        for (_, styled, plain), velocities in zip(fit.segments(), own, strict=True)
    ]
    accepted, error = dict(updates), float(check.errors(updates).double().mean())
    steps = []
    for layer in layers:
        correction = _correction(fit, accepted, layer, targets, rank)
        strides = READOUT_STRIDES if guarded else READOUT_STRIDES[:1]
        trials = [add_updates(accepted, {layer: correction.scaled(stride)}) for stride in strides]
        errors = [float(check.errors(trial).double().mean()) for trial in trials]
        best = min(range(len(errors)), key=errors.__getitem__)
        taken = not guarded or errors[best] < error
        if taken:
            accepted, error = trials[best], errors[best]
        steps.append(ReadoutStep(layer, READOUT_STRIDES[best] if taken else 0.0, error))
    return Readout(accepted, tuple(steps))


def _correction(
    fit: EndEffect, updates: Updates, layer: str, targets: Sequence[tuple[Tensor, ...]], rank: int
) -> LowRank:
    """Solve for one layer, from all evaluations of all batches."""
    sums: dict[Evaluation, Term] = {}
    for (batch, styled, _), batch_targets in zip(fit.segments(), targets, strict=True):
        with adapted(fit.pair.network(), updates):
            for evaluation, target in zip(fit.pair.evaluations, batch_targets, strict=True):
                term = _moments(fit, batch, styled, layer, evaluation, target)
                before = sums.get(evaluation)
                sums[evaluation] = term if before is None else _joined(before, term)
        fit.counter.count("readout", target=len(batch) * fit.pair.passes.evaluations)
    terms = list(sums.values())
    E = solve(terms, ridge_strength(terms, RIDGE))
    C = torch.stack([term.weight**2 * term.C for term in terms]).sum(0)
    low = truncated(E, C, rank)
    return LowRank(low.B.float().cpu(), low.A.float().cpu())


@torch.no_grad()
def _moments(fit: EndEffect, batch: Clips, styled: Chain, layer: str, evaluation: Evaluation, target: Tensor) -> Term:
    """Return M, Σ ã·ãᵀ and Σ r·ãᵀ of one evaluation, tokens of the other frames left out."""
    network: Any = fit.pair.network()
    with recorded_pass(network, layer) as record:
        velocity = fit.pair.velocity(evaluation, batch, styled).float()
    residual = patched(target.to(velocity.device) - velocity, network.config.patch_size)
    tokens = residual.shape[1]
    first = 0 if evaluation.frame is None else evaluation.frame * tokens  # frames come one after the other
    a = in_double((record.inputs / record.deviation)[:, first : first + tokens].flatten(0, 1))
    M = evaluation.head * to_output(network, layer, record, first)
    return Term(evaluation.weight, M, a.mT @ a, in_double(residual.flatten(0, 1)).mT @ a)


def _joined(first: Term, second: Term) -> Term:
    """Return the term of two batches together: one evaluation has the same weight and map in both."""
    return Term(first.weight, first.M, first.C + second.C, first.R + second.R)


def readout_passes(layers: int, fit: int, check: int, run: int, evaluations: int) -> int:
    """Return the passes of the target: the bare evaluations, then for each layer fresh ones and the line search."""
    return evaluations * fit + run * check + layers * (evaluations * fit + len(READOUT_STRIDES) * run * check)
