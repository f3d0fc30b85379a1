"""Every method beside CASA at real layer shapes, and what one more LoRA or method costs in the same pass.

    python -m benchmarks.synthetic /tmp/wan --blocks 1 && python -m benchmarks.methods /tmp/wan

One layer of each shape in a block, with its bases in the cache, each run in a process of its own: CPU time and peak
memory. A block of Wan 2.1 1.3B is 8 square layers, a tall and a wide one. Writes benchmarks/results/methods.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from loraport.inputs.config import TransferConfig
from loraport.methods.recipes import METHODS
from loraport.methods.settings import ProloraSettings
from loraport.transfers.run import transfer_many

RESULTS = Path(__file__).parent / "results"
SHAPES = {
    "square": ("blocks.0.self_attn.q", 8),
    "tall": ("blocks.0.ffn.0", 1),
    "wide": ("blocks.0.ffn.2", 1),
}
"""Shape -> (a layer, how many of them a block has)."""


def configs(folder: Path, output: Path, layer: str, loras: int, methods: list[str]) -> list[TransferConfig]:
    """The runs of one pass: the LoRA as often as asked, by each method, on one layer."""
    return [
        TransferConfig(
            lora=str(folder / ("lora.safetensors" if number == 0 else f"lora-{number}.safetensors")),
            source=str(folder / "source"),
            target=str(folder / "target"),
            output=str(output / f"{number}-{place}.safetensors"),
            method=method,
            include=(layer,),
            cache=str(folder / "cache"),
            settings=ProloraSettings(phi_min=0.0) if method == "prolora" else None,
        )
        for number in range(loras)
        for place, method in enumerate(methods)
    ]


def measured(folder: Path, layer: str, loras: int, methods: list[str]) -> dict[str, float]:
    """CPU seconds and peak resident bytes of one pass, in a process of its own (forked: imports are paid before)."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def work() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as output:
            start = time.process_time()
            transfer_many(configs(folder, Path(output), layer, loras, methods))
            there.send((time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))

    process = context.Process(target=work)
    process.start()
    seconds, peak = here.recv()
    process.join()
    return {"cpu_s": round(seconds, 2), "peak_rss_bytes": peak}


def row(folder: Path, loras: int, methods: list[str]) -> dict[str, Any]:
    """One pass on each shape, and what that makes for a block."""
    shapes = {shape: measured(folder, layer, loras, methods) for shape, (layer, _) in SHAPES.items()}
    block = sum(count * shapes[shape]["cpu_s"] for shape, (_, count) in SHAPES.items())
    return {
        "shapes": shapes,
        "block_cpu_s": round(block, 2),
        "peak_rss_bytes": max(one["peak_rss_bytes"] for one in shapes.values()),
    }


def twins(folder: Path, count: int) -> None:
    """More LoRAs of the same shapes, with other numbers."""
    from safetensors.torch import load_file, save_file

    first = load_file(folder / "lora.safetensors")
    for number in range(1, count):
        turned = {key: tensor.roll(number, dims=0).contiguous() for key, tensor in first.items()}
        save_file(turned, folder / f"lora-{number}.safetensors")


def machine() -> dict[str, Any]:
    """Where this was measured, and how busy that was."""
    return {
        "cores": os.cpu_count(),
        "cpu": platform.processor() or platform.machine(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "note": "CPU time of single-threaded runs; the machine was shared, so wall time would say nothing",
    }


def main() -> None:
    """Warm the cache, then every method, then passes of several."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--loras", type=int, default=4, help="the largest number of LoRAs in one pass")
    given = parser.parse_args()
    torch.set_num_threads(1)
    twins(given.folder, given.loras)
    print("bases", row(given.folder, 1, ["prolora"]), flush=True)
    methods = {name: row(given.folder, 1, [name]) for name in METHODS}
    casa = methods["casa"]["block_cpu_s"]
    for name, one in methods.items():
        one["ratio"] = round(one["block_cpu_s"] / casa, 3)
        print(name, json.dumps(one), flush=True)
    passes = {
        "2 LoRAs": row(given.folder, 2, ["casa"]),
        f"{given.loras} LoRAs": row(given.folder, given.loras, ["casa"]),
        "casa, restore-only": row(given.folder, 1, ["casa", "restore-only"]),
        "casa, core, direct": row(given.folder, 1, ["casa", "core", "direct"]),
    }
    extra = {"2 LoRAs": 1, f"{given.loras} LoRAs": given.loras - 1}
    for name, one in passes.items():
        one["further"] = round((one["block_cpu_s"] - casa) / casa / extra.get(name, 1), 3)
        print(name, json.dumps(one), flush=True)
    RESULTS.mkdir(exist_ok=True)
    result = {"machine": machine(), "methods": methods, "passes": passes}
    (RESULTS / "methods.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
