"""The whole program on one device in five minutes: rates, times from file to file, shares of the roofline, agreement.

    benchmarks/card.sh                              (on a card; DEVICE, SIZES, PUBLISHED and FOLDER set it up)
    python -m benchmarks.whole /tmp/whole --device cpu --sizes 64 --agreement 48              (to see that it runs)

Models are made on the device (`drivers.made`: Wan's shapes, a hard spectrum), a few blocks of each size, and times are
brought to all blocks: the start of the program once, the rest by blocks. Per size the command line runs cold, warm,
again, with three LoRAs, and without a cache, which must give the same bytes. In one process a cold run and further
LoRAs follow with one, two and four layers in work at a time, which must give the same bytes, too; on a card a run must
do with 8 GB. The authors' code runs beside it, where `--published` names a checkout, on as many blocks, with what it
prepares. Then every method's dense update is compared with the processor's on small layers. What does not fit into
`--minutes` is left out, and the table says so. Writes RESULTS/whole-DEVICE.json and .md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from benchmarks.card import block
from benchmarks.card import measured as stages_of
from benchmarks.drivers import made
from benchmarks.processes import machine, measured
from benchmarks.synthetic import DRIFT, LORA, RANK
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraport.inputs.config import RankRule, TransferConfig
from loraport.inputs.open import prepare
from loraport.methods.recipes import METHODS
from loraport.methods.settings import PUBLISHED_CODE
from loraport.parallel.at_once import AT_MOST, READERS, read_ahead
from loraport.transfers.layer_source import LayerSource
from loraport.transfers.run import transfer, transfer_many

RESULTS = Path(__file__).parent / "results"
NAMES = (*(f"{part}_attn.{x}" for part in ("self", "cross") for x in "qkvo"), "ffn.0", "ffn.2")
BLOCKS = {"1.3b": (6, 30), "14b": (1, 40)}
"""Size -> blocks that are made, and that the model has."""
TARGETS = {"1.3b": {"cold": 15.0, "warm": 8.0, "further": 0.6}, "14b": {"cold": 180.0, "warm": 60.0, "further": 4.0}}
RATE, MEMORY, RELATIVE, ENERGY = 3.0, 8.0, 1e-3, 1e-3
"""Targets: gigabytes a second read, of the card's memory; differences of dense updates and of energies kept."""
LORAS = 3
TOGETHER = (1, 2, 4)
"""Layers in work at a time that are compared."""
FEW_BLOCKS = 2
"""Blocks on which they are, at most."""
SHORTEST = 0.3
"""Seconds beyond the start of a program below which a ratio tells nothing."""


@dataclass
class Table:
    """Rows as they come, printed at once, and what was left out."""

    deadline: float
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def add(self, what: str, value: str, target: str = "–", met: bool | None = None) -> None:
        """Add a row, and print it."""
        self.rows.append((what, value, target, {None: "–", True: "met", False: "missed"}[met]))
        print(" | ".join(self.rows[-1]), flush=True)

    def has(self, seconds: float, what: str) -> bool:
        """Return whether there is time for it; else say that it was left out."""
        if time.monotonic() + seconds < self.deadline:
            return True
        self.add(what, "left out: no time", met=None)
        return False

    def markdown(self) -> str:
        """Return the table."""
        lines = ["| what | measured | target | |", "|---|---|---|---|"]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows)]) + "\n"


