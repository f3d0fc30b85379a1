"""The simulation beside real runs on this machine: one worker and two, one LoRA and several, in CPU and wall seconds.

    python -m benchmarks.scale_check [--width 768] [--blocks 2] [--loras 4]

Runs with one worker give what a start takes, what a layer takes once and what a LoRA takes; the layers' table
(`estimates.layer_cost`) says how that divides among layers. From this the simulation tells what two workers take, which
is then measured. Other work on the machine lengthens the wall time and hardly the CPU time, so both are given. Writes
results/scale-check.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.processes import machine
from benchmarks.scale import RESULTS, Shape, Site, measured, played
from benchmarks.synthetic import config_of
from safetensors.torch import load_file, save_file

from loraport.estimates.layer_cost import PROCESSOR


def cpu_and_wall(command: list[str]) -> tuple[float, float]:
    """Run a command; return CPU seconds of it and of all its processes, and wall seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, time.perf_counter() - start


def batch(folder: Path, name: str, loras: int, workers: int, *words: str) -> tuple[float, float]:
    """Transfer so many LoRAs with so many workers, nothing being there before."""
    given = [str(folder / f"lora{number}.safetensors") for number in range(loras)]
    models = ["--source", str(folder / "source"), "--target", str(folder / "target")]
    more = ["-o", str(folder / name), "--no-cache", "--workers", str(workers), "--device", "cpu", "-q", *words]
    return cpu_and_wall([sys.executable, "-m", "loraport", "batch", *given, *models, *more])


def made(folder: Path, width: str, blocks: int, loras: int) -> None:
    """Write a pair and LoRAs that differ in their signs."""
    command = ["-m", "benchmarks.synthetic", str(folder), "--size", width, "--blocks", str(blocks)]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    first = load_file(folder / "lora.safetensors")
    for number in range(loras):
        scale = 1.0 + number / 8
        save_file({key: (one * scale).contiguous() for key, one in first.items()}, folder / f"lora{number}.safetensors")


def shapes_of_blocks(width: str, blocks: int) -> list[Shape]:
    config = config_of(width)
    n, wide = config["num_attention_heads"] * config["attention_head_dim"], config["ffn_dim"]
    return ([(n, n)] * 8 + [(wide, n), (n, wide)]) * blocks


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", default="768")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--loras", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, load = Path(place), os.getloadavg()
        made(folder, given.width, given.blocks, given.loras)
        smallest = batch(folder, "smallest", 1, 1, "--include", "blocks.0.self_attn.q")
        one = batch(folder, "one", 1, 1)
        many = batch(folder, "many", given.loras, 1)
        two = batch(folder, "two", given.loras, 2)
    table = measured(shapes := shapes_of_blocks(given.width, given.blocks), PROCESSOR)
    own = (many[0] - one[0]) / (given.loras - 1)
    # Of the smallest run one layer is work, by the table; the rest is two programs that start: one listens, one works.
    layer = (table[0].shared + table[0].own) / sum(each.shared + each.own for each in table)
    start = (smallest[0] - layer * one[0]) / (1 - layer)
    shared = one[0] - own - start
    scales = shared / sum(each.shared for each in table), own / sum(each.own for each in table)
    layers = [replace(each, shared=each.shared * scales[0], own=each.own * scales[1]) for each in table]
    # Nothing but the work: no card is started, no store is far, and nothing is gathered elsewhere.
    site = Site(start=0.0, read=1e12, write=1e12, request=0.0, spread=0.0, memory=1e15)
    found = {workers: played(shapes, layers, workers, given.loras, site) for workers in (1, 2)}
    told: dict[str, Any] = {
        "machine": machine(),
        "load before": load,
        "settings": vars(given),
        "start_cpu_s": start,
        "a_lora_cpu_s": own,
        "shared_cpu_s": shared,
        "two_workers_cpu_s": {"said": start * 1.5 + found[2].busy, "measured": two[0]},
        "times_faster": {
            "said": (start + found[1].seconds) / (start + found[2].seconds),
            "measured, wall": many[1] / two[1],
            "idle, said": found[2].idle,
        },
        "wall_s": {"smallest": smallest[1], "one": one[1], "many": many[1], "two": two[1]},
        "cpu_s": {"smallest": smallest[0], "one": one[0], "many": many[0], "two": two[0]},
    }
    (RESULTS / "scale-check.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
