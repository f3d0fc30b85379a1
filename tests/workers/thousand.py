"""A thousand tiny LoRAs, some broken, by a batch: time, memory, what a part costs beside its mathematics.

    python -m tests.workers.thousand --loras 1000 --broken 30 --workers 1 2

Layers are tiny, so nearly all of it is the protocol's own: opening, naming, writing, gathering. Prints a line of JSON
for each number of workers.
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
from pathlib import Path

from loraport.transfers.layer import LayerTransfer
from tests import tiny
from tests.transfers.models import Family, make_family

LAYERS = ("self_attn.q", "self_attn.o", "cross_attn.k", "ffn.0")


def make_loras(folder: Path, count: int, broken: int) -> Family:
    """Write a family and so many LoRAs of four layers each, of which every so-many-th is cut off."""
    family = make_family(folder, blocks=1)
    names = [name for name in tiny.lora_factors(family.source_state) if name.endswith(LAYERS)]
    for number in range(count):
        path = folder / "loras" / f"{number // 100:02}" / f"style{number:04}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        factors = tiny.lora_factors(family.source_state, seed=number, rank=2)
        tiny.write_lora(path, {name: factors[name] for name in names})
        if broken and number % (count // broken) == 1 and number // (count // broken) < broken:
            path.write_bytes(path.read_bytes()[:-7])
    return family


def run(family: Family, out: Path, workers: int) -> dict[str, float]:
    """Run a batch as a user does, and measure it."""
    words = ["batch", family.folder / "loras", "--source", family.source, "--target", family.target, "-o", out,
             "--no-cache", "--device", "cpu", "--workers", workers, "--keep-going", "--json", "-q",
             "--events", out.with_suffix(".jsonl")]  # fmt: skip
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "loraport", *map(str, words)], capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    told = json.loads(done.stdout)
    parts = [
        one
        for line in out.with_suffix(".jsonl").read_text().splitlines()
        if (one := json.loads(line))["event"] == "part"
    ]
    work = max(one["time"] for one in parts) - min(one["time"] for one in parts)
    return {
        "workers": workers, "exit": done.returncode, "failures": len(told["failures"]), "parts": len(parts),
        "wall_s": wall, "from_first_to_last_part_s": work,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "largest_process_mb": after.ru_maxrss / 1e3, "parts_per_s": len(parts) / work,
        "ms_a_part": 1e3 * sum(one["seconds"] for one in parts) / len(parts),
    }  # fmt: skip


def overhead(family: Family, out: Path, count: int) -> dict[str, float]:
    """Return the CPU milliseconds of a part that are not the transfer of its layer, in one process."""
    from loraport.batches.jobs import Request, plan_jobs
    from loraport.inputs.config import TransferConfig
    from loraport.objects.open import open_objects
    from loraport.workers.begin import begin_run
    from loraport.workers.machine import Machine
    from loraport.workers.models import OpenModels
    from loraport.workers.plan import make_plan_of_run
    from loraport.workers.work import Worker

    places = [str(path) for path in sorted((family.folder / "loras").rglob("*.safetensors"))[:count]]
    jobs = plan_jobs(places, Request(TransferConfig("", family.source, family.target, str(out))))
    plan = make_plan_of_run(jobs, str(out), Machine.here("cpu", 1))
    store = open_objects(str(out))
    begun = begin_run(store, plan, OpenModels(plan), keep_going=True)
    spent = {"transfer": 0.0}
    real = LayerTransfer.__call__

    def timed(*given):
        start = time.process_time()
        try:
            return real(*given)
        finally:
            spent["transfer"] += time.process_time() - start

    LayerTransfer.__call__ = timed
    times, parts = {"do": 0.0, "gather": 0.0, "open": 0.0}, 0
    worker = Worker(store, begun.plan, OpenModels(begun.plan))
    worker.look()
    for wave in begun.plan.waves:
        start = time.process_time()
        units = worker.units(wave.number)
        times["open"] += time.process_time() - start
        for unit in units:
            start = time.process_time()
            parts += worker.do(unit)
            times["do"] += time.process_time() - start
        start = time.process_time()
        results = [worker.gather(job) for job in worker.whole(wave.number)]
        times["gather"] += time.process_time() - start
    LayerTransfer.__call__ = real
    worker.claims.close()
    return {
        "loras": len(results) if len(begun.plan.waves) == 1 else len(begun.plan.jobs), "parts": parts,
        "ms_a_part_beside_its_mathematics": 1e3 * (times["do"] - spent["transfer"]) / parts,
        "ms_a_part_of_mathematics": 1e3 * spent["transfer"] / parts,
        "ms_a_lora_to_open": 1e3 * times["open"] / len(begun.plan.jobs),
        "ms_a_lora_to_gather": 1e3 * times["gather"] / len(begun.plan.jobs),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loras", type=int, default=1000)
    parser.add_argument("--broken", type=int, default=30)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        family = make_loras(Path(folder), given.loras, given.broken)
        print(json.dumps(overhead(family, Path(folder) / "inside", 60)), flush=True)
        for workers in given.workers:
            print(json.dumps(run(family, Path(folder) / f"out{workers}", workers)), flush=True)


if __name__ == "__main__":
    main()