def layers_of_blocks(size: str, blocks: int, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Every layer of some blocks: one matrix a shape, its rows and columns in another order for each layer."""
    kinds: dict[tuple[int, int], Tensor] = {}
    for number in range(blocks):
        for name, (m, n) in zip(NAMES, block(size), strict=True):
            if (m, n) not in kinds:
                W = made(max(m, n), min(m, n), str(device), 1)
                kinds[m, n] = W if m >= n else W.mT.contiguous()
            g = torch.Generator(device).manual_seed(len(NAMES) * number + NAMES.index(name))
            rows, columns = (torch.randperm(k, generator=g, device=device) for k in (m, n))
            yield f"blocks.{number}.{name}", kinds[m, n][rows][:, columns]


def write_pair(folder: Path, size: str, blocks: int, device: torch.device) -> int:
    """Write a source in fp32, a target in bf16 and some LoRAs; return the bytes of both models."""
    before, after, loras = {}, {}, [dict[str, Tensor]() for _ in range(LORAS)]
    for number, (name, W) in enumerate(layers_of_blocks(size, blocks, device)):
        g = torch.Generator(device).manual_seed(number + 1000)
        X = torch.randn(W.shape, generator=g, device=device) * torch.rand(W.shape[1], generator=g, device=device) ** 2
        X = W + X * (DRIFT * torch.linalg.vector_norm(W) / torch.linalg.vector_norm(X))
        before[f"{name}.weight"], after[f"{name}.weight"] = W.cpu().contiguous(), X.bfloat16().cpu()
        for lora in loras:
            B = torch.randn(W.shape[0], RANK, generator=g, device=device)
            A = torch.randn(RANK, W.shape[1], generator=g, device=device)
            B *= LORA * min(W.shape) ** 0.5 / torch.linalg.matrix_norm(B @ A)
            lora[f"diffusion_model.{name}.lora_A.weight"] = A.bfloat16().cpu()
            lora[f"diffusion_model.{name}.lora_B.weight"] = B.bfloat16().cpu()
    for kind, tensors in (("source", before), ("target", after)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(folder / kind / "diffusion_pytorch_model.safetensors"))
    for number, lora in enumerate(loras):
        save_file(lora, str(lora_of(folder, number)))
    return sum(X.nbytes for tensors in (before, after) for X in tensors.values())


def lora_of(folder: Path, number: int) -> Path:
    """Where a LoRA lies."""
    return folder / (f"lora-{number}.safetensors" if number else "lora.safetensors")


def command_line(folder: Path, device: str, name: str, *extra: str, loras: int = 1) -> dict[str, Any]:
    """One run of `loraport transfer` by the published code's settings: seconds, and the hash of what it wrote."""
    names = [lora_of(folder, number) for number in range(loras)]
    output = folder / (f"out-{name}.safetensors" if loras == 1 else f"out-{name}")
    command = [sys.executable, "-m", "loraport", "transfer", *map(str, names), "-o", str(output), "--overwrite",
               "--source", str(folder / "source"), "--target", str(folder / "target"), "--json",
               "--preset", "published-code", "--device", device, *extra]  # fmt: skip
    row = measured(command, threads=torch.get_num_threads())
    row["stages"] = json.loads(row.pop("stdout")).get("seconds", {})
    row["sha256"] = hashlib.sha256(output.read_bytes()).hexdigest() if output.is_file() else None
    return row


def config_of_folder(folder: Path, device: str, **changes: Any) -> TransferConfig:
    """The same as a configuration."""
    places = {name: str(folder / name) for name in ("source", "target")}
    return TransferConfig(
        str(folder / "lora.safetensors"), output=str(folder / "out-inside.safetensors"), device=device,
        **{**places, "cache": None, **changes},
    )  # fmt: skip


def reading_rate(folder: Path, device: str, size: int) -> float:
    """Gigabytes a second, read by several threads, hashed, converted, checked and compared on the device."""
    inputs = prepare(config_of_folder(folder, device))
    layers = LayerSource.open(inputs)
    start = time.perf_counter()
    for _, stored in read_ahead([job.name for job in inputs.plan.jobs], layers.load, READERS):
        layers.weights(stored)
    return size / 1e9 / (time.perf_counter() - start)


def files_to_files(
    table: Table, folder: Path, size: str, device: str, published: Path | None, blocks: int | None = None
) -> dict[str, Any]:
    """All runs of one size."""
    usual, all_blocks = BLOCKS.get(size, (1, 1))
    blocks = blocks or usual
    size_bytes = write_pair(folder, size, blocks, torch.device(device))
    times, targets, cache = all_blocks / blocks, TARGETS.get(size, {}), ["--cache", str(folder / "cache")]

    def whole(run: dict[str, Any]) -> float:
        """Seconds of all blocks: the start once."""
        return start + (run["wall_s"] - start) * times

    def timed(name: str, seconds: float) -> None:
        """A row about a time."""
        aim = targets.get(name)
        table.add(
            f"{size}, {name}", f"{seconds:.2f} s", f"≤ {aim:g} s" if aim else "–", seconds <= aim if aim else None
        )

    rate = reading_rate(folder, device, size_bytes)
    table.add(f"{size}, reading", f"{rate:.2f} GB/s", f"≥ {RATE:g} GB/s", rate >= RATE)
    runs = {"start": command_line(folder, device, "start", "--dry-run", *cache)}
    start = runs["start"]["wall_s"]
    table.add("start of the program", f"{start:.2f} s, {runs['start']['cpu_s']:.2f} s of the processor")
    for name in ("cold", "warm", "again"):
        runs[name] = command_line(folder, device, name, *cache)
        if name != "again":
            timed(name, whole(runs[name]))
    runs["several"] = command_line(folder, device, "several", *cache, loras=LORAS)
    timed("further", (runs["several"]["wall_s"] - runs["again"]["wall_s"]) / (LORAS - 1) * times)
    runs["no cache"] = command_line(folder, device, "no-cache", "--no-cache")
    hashes = {runs[name]["sha256"] for name in ("cold", "warm", "again", "no cache")}
    table.add(f"{size}, bytes of cold, warm, again, no cache", f"{len(hashes)} different", "1", len(hashes) == 1)
    together, few = None, min(FEW_BLOCKS, blocks)
    about = len(TOGETHER) * sum(runs[name]["wall_s"] - start for name in ("cold", "again", "several")) * few / blocks
    if table.has(about, f"{size}, layers at a time {', '.join(map(str, TOGETHER))}"):
        together = layers_at_a_time(table, folder, size, device, few, all_blocks / few)
    if device != "cpu" and table.has(30, f"{size}, memory of the card"):
        peak = peak_beside_others(folder, device) / 1e9
        table.add(f"{size}, on a card with {MEMORY:g} GB", f"at most {peak:.2f} GB", f"≤ {MEMORY:g} GB", peak <= MEMORY)
    if published is not None and table.has(60, f"{size}, against the published code"):
        against(table, folder, size, device, published, runs)
    return {"bytes": size_bytes, "blocks": blocks, "reading": rate, "runs": runs, "layers at a time": together}


def layers_at_a_time(
    table: Table, folder: Path, size: str, device: str, blocks: int, times: float
) -> dict[int, dict[str, float]]:
    """Cold, warm and with three LoRAs in this process, by each number of layers in work; all must write the same."""
    found: dict[int, dict[str, float]] = {}
    hashes = set()
    threads = torch.get_num_threads()
    for count in TOGETHER:
        cache = folder / f"cache-{count}"
        usual = config_of_folder(
            folder, device, cache=str(cache), settings=PUBLISHED_CODE, rank=RankRule("fixed", RANK),
            include=tuple(f"blocks.{number}." for number in range(blocks)),
        )  # fmt: skip
        configs = [
            replace(usual, lora=str(lora_of(folder, number)), output=str(folder / f"out-together-{number}.safetensors"))
            for number in range(LORAS)
        ]
        try:
            # a processor takes no more layers than it has threads; a card fewer, where its memory is too small
            torch.set_num_threads(max(threads, count) if device == "cpu" else threads)
            with patch.dict(AT_MOST, {torch.device(device).type: count}):
                took = found[count] = {
                    name: wall(partial(transfer_many, some))
                    for name, some in (("cold", configs[:1]), ("warm", configs[:1]), ("several", configs))
                }
        finally:
            torch.set_num_threads(threads)
        hashes.add(hashlib.sha256(Path(configs[0].output).read_bytes()).hexdigest())
        shutil.rmtree(cache, ignore_errors=True)
        further = (took["several"] - took["warm"]) / (LORAS - 1) * times
        table.add(f"{size}, layers at a time {count}, cold", f"{took['cold'] * times:.2f} s")
        table.add(f"{size}, layers at a time {count}, further", f"{further:.2f} s")
    table.add(f"{size}, bytes of all of them", f"{len(hashes)} different", "1", len(hashes) == 1)
    return found


def wall(work: Callable[[], Any]) -> float:
    """Seconds that it took, by the clock: a run has written its output when it returns."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_beside_others(folder: Path, device: str) -> int:
    """The most bytes that a run takes where something else has all but `MEMORY` of the card."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    others = torch.empty(max(0, int(free - MEMORY * 1e9)), dtype=torch.uint8, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    transfer(config_of_folder(folder, device))
    return torch.cuda.max_memory_allocated(device) - others.nbytes


def against(
    table: Table, folder: Path, size: str, device: str, published: Path, runs: dict[str, dict[str, Any]]
) -> None:
    """Run the authors' preparation and transfer on the same files; ratios of wall and CPU time, starts left out."""
    took: dict[str, dict[str, Any]] = {}
    for stage in ("start", "svd", "cfft", "transfer"):
        command = [sys.executable, "-m", "benchmarks.published", stage, str(folder), "--published", str(published)]
        took[stage] = measured([*command, "--device", device], threads=torch.get_num_threads())
        took[stage].pop("stdout")
    for what, stages in (("cold", ("svd", "cfft", "transfer")), ("warm", ("transfer",))):
        aim, row = {"cold": 4.5, "warm": 3.0}[what], f"{size}, {what} against the published code"
        clocks = ("wall_s", "cpu_s")
        theirs = [sum(took[stage][clock] - took["start"][clock] for stage in stages) for clock in clocks]
        ours = [runs[what][clock] - runs["start"][clock] for clock in clocks]
        if min(*theirs, *ours) < SHORTEST:
            table.add(row, "too short to tell", f"≥ {aim:g} ×")
            continue
        wall, busy = (one / other for one, other in zip(theirs, ours, strict=True))
        table.add(row, f"{wall:.1f} × wall, {busy:.1f} × CPU", f"≥ {aim:g} ×", wall >= aim)
    runs |= {f"published {stage}": row for stage, row in took.items()}


def agreement(table: Table, folder: Path, width: str, device: str) -> dict[str, Any]:
    """Every method's dense update, and the energy that rank 32 keeps, on the device and on the processor."""
    write_pair(folder, width, 1, torch.device("cpu"))
    found: dict[str, Any] = {}
    for method in METHODS:
        dense, kept = [], []
        for place in ("cpu", device):
            transfer(config_of_folder(folder, place, method=method, as_diff=True, dtype="fp32"))
            dense.append(load_file(folder / "out-inside.safetensors"))
            result = transfer(config_of_folder(folder, place, method=method))
            kept.append({row.name: row.kept_energy for row in result.layers if row.kept_energy is not None})
        off = [float((dense[1][key] - X).norm() / X.norm()) for key, X in dense[0].items() if X.any()]
        energies = [abs(kept[1].get(name, 0.0) - share) for name, share in kept[0].items()]
        found[method] = {"relative": max(off, default=0.0), "energy": max(energies, default=0.0)}
    for what, most in (("relative", RELATIVE), ("energy", ENERGY)):
        worst = max(found, key=lambda method: found[method][what])
        value = found[worst][what]
        table.add(f"agreement with the processor, {what}", f"{value:.1e} ({worst})", f"≤ {most:g}", value <= most)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", default="1.3b,14b", help="1.3b, 14b or a width, with commas")
    parser.add_argument("--blocks", type=int, help="how many are made; a model's times are brought to all of its own")
    parser.add_argument("--agreement", default="256", help="width of the layers that are compared with the processor's")
    parser.add_argument("--published", type=Path, help="a checkout of the authors' repository")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    table = Table(time.monotonic() + 60 * given.minutes)
    result: dict[str, Any] = {"machine": machine(), "sizes": {}}
    result["agreement"] = agreement(table, given.folder / "agreement", given.agreement, given.device)
    for size in given.sizes.split(","):
        if table.has(60, f"{size}, files to files"):
            folder = given.folder / size
            result["sizes"][size] = files_to_files(table, folder, size, given.device, given.published, given.blocks)
        if table.has(30, f"{size}, shares of the roofline"):
            blocks = BLOCKS.get(size, (1, 1))[1]
            stages = stages_of(size, torch.device(given.device), blocks, 1)
            for name, share in stages["share of the roofline"].items():
                table.add(f"{size}, {name}, data on the device", f"{stages['seconds'][name]:.2f} s, {share:.0%}")
            result["sizes"].setdefault(size, {})["stages"] = stages
    result["rows"] = table.rows
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / f"whole-{given.device}.json").write_text(json.dumps(result, indent=1) + "\n")
    (given.results / f"whole-{given.device}.md").write_text(table.markdown())
    print(table.markdown())


if __name__ == "__main__":
    main()
