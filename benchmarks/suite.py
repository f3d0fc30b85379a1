"""Everything in one run: our transfer cold and warm, the published pipeline and the floor, interleaved; then growth.

    python -m benchmarks.suite results/bench --published ../CASA            (make bench PUBLISHED=../CASA)
    python -m benchmarks.suite results/bench --device cuda --size 14b --blocks 40

Synthetic models at real layer shapes (benchmarks/synthetic.py). Every round runs each contender once, one after the
other, so that a busy machine is busy for all of them; a ratio is the median over rounds of ratios within a round, of
wall and of CPU time, less what starting the interpreter and its imports takes (`start`: a dry run; of one block that is
half of everything, of thirty a fiftieth).
Writes benchmarks/results/NAME.json, .md and .png. Without --published the first half of the targets stays open.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.processes import machine, measured
from benchmarks.synthetic import layers_of, prepared
from benchmarks.tables import SEVERAL, write_results

RESULTS = Path(__file__).parent / "results"
SAME_SETTINGS = ["--preset", "published-code"]
"""What makes our run the published code's: its thresholds, its directions, its rank of 32."""


def ours(given: argparse.Namespace, name: str, *extra: str, threads: int, cache: bool = True, loras: int = 1) -> Any:
    """One run of the command line, files to file."""
    folder: Path = given.folder
    names = [folder / (f"lora-{number}.safetensors" if number else "lora.safetensors") for number in range(loras)]
    output = folder / f"out-{name}{'' if loras > 1 else '.safetensors'}"
    place = ["--cache", str(folder / "cache")] if cache else ["--no-cache"]
    command = [sys.executable, "-m", "loraport", "transfer", *map(str, names), "--json", "-o", str(output),
               "--source", str(folder / "source"), "--target", str(folder / "target"),
               "--device", given.device, *place, *extra]  # fmt: skip
    row = measured(command, threads=threads)
    result = json.loads(row.pop("stdout"))
    row["stages"] = result.get("seconds", {})
    if loras == 1 and output.is_file() and "--dry-run" not in extra:
        row["kept_energy"] = result["kept_energy"]
        row["median_k"] = median(layer["k"] or 0 for layer in result["layers"])
        row["sha256"] = hashlib.sha256(output.read_bytes()).hexdigest()
    return row


def published(given: argparse.Namespace, stage: str, *, threads: int) -> Any:
    """One stage of the authors' pipeline."""
    command = [sys.executable, "-m", "benchmarks.published", stage, str(given.folder),
               "--published", str(given.published), "--device", given.device]  # fmt: skip
    row = measured(command, threads=threads)
    row.pop("stdout")
    return row


def floor(given: argparse.Namespace, shapes: list[tuple[int, int]], *, threads: int) -> Any:
    """Bare products and reads."""
    command = [sys.executable, "-m", "benchmarks.floor", str(given.folder), "--layers", json.dumps(shapes),
               "--device", given.device]  # fmt: skip
    return json.loads(measured(command, threads=threads)["stdout"])


def one_round(given: argparse.Namespace, shapes: list[tuple[int, int]], number: int) -> dict[str, Any]:
    """Every contender once; the published preparations in the first rounds only, since they take minutes."""
    both, same = given.threads, SAME_SETTINGS
    shutil.rmtree(given.folder / "cache", ignore_errors=True)
    row = {"start": ours(given, "start", "--dry-run", threads=both), "cold": ours(given, "cold", *same, threads=both)}
    if given.published:
        row["published start"] = published(given, "start", threads=both)
    if given.published and number < given.cold_rounds:
        row["published svd"] = published(given, "svd", threads=both)
        row["published cfft"] = published(given, "cfft", threads=both)
    if given.published:
        row["published transfer"] = published(given, "transfer", threads=both)
    row["warm"] = ours(given, "warm", *same, threads=both)
    row["floor"] = floor(given, shapes, threads=both)
    row["no cache"] = ours(given, "no-cache", *same, threads=both, cache=False)
    row["warm, defaults"] = ours(given, "defaults", threads=both)
    row[f"warm, {SEVERAL} LoRAs"] = ours(given, "several", *same, threads=both, loras=SEVERAL)
    row["warm, one thread"] = ours(given, "one", *same, threads=1)
    row["floor, one thread"] = floor(given, shapes, threads=1)
    row["direct"] = ours(given, "direct", "--method", "direct", threads=both)
    for name, run in row.items():
        print(number, name, json.dumps({key: run[key] for key in ("wall_s", "cpu_s") if key in run}), flush=True)
    return row


def sizes_on_disk(folder: Path) -> dict[str, int]:
    """Bytes of our cache and of the published pickles."""
    cache = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    pickles = sum(path.stat().st_size for path in folder.glob("published-*.pkl"))
    return {"ours": cache, "published": pickles}


def published_bytes(shapes: list[tuple[int, int]]) -> int:
    """What its pickles hold by shapes: full U and Vh and a dense C_fft in bfloat16."""
    return sum(2 * (m * m + n * n + m * n + min(m, n)) for m, n in shapes)


def main() -> None:
    """Models, rounds, growth, results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--published", type=Path, help="a checkout of the authors' repository")
    parser.add_argument("--size", default="1.3b", help="1.3b, 14b or a width")
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold-rounds", type=int, default=3, help="in how many the published bases are made")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--growth", type=int, default=0, help="width of the models of the growth curves; 0 is none")
    parser.add_argument("--name", default="suite", help="of the files in benchmarks/results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    table = prepared(given.folder, given.size, given.blocks, loras=SEVERAL)
    shapes = [shape for _, shape in layers_of(table).values()]
    before = machine()
    rounds = [one_round(given, shapes, number) for number in range(given.rounds)]
    result = {
        "machine": before,
        "settings": {
            key: str(value) for key, value in vars(given).items() if key not in ("folder", "published", "results")
        },
        "rounds": rounds,
        "disk": {**sizes_on_disk(given.folder), "published_by_shapes": published_bytes(shapes)},
    }
    if given.growth:
        from benchmarks.growth import growth

        result["growth"] = growth(given)
    write_results(given.results, given.name, result)


if __name__ == "__main__":
    main()
