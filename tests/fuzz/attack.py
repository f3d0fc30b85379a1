"""The cases: a good input, damaged in one drawn way or two, read by one command."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.harness import Outcome, run
from tests.fuzz.mutations import mutate
from tests.fuzz.seeds import SEEDS, write_good

ODD_NAMES = (
    "\x1b[31m.safetensors",
    "a\nb.safetensors",
    "é" * 100 + ".safetensors",
    b"\xff\xfe.safetensors",
    "-x.safetensors",
    " .safetensors",
)


@dataclass(frozen=True)
class Finding:
    """A case and what went wrong; its number and the seed make it again."""

    number: int
    seed: str
    damage: str
    outcome: Outcome
    faults: tuple[str, ...]

    def __str__(self) -> str:
        words = " ".join(self.outcome.words)
        tail = self.outcome.output.strip()[-1500:]
        what = "; ".join(self.faults)
        return f"case {self.number}: {self.seed}; {self.damage}\n  loraport {words!r}\n  {what}\n{tail!r}"


def attack(folder: Path, seed: int, numbers: range) -> Iterator[Finding]:
    """One finding a case, without faults where nothing went wrong. The same seed and number give the same case."""
    good = folder / "good-inputs"
    shutil.rmtree(good, ignore_errors=True)
    write_good(good)
    for number in numbers:
        yield _case(folder / "case", good, seed, number)


def _case(place: Path, good: Path, seed: int, number: int) -> Finding:
    rng = random.Random(f"{seed} {number}")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(good, place)
    name = rng.choice(sorted(SEEDS))
    write, commands = SEEDS[name]
    victim = write(place)
    damage = [mutate(place / victim, rng) for _ in range(rng.choice([1, 1, 1, 2]))]
    if rng.random() < 0.08 and (place / victim).is_file():
        odd = rng.choice(ODD_NAMES)
        victim, damage = _renamed(place, victim, odd), [*damage, f"named {odd!r}"]
    words = rng.choice(commands(victim))
    before = _hashes(place)
    outcome = run(words, place)
    faults = outcome.faults(place)
    after = _hashes(place)
    faults += [f"input {path} was changed" for path, content in before.items() if after.get(path) != content]
    new = {path for path in after if path not in before}
    faults += [f"left behind: {path}" for path in new if ".part" in path and outcome.code != 2]
    if outcome.code == 2:
        faults += [f"exit 2, and wrote {path}" for path in sorted(new) if ".partial" not in path]
    return Finding(number, name, "; ".join(damage), outcome, tuple(faults))


def _renamed(place: Path, victim: str, odd: str | bytes) -> str:
    import os

    new = os.fsdecode(odd) if isinstance(odd, bytes) else odd
    (place / victim).rename(place / new)
    return f"./{new}"


def _hashes(place: Path) -> dict[str, str]:
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(place.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
