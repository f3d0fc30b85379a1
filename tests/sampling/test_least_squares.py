"""The closed forms against brute force in float64: normal equations, truncation, gains, statistics."""

import itertools
import math

import pytest
import torch

from loraport.sampling.calibration.gains import STEP, Gains, jacobian, ridge_step
from loraport.sampling.calibration.least_squares import Term, ridge_strength, solve, truncated

P, OUT, IN, ROWS = 5, 4, 3, 40


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def terms_and_rows():
    """Two evaluations: (term, inputs [rows, in], residuals [rows, p])."""
    found = []
    for seed, weight in ((1, 0.3), (2, 0.7)):
        M, a, r = drawn(P, OUT, seed=seed), drawn(ROWS, IN, seed=seed + 10), drawn(ROWS, P, seed=seed + 20)
        found.append((Term(weight, M, a.mT @ a, r.mT @ a), a, r))
    return found


def loss(E, rows, ridge):
    return sum(t.weight**2 * (a @ E.mT @ t.M.mT - r).square().sum() for t, a, r in rows) + ridge * E.square().sum()


def test_the_solution_is_the_least_squares_one():
    rows = terms_and_rows()
    terms = [term for term, _, _ in rows]
    ridge = ridge_strength(terms, 0.3)
    E = solve(terms, ridge)
    # every equation of the problem written out, one row per residual and one per ridge entry
    blocks = [t.weight * torch.einsum("po,ri->rpoi", t.M, a).reshape(ROWS * P, OUT * IN) for t, a, _ in rows]
    blocks.append(math.sqrt(ridge) * torch.eye(OUT * IN, dtype=torch.float64))
    right = [t.weight * r.reshape(-1) for t, _, r in rows] + [torch.zeros(OUT * IN, dtype=torch.float64)]
    brute = torch.linalg.lstsq(torch.cat(blocks), torch.cat(right)[:, None]).solution.reshape(OUT, IN)
    torch.testing.assert_close(E, brute, rtol=1e-9, atol=1e-9)
    for seed in range(5):
        assert loss(E, rows, ridge) < loss(E + 1e-3 * drawn(OUT, IN, seed=seed + 50), rows, ridge)


def test_the_ridge_is_the_share_of_the_diagonals():
    by_hand = 0.0
    for term, _, _ in terms_and_rows():
        gram = term.M.mT @ term.M
        squares = sum(float(gram[i, i]) for i in range(OUT)) / OUT
        by_hand += term.weight**2 * squares * sum(float(term.C[i, i]) for i in range(IN)) / IN
    assert ridge_strength([term for term, _, _ in terms_and_rows()], 0.3) == pytest.approx(0.3 * by_hand)


def test_truncation_is_the_best_on_the_inputs_and_the_plain_one_is_not():
    a = drawn(200, 8, seed=3) * torch.tensor([10.0, 5, 1, 1, 0.5, 0.1, 0.1, 0.01], dtype=torch.float64)
    E, C = drawn(6, 8, seed=4), a.mT @ a
    ours = truncated(E, C, 2).dense()
    U, S, Vh = torch.linalg.svd(E, full_matrices=False)
    plain = (U[:, :2] * S[:2]) @ Vh[:2]
    values = torch.linalg.svdvals(a @ E.mT)

    def missed(X):
        return float((a @ (E - X).mT).square().sum())

    assert missed(ours) == pytest.approx(float(values[2:].square().sum()), rel=1e-8)  # Eckart & Young
    assert missed(plain) > 1.5 * missed(ours)


def test_truncation_takes_fewer_inputs_than_dimensions():
    a = drawn(3, 8, seed=5)
    E = drawn(6, 3, seed=6) @ a  # what inputs leave out, a ridge solution leaves zero
    torch.testing.assert_close(truncated(E, a.mT @ a, 3).dense(), E, rtol=1e-7, atol=1e-7)


def test_the_jacobian_is_that_of_the_differences():
    weights = drawn(3, 6, seed=7)

    def sample(gains):
        c = torch.tensor(list(gains.factors.values()), dtype=torch.float64)
        return torch.sin(c @ weights)

    gains = Gains("type", {"q": 1.0, "k": 0.8, "v": 1.3}, ())
    J, here = jacobian(sample, gains)
    c = torch.tensor([1.0, 0.8, 1.3], dtype=torch.float64)
    for row, column in itertools.product(range(3), range(6)):
        moved = c.clone()
        moved[row] += STEP
        by_hand = (math.sin(float(moved @ weights[:, column])) - math.sin(float(c @ weights[:, column]))) / STEP
        assert float(J[row, column]) == pytest.approx(by_hand)
    torch.testing.assert_close(here, torch.sin(c @ weights))


def test_the_ridge_step_minimises_its_own_loss():
    J, r, c, ridge = drawn(3, 20, seed=8), drawn(20, seed=9), drawn(3, seed=10), 0.1
    step = ridge_step(J @ J.mT, J @ r, c, ridge)
    pull = ridge * float((J @ J.mT).trace()) / 3

    def cost(s):
        return float((r - s @ J).square().sum() + pull * (c + s - 1).square().sum())

    for seed in range(5):
        assert cost(step) < cost(step + 1e-3 * drawn(3, seed=seed + 60))
    assert ridge_step(torch.zeros(3, 3), torch.zeros(3), torch.ones(3), 0.1).tolist() == [0, 0, 0]
