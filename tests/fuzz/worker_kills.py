"""Kill workers and the command that started them, at any time, until a batch is done; compare with `transfer`.

    python -m tests.fuzz.worker_kills --kills 100 --seed 3

A killed worker has to be replaced by the command, a killed command by the same command again; the results must have the
bytes that `transfer` writes, and no part may be made that was there already.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from loraport.transfers.run import transfer_many
from tests import tiny
from tests.transfers.models import Family, make_family

START = 120.0
"""Seconds that a command may take until something happens."""


@dataclass
class Told:
    """What was seen."""

    workers: int = 0
    commands: int = 0
    starts: int = 0
    parts: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    died: int = 0


def batch_family(folder: Path, count: int) -> tuple[Family, dict[str, bytes]]:
    """Return a family with so many LoRAs, and what `transfer` makes of them."""
    family = make_family(folder, blocks=1)
    configs = []
    for number in range(count):
        path = folder / "loras" / f"style{number:03}.safetensors"
        path.parent.mkdir(exist_ok=True)
        tiny.write_lora(path, tiny.lora_factors(family.source_state, seed=number, rank=2))
        configs.append(family.config(f"alone/{path.stem}-casa.safetensors", lora=str(path), dtype="bf16", cache=None))
    transfer_many(configs)
    return family, results(folder / "alone")


def results(folder: Path) -> dict[str, bytes]:
    """Return the results in a folder: name -> bytes."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def command(family: Family, out: Path, events: Path, workers: int) -> subprocess.Popen:
    """Start the batch."""
    words = ["batch", family.folder / "loras", "--source", family.source, "--target", family.target, "-o", out,
             "--no-cache", "--device", "cpu", "--workers", workers, "--events", events, "-q"]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "loraport", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def children(process: int) -> list[int]:
    """Return the processes that a process has started and that are alive."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == process and state != "Z":
                found.append(int(entry.name))
    return found


def kill_until_done(
    family: Family, out: Path, kills: int, choose: random.Random, *, workers: int = 2, most: float = 1.5
) -> Told:
    """Kill so many processes, then let the command end by itself; return what was seen."""
    events, told = out.with_suffix(".jsonl"), Told()
    begun = time.monotonic()
    running = command(family, out, events, workers)
    told.starts = 1
    left = kills
    while True:
        try:
            if left and choose.random() < 0.8:
                wait_for_work(running, events)
            code = running.wait(choose.uniform(0.0, most) if left else START * 10)
            if code != 0 or left == 0 or done(out, family):
                assert code == 0, (code, running.stderr.read().decode())
                break
        except subprocess.TimeoutExpired:
            pass
        if not left:
            raise AssertionError("the command does not end")
        victims = [(running.pid, "command"), *((one, "worker") for one in children(running.pid))]
        victim, kind = choose.choice(victims)
        orphans = [one for one, what in victims if what == "worker"]
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
        left -= 1
        if kind == "worker":
            told.workers += 1
            continue
        told.commands += 1
        running.wait()
        running.stderr.close()
        if choose.random() < 0.5:  # else the next command meets the workers of the dead one
            wait_for(orphans)
        running = command(family, out, events, workers)
        told.starts += 1
    told.seconds = time.monotonic() - begun
    for line in events.read_text().splitlines():
        event = json.loads(line)
        told.died += event["event"] == "died"
        if event["event"] == "part":
            told.parts[event["output"], event["layer"]] += 1
    return told


def done(out: Path, family: Family) -> bool:
    """Return whether all results are there."""
    return len(results(out)) == len(list((family.folder / "loras").iterdir()))


def wait_for_work(running: subprocess.Popen, events: Path) -> None:
    """Wait until workers make parts, or the command has ended: most kills shall meet work, and not starts."""
    before, until = parts_told(events), time.monotonic() + START
    while running.poll() is None and parts_told(events) == before:
        assert time.monotonic() < until, "nothing happens"
        time.sleep(0.05)


def parts_told(events: Path) -> int:
    """Return how many parts an events file tells of."""
    return events.read_text().count('"event": "part"') if events.exists() else 0


def wait_for(processes: list[int]) -> None:
    """Wait until processes whose parent is dead have noticed it."""
    until = time.monotonic() + START
    while any(Path(f"/proc/{one}").exists() for one in processes):
        assert time.monotonic() < until, f"workers {processes} outlive the command that started them"
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loras", type=int, default=100)
    given = parser.parse_args()
    choose, kills, rounds = random.Random(given.seed), 0, 0
    total = Told()
    with tempfile.TemporaryDirectory() as folder:
        family, wanted = batch_family(Path(folder), given.loras)
        while kills < given.kills:
            out = Path(folder) / f"out{rounds}"
            told = kill_until_done(family, out, min(10, given.kills - kills), choose)
            assert results(out) == wanted, f"round {rounds}: other bytes"
            kills += told.workers + told.commands
            rounds += 1
            total.workers += told.workers
            total.commands += told.commands
            total.starts += told.starts
            total.seconds += told.seconds
            total.parts.update({key: count - 1 for key, count in told.parts.items()})
            again = sum(count - 1 for count in told.parts.values())
            print(f"round {rounds}: {told.workers} workers and {told.commands} commands killed, {told.starts} starts, "
                  f"{again} parts made twice, {told.seconds:.0f} s", flush=True)  # fmt: skip
    print(f"{total.workers} workers and {total.commands} commands killed in {rounds} batches of {given.loras} LoRAs: "
          f"same bytes as transfer; {sum(total.parts.values())} parts made twice; {total.seconds:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()
