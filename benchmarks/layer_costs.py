"""Measure what one layer costs, by shape, stage and method: the table behind `loraport.estimates`.

    python -m benchmarks.layer_costs --shape 1536x1536 [--rank 32] >> costs.jsonl
    python -m benchmarks.layer_costs --fit costs.jsonl

One process a shape, so that its peak of memory is that of the shape; one thread, CPU seconds, so that other work on the
machine hardly counts. Prints one JSON object a line: stage seconds cold and warm, bytes of the cache's entries, peak
memory beyond that of the start. `--fit` prints the coefficients of `Growth` for each stage, by least squares of the
relative error without negative coefficients, and the worst error.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from benchmarks.synthetic import LORA, drifted, generator, weight
from safetensors.torch import save_file
from scipy.optimize import nnls

from loraport import stopwatch
from loraport.compute import peak_rss_bytes
from loraport.inputs.config import TransferConfig
from loraport.transfers.run import transfer

LAYER = "blocks.{}.self_attn.{}"
NAMES = [LAYER.format(block, letter) for block in range(2) for letter in "qkvo"]
METHODS = ("casa", "undo", "core", "prolora", "lora-x", "undo-matched", "drift-orthogonal", "direct")


def made(folder: Path, shape: tuple[int, int], rank: int, layers: int) -> None:
    """Write a source in fp32, a target in bf16 and a LoRA, of so many layers of one shape."""
    names = NAMES[:layers]
    before = {f"{name}.weight": weight(name, shape) for name in names}
    save_file(before, str(folder / "source.safetensors"))
    after = {name: drifted(name, W).bfloat16() for name, W in before.items()}
    save_file(after, str(folder / "target.safetensors"))
    factors = {}
    for name in names:
        g = generator(name, 3)
        B, A = torch.randn(shape[0], rank, generator=g), torch.randn(rank, shape[1], generator=g)
        B *= LORA * min(shape) ** 0.5 / (B @ A).norm()
        factors[f"diffusion_model.{name}.lora_A.weight"] = A.bfloat16()
        factors[f"diffusion_model.{name}.lora_B.weight"] = B.bfloat16()
    save_file(factors, str(folder / "lora.safetensors"))


def main() -> None:
    """Measure one shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="384x384")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--folder", help="where made files are; else they are made, and memory is not measured")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--fit", help="a file of lines that this program printed")
    given = parser.parse_args()
    if given.fit is not None:
        _print_fits([json.loads(line) for line in Path(given.fit).read_text().splitlines()])
        return
    rows, columns = map(int, given.shape.split("x"))
    torch.set_num_threads(1)
    setattr(stopwatch, "time", SimpleNamespace(perf_counter=time.thread_time))  # noqa: B010
    if given.folder is None:
        with tempfile.TemporaryDirectory() as folder:
            made(Path(folder), (rows, columns), given.rank, given.layers)
            _measure(Path(folder), given)
        return
    place = Path(given.folder)
    if not (place / "lora.safetensors").exists():
        place.mkdir(parents=True, exist_ok=True)
        made(place, (rows, columns), given.rank, given.layers)
        return
    _measure(place, given)


def _measure(folder: Path, given: argparse.Namespace) -> None:
    files = {name: str(folder / f"{name}.safetensors") for name in ("lora", "source", "target")}
    cache, start = folder / "cache", peak_rss_bytes()
    facts: dict[str, object] = {"shape": given.shape, "rank": given.rank, "layers": given.layers}
    for method in given.methods.split(","):
        for state in ("cold", "warm") if method == "casa" else ("warm",):
            config = TransferConfig(
                files["lora"],
                files["source"],
                files["target"],
                output=str(folder / "out.safetensors"),
                method=method,
                cache=str(cache),
            )
            result = transfer(config)
            stages = ("read", "basis", "routing", "transfer")
            facts[f"{method} {state}"] = {s: round(result.seconds[s] / given.layers, 4) for s in stages}
            if state == "cold":
                facts["memory"] = peak_rss_bytes() - start
                facts["cache"] = sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) // given.layers
    print(json.dumps(facts))


GROWS = {"each": (0, 0), "of_mn": (1, 1), "of_nn": (0, 2), "of_mnn": (1, 2), "of_nnn": (0, 3)}
"""Coefficient -> the powers of the longer and of the shorter side."""


def _print_fits(lines: list[dict[str, Any]]) -> None:
    sizes = [sorted(map(int, line["shape"].split("x"))) for line in lines]
    square = [n == m for n, m in sizes]
    for state in ("cold", "warm"):
        for stage in ("read", "basis"):
            _print_fit(f"{stage} {state}", sizes, [line.get(f"casa {state}", {}).get(stage) for line in lines])
        for kind, of_kind in (("square", True), ("tall", False)):
            seconds = [line.get(f"casa {state}", {}).get("routing") for line in lines]
            chosen = [s if is_square == of_kind else None for s, is_square in zip(seconds, square, strict=True)]
            _print_fit(f"routing {kind} {state}", sizes, chosen)
    for method in METHODS:
        _print_fit(f"transfer {method}", sizes, [line.get(f"{method} warm", {}).get("transfer") for line in lines])
    _print_fit("memory", sizes, [line["memory"] for line in lines])


def _print_fit(title: str, sizes: list[list[int]], values: list[float | None]) -> None:
    known = [(n, m, value) for (n, m), value in zip(sizes, values, strict=True) if value]
    if not known:
        return
    table = np.array([[m**a * n**b / value for a, b in GROWS.values()] for n, m, value in known])
    scale = table.max(axis=0)
    found = nnls(table / scale, np.ones(len(known)))[0] / scale
    worst = max(abs(table @ found - 1))
    words = ", ".join(f"{name}={value:.3g}" for name, value in zip(GROWS, found, strict=True) if value)
    print(f"{title}: Growth({words})  # off by at most {worst:.0%} over {len(known)} shapes")


if __name__ == "__main__":
    main()
