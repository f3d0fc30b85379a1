"""Readout's closed form on the embedded family itself, against least squares on every residual written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from scipy.sparse.linalg import LinearOperator, lsmr

from loraport.sampling.calibration.least_squares import ridge_strength, solve
from loraport.sampling.calibration.readout import _moments
from loraport.sampling.calibration.residual_writers import patched, recorded_pass
from loraport.sampling.end_error import EndEffect, bare_velocities
from loraport.sampling.hooks import adapted, add_updates
from loraport.sampling.pair import Clips, readout_target
from loraport.sampling.pass_counter import PassCounter
from loraport.sampling.samples import SampleStore
from loraport.spectral.low_rank import LowRank
from loraport_lab.bench.material import adapter_updates
from loraport_lab.family.family import FAMILY
from loraport_lab.family.pair import EmbeddedPair

LAYER = "blocks.3.self_attn.o"
SHARE = 0.3


@pytest.fixture(scope="module")
def problem():
    """Moments of each evaluation, and inputs and residuals of every token, taken separately."""
    torch.set_num_threads(1)
    pair, updates = EmbeddedPair("few-step"), adapter_updates("neon", FAMILY)
    fit = EndEffect(pair, updates, Clips("fit", 0, 2), SampleStore(None), PassCounter(1))
    [(batch, styled, plain)] = fit.segments()
    own = bare_velocities(pair, batch, plain, fit.counter)
    terms, rows = [], []
    with torch.no_grad(), adapted(pair.network(), updates):
        for evaluation, v in zip(pair.evaluations, own, strict=True):
            aimed = readout_target(evaluation, styled, plain, v)
            terms.append(_moments(fit, batch, styled, LAYER, evaluation, aimed))
            with recorded_pass(pair.network(), LAYER) as record:
                velocity = pair.velocity(evaluation, batch, styled)
            residual = patched(aimed - velocity, (1, 2, 2)).flatten(0, 1).double().numpy()
            rows.append(((record.inputs / record.deviation).flatten(0, 1).double().numpy(), residual))
    return fit, terms, rows


def brute_force(terms, rows, ridge):
    """argmin Σ_j w_j² Σ ‖M_j·E·ã − r_j‖² + λ‖E‖² by LSMR on the residuals; normal equations are never formed."""
    out, inside = terms[0].M.shape[1], rows[0][0].shape[1]
    maps = [term.weight * term.M.numpy() for term in terms]

    def forward(E):
        E = E.reshape(out, inside)
        return np.concatenate([(a @ (M @ E).T).ravel() for M, (a, _) in zip(maps, rows, strict=True)])

    def backward(r):
        found, place = np.zeros((out, inside)), 0
        for M, (a, residual) in zip(maps, rows, strict=True):
            piece = r[place : place + residual.size].reshape(residual.shape)
            found += M.T @ (piece.T @ a)
            place += residual.size
        return found.ravel()

    wanted = np.concatenate([t.weight * r.ravel() for t, (_, r) in zip(terms, rows, strict=True)])
    operator = LinearOperator((wanted.size, out * inside), matvec=forward, rmatvec=backward, dtype=float)
    E = lsmr(operator, wanted, damp=ridge**0.5, atol=1e-12, btol=1e-12, maxiter=1500)[0]
    return torch.from_numpy(E.reshape(out, inside))


def loss(E, terms, rows, ridge):
    fitted = zip(terms, rows, strict=True)
    missed = sum(t.weight**2 * float(np.square(a @ (t.M @ E).numpy().T - r).sum()) for t, (a, r) in fitted)
    return missed + ridge * float(E.square().sum())


@pytest.mark.slow
def test_the_solution_is_that_of_all_residuals_written_out(problem):
    _, terms, rows = problem
    ridge = ridge_strength(terms, SHARE)
    brute, limit, ours = brute_force(terms, rows, ridge), solve(terms, ridge, 1000), solve(terms, ridge)
    assert float((limit - brute).norm() / brute.norm()) < 1e-6
    least, found = loss(brute, terms, rows, ridge), loss(ours, terms, rows, ridge)
    nothing = loss(torch.zeros_like(brute), terms, rows, ridge)
    assert 0 <= (found - least) / (nothing - least) < 2e-2  # what sixty iterations leave of a problem of this width
    turned = solve([replace(term, M=term.M.roll(1, 1)) for term in terms], ridge)  # another layer's gates
    assert loss(turned, terms, rows, ridge) - least > 0.1 * (nothing - least)


def test_the_linear_model_predicts_what_the_network_then_does(problem):
    """On the clips of the fit the residual falls as the normal equations say, within a quarter."""
    fit, terms, rows = problem
    E = solve(terms, ridge_strength(terms, SHARE))
    before = sum(t.weight**2 * float(np.square(r).sum()) for t, (_, r) in zip(terms, rows, strict=True))
    said = sum(t.weight**2 * float(((t.M @ E @ t.C) * (t.M @ E)).sum() - 2 * (t.R * (t.M @ E)).sum()) for t in terms)
    pair, updates = fit.pair, adapter_updates("neon", FAMILY)
    [(batch, styled, plain)] = fit.segments()
    own = bare_velocities(pair, batch, plain, fit.counter)
    moved = add_updates(updates, {LAYER: LowRank(E.float(), torch.eye(E.shape[1]))})
    after = 0.0
    with torch.no_grad(), adapted(pair.network(), moved):
        for evaluation, v in zip(pair.evaluations, own, strict=True):
            missed = readout_target(evaluation, styled, plain, v) - pair.velocity(evaluation, batch, styled)
            after += evaluation.weight**2 * float(missed.double().square().sum())
    assert said < 0 and after < before
    assert (after - before) / said == pytest.approx(1, abs=0.25)
