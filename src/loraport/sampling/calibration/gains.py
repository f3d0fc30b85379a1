"""Gains: a strength for each group of an adapter's layers on the target, by finite differences and ridge regression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.errors import unknown_name
from loraport.files.names.blocks import layer_type
from loraport.sampling.end_error import EndEffect
from loraport.sampling.pair import Clips, Updates
from loraport.spectral.low_rank import LowRank

Grouping = Literal["type", "layer"]
GROUPINGS: Mapping[str, Callable[[str], str]] = {"type": layer_type, "layer": str}
# All five were chosen: other values were not measured (those compared in docs/lab-log.md are readout's).
STEP = 0.1
"""Of the finite differences, in units of a gain."""
RIDGES = (0.01, 0.1, 1.0, 10.0)
"""How strongly a step is drawn towards gains of 1; a round takes the one that the held-out clips like best."""
UNGUARDED_RIDGE = 0.1
"""The only one that is tried where nothing is held out."""
GAIN_STRIDES = (1.0, 0.5)
"""Shares of a step that are tried."""
ROUNDS = 2
"""Of Gauss-Newton."""


@dataclass(frozen=True)
class Gains:
    """A factor for each group of layers."""

    grouping: Grouping
    factors: Mapping[str, float]
    errors: tuple[float, ...]
    """The held-out end error before, and after each round that was kept."""

    def applied(self, updates: Updates) -> dict[str, LowRank]:
        """Return the updates, each times its group's factor; groups that were not fitted keep theirs."""
        group = GROUPINGS[self.grouping]
        return {name: update.scaled(self.factors.get(group(name), 1.0)) for name, update in updates.items()}


def gain_groups(updates: Updates, grouping: str) -> tuple[str, ...]:
    """Return the groups of an adapter's layers. Raises SettingsError for an unknown grouping."""
    if grouping not in GROUPINGS:
        raise unknown_name("grouping of gains", grouping, GROUPINGS)
    return tuple(sorted({GROUPINGS[grouping](name) for name in updates}))


def fit_gains(
    fit: EndEffect, check: EndEffect, updates: Updates, grouping: Grouping = "type", *, guarded: bool = True
) -> Gains:
    """Find factors c that bring the target's samples closest to E* on `fit`; keep only what `check` confirms.

    J_g = [target(z; c + 0.1·e_g) − target(z; c)] / 0.1 over whole runs of the target. Two rounds of Gauss-Newton.
    Unguarded, each round takes UNGUARDED_RIDGE and the whole step, whatever `check` says.
    """
    groups = gain_groups(updates, grouping)
    c = torch.ones(len(groups), dtype=torch.float64)
    gains = Gains(grouping, dict.fromkeys(groups, 1.0), ())
    errors = [float(check.errors(updates).double().mean())]
    for _ in range(ROUNDS):
        JJ, Jr = _normal_equations(fit, updates, gains)
        steps = [
            (ridge, stride)
            for ridge in (RIDGES if guarded else (UNGUARDED_RIDGE,))
            for stride in (GAIN_STRIDES if guarded else (1.0,))
        ]
        trials = [_with(gains, c + stride * ridge_step(JJ, Jr, c, ridge)) for ridge, stride in steps]
        losses = [float(check.errors(trial.applied(updates)).double().mean()) for trial in trials]
        best = min(range(len(losses)), key=losses.__getitem__)
        if guarded and not losses[best] < errors[-1]:
            break
        gains = trials[best]
        c = torch.tensor([gains.factors[group] for group in groups], dtype=torch.float64)
        errors.append(losses[best])
    return Gains(grouping, gains.factors, tuple(errors))


def ridge_step(
    JJ: Float[Tensor, "g g"], Jr: Float[Tensor, " g"], c: Float[Tensor, " g"], ridge: float
) -> Float[Tensor, " g"]:
    """Return (J·Jᵀ + L)⁻¹·(J·r − L·(c − 1)) with L = ridge · tr(J·Jᵀ) / G · I: a step that is drawn towards c = 1.

    Zero where the gains do nothing at all.
    """
    pull = ridge * float(JJ.trace()) / len(c)
    if pull == 0:
        return torch.zeros_like(c)
    return torch.linalg.solve(JJ + pull * torch.eye(len(c), dtype=JJ.dtype), Jr - pull * (c - 1))


def jacobian(sample: Callable[[Gains], Tensor], gains: Gains) -> tuple[Float[Tensor, "g m"], Tensor]:
    """Return forward differences of `sample` in each gain, and the sample at the gains themselves."""
    base = sample(gains)
    values = list(gains.factors.values())
    rows = []
    for number in range(len(values)):
        moved = torch.tensor(values, dtype=torch.float64)
        moved[number] += STEP
        rows.append(((sample(_with(gains, moved)) - base) / STEP).flatten().double())
    return torch.stack(rows), base


def _normal_equations(fit: EndEffect, updates: Updates, gains: Gains) -> tuple[Tensor, Tensor]:
    """Return J·Jᵀ and J·r, summed over batches, so that no more than one batch's Jacobian is in memory."""
    size = len(gains.factors)
    JJ, Jr = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for batch, wanted in zip(fit.batches, fit.wanted, strict=True):
        J, sample = jacobian(partial(_sample, fit, batch, updates), gains)
        JJ += J @ J.mT
        Jr += J @ (wanted - sample).flatten().double()
    return JJ, Jr


def _sample(fit: EndEffect, batch: Clips, updates: Updates, gains: Gains) -> Tensor:
    return fit.sample(batch, gains.applied(updates))


def _with(gains: Gains, c: Tensor) -> Gains:
    return Gains(gains.grouping, dict(zip(gains.factors, c.tolist(), strict=True)), gains.errors)


def gain_passes(groups: int, fit: int, check: int, run: int) -> int:
    """Return the passes of the target: the differences, and the trials of every round."""
    return run * (check + ROUNDS * ((1 + groups) * fit + len(RIDGES) * len(GAIN_STRIDES) * check))
