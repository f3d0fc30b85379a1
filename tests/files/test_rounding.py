"""The floor under differences: what rounding should cost, from the rounded values alone, is what it did cost."""

import math

import pytest
import torch

from loraport.files.formats.rounding import expected_error, in_pieces, narrowest, rounding_error, step_of

DTYPES = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def all_values(dtype: torch.dtype) -> torch.Tensor:
    """Every finite value of a dtype, ascending, one zero."""
    bits = torch.arange(2 ** (8 * dtype.itemsize)).to(torch.uint16 if dtype.itemsize == 2 else torch.uint8)
    values = bits.view(dtype).float()
    return torch.unique(values[torch.isfinite(values)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_step_is_that_of_the_midpoints_to_the_neighbours(dtype):
    """E[(x − q)²] over the interval that rounds to q, integrated: (a³ + b³) / (12·(a + b))."""
    grid = all_values(dtype).double()
    a, b = grid[1:-1] - grid[:-2], grid[2:] - grid[1:-1]
    wanted = (a**3 + b**3) / (a + b)
    step = step_of(grid[1:-1].float(), dtype).double()
    normal = grid[1:-1].abs() > 1e-30  # bfloat16's square there is below float32
    if dtype.itemsize == 2:
        normal &= torch.frexp(grid[1:-1])[0].abs() != 0.5  # powers of two
    assert torch.allclose(step[normal] ** 2, wanted[normal], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.02, 1.0])
def test_planted_rounding_is_found(dtype, size):
    generator = torch.Generator().manual_seed(0)
    W = size * torch.randn(300, 200, generator=generator)
    q = W.to(dtype).float()
    actual = float((W - q).norm())
    assert math.isclose(expected_error(step_of(q, dtype)), actual, rel_tol=0.02)
    assert not math.isclose(expected_error(step_of(q, dtype)), 2 * actual, rel_tol=0.2)


def test_the_known_size_of_each():
    """Relative errors on Gaussian weights, as everyone quotes them."""
    W = torch.randn(400, 400, generator=torch.Generator().manual_seed(1))
    found = {dtype: expected_error(step_of(W.to(dtype).float(), dtype)) / float(W.norm()) for dtype in DTYPES}
    known = (0.0002, 0.0017, 0.026, 0.053)
    assert all(math.isclose(found[dtype], value, rel_tol=0.08) for dtype, value in zip(DTYPES, known, strict=True))


def test_a_wide_file_of_narrow_values_is_seen_for_what_it_is():
    W = torch.randn(20, 30, generator=torch.Generator().manual_seed(2))
    for dtype in (torch.bfloat16, torch.float16):
        narrow = W.to(dtype).float()
        assert narrowest(narrow, torch.float32) == dtype
        narrow[19, 29] = W[19, 29]
        assert narrowest(narrow, torch.float32) == torch.float32
        assert narrowest(W, dtype) == dtype
    assert narrowest(W * 1e6, torch.float32) == torch.float32
    assert narrowest(torch.zeros(3, 4), torch.float32) == torch.float32, "zeros lie on every grid"


@pytest.mark.parametrize("count", [0, 5, 1 << 17, (1 << 17) + 1, 400_001])
def test_pieces_are_all_of_it(count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    pieces = in_pieces(values)
    assert torch.equal(torch.cat(pieces), values) and max(map(len, pieces)) <= 1 << 17
    whole = expected_error(step_of(values, torch.bfloat16))
    assert rounding_error(values, torch.bfloat16) == pytest.approx(whole, rel=1e-4)
    assert count == 0 or rounding_error(2 * values, torch.bfloat16) == pytest.approx(2 * whole, rel=1e-4)
