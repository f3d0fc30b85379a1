"""Which decomposition is fastest and accurate enough, per shape and device.

    python -m benchmarks.drivers --size 1.3b [--device cuda] [--repeats 3]

Matrices are made on the device. A driver is accurate enough where U·S·Vh gives W back to 1e-5, both factors are
orthonormal to 1e-4, and every singular value is right to 1e-5 of the largest; the fastest of those is chosen. One that
does not converge, or is not there, is reported with its reason, and the next one is taken: that is the fall-back.
Writes benchmarks/results/drivers-DEVICE-SIZE.json and .md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.processes import machine
from benchmarks.synthetic import config_of, spectrum
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
Factors = tuple[Tensor, Tensor, Tensor]


def direct(driver: str | None) -> Callable[[Tensor], Factors]:
    """One of LAPACK's or cuSOLVER's own; None is the library's choice."""
    return lambda W: torch.linalg.svd(W, full_matrices=False, driver=driver)


def scipy_driver(driver: str) -> Callable[[Tensor], Factors]:
    """LAPACK's through SciPy, for the one that PyTorch does not offer on the CPU."""

    def decompose(W: Tensor) -> Factors:
        from scipy.linalg import svd

        U, S, Vh = map(torch.from_numpy, svd(W.numpy(), full_matrices=False, lapack_driver=driver))
        return U, S, Vh

    return decompose


def qr_first(inner: Callable[[Tensor], Factors]) -> Callable[[Tensor], Factors]:
    """W = Q·R, and the SVD of R."""

    def decompose(W: Tensor) -> Factors:
        Q, R = torch.linalg.qr(W)
        U, S, Vh = inner(R)
        return Q @ U, S, Vh

    return decompose


def gram(W: Tensor) -> Factors:
    """Eigenvectors of WᵀW in double precision; U = W·V / S in single."""
    wide = W.double()
    values, V = torch.linalg.eigh(wide.mT @ wide)
    S, V = values.flip(0).clamp(min=0).sqrt(), V.flip(1)
    U = (wide @ V / S) if W.shape[0] == W.shape[1] else (W @ V.float()) / S.float()
    return U.to(W.dtype), S.to(W.dtype), V.mT.to(W.dtype)


def polar_first(W: Tensor) -> Factors:
    """The polar factor by Newton–Schulz in double precision, then eigh of what is symmetric: W = P·H, H = V·S·Vh."""
    X = W.double() / torch.linalg.matrix_norm(W.double(), 2)
    for _ in range(60):
        step = 1.5 * X - 0.5 * X @ (X.mT @ X)
        if torch.linalg.vector_norm(step - X) < 1e-12 * torch.linalg.vector_norm(X):
            break
        X = step
    H = X.mT @ W.double()
    values, V = torch.linalg.eigh((H + H.mT) / 2)
    return tuple(Y.to(W.dtype) for Y in (X @ V.flip(1), values.flip(0), V.flip(1).mT))


def drivers(device: str) -> dict[str, Callable[[Tensor], Factors]]:
    """Every candidate of a device, by name."""
    gpu = device.startswith("cuda")
    own = {name: direct(name) for name in ("gesvd", "gesvdj", "gesvda")} if gpu else {"gesvd": scipy_driver("gesvd")}
    found: dict[str, Callable[[Tensor], Factors]] = {"library's choice": direct(None), **own}
    found["QR first"] = qr_first(direct(None))
    found["eigh of the Gram, float64"] = gram
    found["polar first"] = polar_first
    return found


def made(m: int, n: int, device: str, seed: int = 0) -> Tensor:
    """A matrix with the suite's spectrum; its orthogonal factors come from QR on the device."""
    g = torch.Generator(device).manual_seed(seed)
    left = torch.linalg.qr(torch.randn(m, n, generator=g, device=device)).Q
    right = torch.linalg.qr(torch.randn(n, n, generator=g, device=device)).Q
    return (left * spectrum(n).float().to(device)) @ right


def errors(W: Tensor, factors: Factors, S: Tensor) -> dict[str, float]:
    """Relative residual, departure from orthonormality, and error of the singular values, in double precision."""
    U, found, Vh = (X.double() for X in factors)
    unit = torch.eye(len(S), dtype=torch.float64, device=W.device)
    size = torch.linalg.vector_norm(W.double())
    return {
        "residual": float(torch.linalg.vector_norm((U * found) @ Vh - W.double()) / size),
        "orthonormality": float(max((U.mT @ U - unit).abs().max(), (Vh @ Vh.mT - unit).abs().max())),
        "values": float((found - S).abs().max() / S[0]),
    }


def accurate(row: dict[str, Any]) -> bool:
    """Whether a driver may be chosen."""
    return "failed" not in row and row["residual"] < 1e-5 and row["orthonormality"] < 1e-4 and row["values"] < 1e-5


def tried(decompose: Callable[[Tensor], Factors], W: Tensor, S: Tensor, repeats: int) -> dict[str, Any]:
    """The best time of several and the errors; or why there are none."""
    best = float("inf")
    try:
        for _ in range(repeats):
            start = time.perf_counter()
            factors = decompose(W)
            if W.is_cuda:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
    except (RuntimeError, ValueError) as error:  # did not converge, not there, or out of memory
        return {"failed": str(error).splitlines()[0]}
    return {"seconds": best, **errors(W, factors, S)}


def chosen(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The accurate drivers, fastest first: the first is used, the others are what one falls back to."""
    return sorted((name for name, row in rows.items() if accurate(row)), key=lambda name: rows[name]["seconds"])


def table(size: str, device: str, repeats: int, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every driver on both shapes of a size; a wide layer is decomposed as its transpose."""
    config = config_of(size)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    found = {}
    for m, n in ((width, width), (config["ffn_dim"], width)):
        W, S = made(m, n, device), spectrum(n).to(device)
        rows = {name: tried(one, W, S, repeats) for name, one in drivers(device).items() if name not in skip}
        found[f"{m} x {n}"] = {"drivers": rows, "chosen": chosen(rows)}
    return found


def markdown(result: dict[str, Any]) -> str:
    """One table per shape."""
    lines = [", ".join(f"{key} {value}" for key, value in result["machine"].items() if value is not None), ""]
    for shape, found in result["shapes"].items():
        lines += [f"{shape}: {', then '.join(found['chosen'])}", ""]
        lines += ["| driver | seconds | residual | orthonormality | values |", "|---|---|---|---|---|"]
        for name, row in found["drivers"].items():
            cells = [f"{row[key]:.2g}" for key in ("seconds", "residual", "orthonormality", "values") if key in row]
            lines.append(f"| {name} | {' | '.join(cells) if cells else row['failed'] + ' | | |'} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1.3b", help="1.3b, 14b or a width")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip", action="append", default=[], help="a driver that would take too long")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    result = {"machine": machine(), "shapes": table(given.size, given.device, given.repeats, tuple(given.skip))}
    given.results.mkdir(parents=True, exist_ok=True)
    name = f"drivers-{given.device}-{given.size}"
    (given.results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (given.results / f"{name}.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
