"""The floor under a warm run: the bytes and the matrix products that it cannot avoid, as bare reads and bare GEMMs.

    python -m benchmarks.floor FOLDER --layers layers.json [--device cpu]

Per layer of m × n (m ≥ n), with a LoRA of rank r and an output of rank q = 2·r, the bases known:

    reads     W_s and W_t as the files have them; the thin basis in 16 bits, n·(m + n) · 2 bytes
    products  Eq. 2 of the drift, D·V and Uᵀ·(D·V); of the LoRA, Uᵀ·B, A·V and their product;
              one application of D' and of its transpose to q columns (no low-rank factorisation does with less);
              the factors carried back, U·(n × q) and (q × n)·Vh

`stored`: the same where the drift's routing is kept beside the basis: D·V and Uᵀ·(D·V) are replaced by a read of n² · 2
bytes. It is the floor of a program that trades disk for time. Nothing else is counted: no hashing, no clusters, no
quantile, no decoding of 16 bits, no start of an interpreter.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

RANK = 32


def products(m: int, n: int, rank: int, *, stored: bool) -> list[tuple[int, int, int]]:
    """(rows, inner, columns) of each product."""
    q = 2 * rank
    drift = [] if stored else [(m, n, n), (n, m, n)]
    lora = [(n, m, rank), (rank, n, n), (n, rank, n)]
    return [*drift, *lora, (m, n, q), (q, m, n), (m, n, q), (q, n, n)]


def flops(m: int, n: int, rank: int, *, stored: bool) -> int:
    """Multiplications and additions of them all."""
    return sum(2 * a * b * c for a, b, c in products(m, n, rank, stored=stored))


def extra_bytes(m: int, n: int, *, stored: bool) -> int:
    """Of the basis, and of the drift's routing."""
    return 2 * n * (m + n) + (2 * n * n if stored else 0)


def timed(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    start, busy = time.perf_counter(), time.process_time()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - busy


def product_seconds(shapes: Counter[tuple[int, int]], device: str, *, stored: bool) -> tuple[float, float]:
    """Wall and CPU seconds of all products of all layers; the matrices are made, and touched once, outside of them."""
    wall = busy = 0.0
    for (m, n), count in shapes.items():
        for a, b, c in products(m, n, RANK, stored=stored):
            X, Y, out = (torch.ones(*shape, device=device) for shape in ((a, b), (b, c), (a, c)))
            torch.mm(X, Y, out=out)
            for _ in range(count):
                seconds = timed(partial(torch.mm, X, Y, out=out), device)
                wall, busy = wall + seconds[0], busy + seconds[1]
    return wall, busy


def read_seconds(folder: Path, spare: int) -> tuple[float, float]:
    """Wall and CPU seconds of reading both models, and so many bytes more, into fresh memory."""
    paths = [*sorted((folder / "source").rglob("*.safetensors")), *sorted((folder / "target").rglob("*.safetensors"))]
    beside = folder / "floor.bin"
    beside.write_bytes(bytes(spare))

    def read() -> None:
        for path in (*paths, beside):
            with path.open("rb", buffering=0) as file:
                while len(file.read(1 << 26)):
                    pass

    seconds = timed(read, "cpu")
    beside.unlink()
    return seconds


def main() -> None:
    """Both floors as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=json.loads, required=True, help="a list of [out, in]")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    shapes = Counter((max(shape), min(shape)) for shape in given.layers)
    found = {}
    for name, stored in (("products", False), ("stored", True)):
        spare = sum(count * extra_bytes(*shape, stored=stored) for shape, count in shapes.items())
        gemm, read = product_seconds(shapes, given.device, stored=stored), read_seconds(given.folder, spare)
        work = sum(count * flops(*shape, RANK, stored=stored) for shape, count in shapes.items())
        found[name] = {
            "gemm_s": gemm[0],
            "read_s": read[0],
            "wall_s": gemm[0] + read[0],
            "cpu_s": gemm[1] + read[1],
            "gflops": work / 1e9,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
