"""A whole model on one card, from data made there: seconds of each stage, and how much of the card they use.

    python -m benchmarks.card --size 14b --device cuda [--blocks 40]
    python -m benchmarks.card --size 128 --blocks 1                (on the processor, to see that it runs)

Every layer of a block is made on the device (`drivers.made`), then decomposed, seen (Eq. 2) and given two LoRAs by
CASA, as a transfer does; nothing is read or written. Only `--sample` blocks are run, the others are the same work:
`whole` is their mean times the number of blocks. The roofline is measured first: products in single and in double
precision, and copies. A stage's share of it is the time that its unavoidable products would take at those speeds, by
their own precision, over the time that it took. Writes benchmarks/results/card-DEVICE-SIZE.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.drivers import made
from benchmarks.floor import RANK
from benchmarks.processes import machine
from benchmarks.synthetic import DRIFT, LORA, config_of
from torch import Tensor

from loraport.methods.casa import casa
from loraport.methods.layer import Layer
from loraport.methods.settings import PUBLISHED_CODE
from loraport.spectral.basis import decompose
from loraport.spectral.low_rank import LowRank

RESULTS = Path(__file__).parent / "results"
TARGETS = {"whole": 300.0, "a further LoRA": 5.0, "peak GB": 8.0}
"""At 14B's shapes on an H200-class card: seconds, seconds, gigabytes."""


def done(device: torch.device) -> None:
    """Wait for what was started."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """How long it took, and what it gave."""
    done(device)
    start = time.perf_counter()
    found = work()
    done(device)
    return time.perf_counter() - start, found


def roofline(n: int, device: torch.device) -> dict[str, float]:
    """Operations a second of an n × n product in both precisions, and bytes a second of a copy: the best of three."""
    found = {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        X = torch.randn(n, n, device=device, dtype=dtype)
        found[name] = 2.0 * n**3 / min(seconds(lambda X=X: X @ X, device)[0] for _ in range(3))  # type: ignore[misc]
    X = torch.randn(n, n, device=device)
    found["copied"] = 8.0 * n * n / min(seconds(X.clone, device)[0] for _ in range(3))
    return found


def block(size: str) -> list[tuple[int, int]]:
    """(out, in) of the ten layers of a block."""
    config = config_of(size)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return [(width, width)] * 8 + [(config["ffn_dim"], width), (width, config["ffn_dim"])]


def least(m: int, n: int) -> dict[str, dict[str, float]]:
    """Operations that each stage cannot do without, by precision; m ≥ n.

    A basis: WᵀW, and 9·n³ for a symmetric eigenproblem with vectors (Golub & Van Loan, § 8.3), in double precision. The
    routing: D·V and Uᵀ·(D·V), and U itself. A LoRA: what the floor of the suite counts.
    """
    q = 2 * RANK
    lora = RANK * n * (m + n) + RANK * n * n + q * n * (3 * m + n)
    return {
        "basis": {"float64": 2.0 * m * n * n + 9.0 * n**3},
        "routing": {"float32": 6.0 * m * n * n},
        "LoRA": {"float32": 2.0 * lora},
    }


def layer_on(shape: tuple[int, int], device: torch.device, seed: int) -> tuple[Tensor, Tensor, list[LowRank]]:
    """W_s, the drift and two LoRAs."""
    m, n = shape
    W = made(max(shape), min(shape), str(device), seed)
    W = W if m >= n else W.mT.contiguous()
    g = torch.Generator(device).manual_seed(seed + 1)
    D = torch.randn(m, n, generator=g, device=device) * torch.rand(n, generator=g, device=device).square()
    D *= DRIFT * torch.linalg.vector_norm(W) / torch.linalg.vector_norm(D)
    loras = []
    for _ in range(2):
        B, A = torch.randn(m, RANK, generator=g, device=device), torch.randn(RANK, n, generator=g, device=device)
        loras.append(LowRank(B * (LORA * min(shape) ** 0.5 / float(torch.linalg.matrix_norm(B @ A))), A))
    return W, D, loras


def run_layer(shape: tuple[int, int], device: torch.device, seed: int) -> dict[str, float]:
    """Seconds of each stage for one layer, after its data is there."""
    W, D, (first, second) = layer_on(shape, device, seed)
    took = {}
    took["basis"], basis = seconds(lambda: decompose(W), device)
    took["routing"], routing = seconds(lambda: Layer(first, D, basis).routing(), device)

    def moved(lora: LowRank) -> LowRank:
        update = casa(Layer(lora, D, basis, None, routing), PUBLISHED_CODE)
        return update.factorized(RANK, torch.Generator().manual_seed(seed))

    took["LoRA"], low = seconds(lambda: moved(first), device)
    took["a further LoRA"], _ = seconds(lambda: moved(second), device)
    if not torch.isfinite(low.B).all():
        raise ArithmeticError(f"a layer of {shape} gave no numbers")
    return took


def measured(size: str, device: torch.device, blocks: int, sample: int) -> dict[str, Any]:
    """Stages summed over the sampled blocks, brought to all; their shares of the roofline; the peak of memory."""
    shapes = block(size)
    speeds = roofline(min(shapes[0]), device)
    run_layer(shapes[0], device, 99)  # libraries are loaded, kernels chosen
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    layers = [(shape, run_layer(shape, device, number)) for number in range(sample) for shape in shapes]
    stages = {name: sum(took[name] for _, took in layers) * blocks / sample for name in layers[0][1]}
    ideal = dict.fromkeys(stages, 0.0)
    for shape in shapes:
        for name, work in least(max(shape), min(shape)).items():
            ideal[name] += blocks * sum(operations / speeds[dtype] for dtype, operations in work.items())
    ideal["a further LoRA"] = ideal["LoRA"]
    return {
        "machine": machine(),
        "size": size,
        "blocks": blocks,
        "sampled": sample,
        "roofline": speeds,
        "seconds": stages,
        "share of the roofline": {name: ideal[name] / stages[name] for name in stages},
        "whole": sum(stages[name] for name in ("basis", "routing", "LoRA")),
        "peak GB": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
        "targets": TARGETS,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="14b", help="1.3b, 14b or a width")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--sample", type=int, default=1, help="blocks that are really run")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    result = measured(given.size, torch.device(given.device), given.blocks, min(given.sample, given.blocks))
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / f"card-{given.device}-{given.size}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
