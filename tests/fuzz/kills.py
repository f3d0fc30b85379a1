"""Commands that are killed, at any moment and at the telling ones, and started again; and two at once on one output.

Whatever happened, the end is what an undisturbed run leaves: the same files, byte for byte, and not one more.
"""

from __future__ import annotations

import hashlib
import importlib
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from loraport.files.disk.atomic import TEMPORARY
from loraport.store.bases import BasisCache
from tests.fuzz.attack import Finding
from tests.fuzz.harness import Outcome, Running, begin
from tests.fuzz.writers import CACHE, WRITERS, Words, write_inputs

EVENTS = frozenset(
    ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "fcntl.flock", "ctypes.dlsym")
)
"""What changes folders; beside them, files that are opened to be written, and `os.fsync`."""
LAST = 40
"""So many events belong to the end of a command, which is where results take their names."""
WARM = (
    *("cli", "console", "inputs.accelerator", "analysis.run", "conversion", "transfers.run", "inputs.experts"),
    *("merging", "transfers.passes", "analysis.probe_model", "reports.transfer_page", "reports.analysis_page"),
)
OVERWRITE: Words = ("--overwrite",)
"""What a command needs to replace a result that is finished."""
Tree = Mapping[str, str]


@dataclass(frozen=True)
class Death:
    """When a process is ended: by which signal, at which event, after how many seconds, or by a file of which size."""

    signal: int = signal.SIGKILL
    event: int | None = None
    seconds: float | None = None
    size: int | None = None

    def __str__(self) -> str:
        name = signal.Signals(self.signal).name
        if self.event is not None:
            return f"{name} before event {self.event}"
        return f"{name} after {self.seconds:.3f} s" if self.seconds is not None else f"a file of {self.size} bytes"


@dataclass
class Counter:
    """Events of a process, counted where this one sees them too."""

    shared: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 9))

    def __int__(self) -> int:
        return int.from_bytes(self.shared[:8], "little")

    def watch(self, death: Death | None) -> None:
        """In the process itself: count from now on, stop the clock, and end it when it is time."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # before the program listens, there is nothing to tidy
        at = None if death is None else death.event

        def tick() -> None:
            number = int(self)
            self.shared[:8] = (number + 1).to_bytes(8, "little")
            if number == at and death is not None:
                os.kill(os.getpid(), death.signal)

        def hear(event: str, arguments: tuple[Any, ...]) -> None:
            if event in EVENTS or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                tick()

        sync = os.fsync
        os.fsync = lambda handle: (tick(), sync(handle))[1]  # type: ignore[assignment]
        time.perf_counter = lambda: 0.0
        resource.getrusage = lambda who: SimpleNamespace(ru_maxrss=0)  # type: ignore[assignment,return-value]
        sys.dont_write_bytecode = True
        if death is not None and death.size is not None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (death.size, death.size))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        sys.addaudithook(hear)
        self.shared[8] = 1

    def wait(self) -> None:
        """Until the process watches itself, which is when the program begins."""
        while not self.shared[8]:
            time.sleep(0.0005)


@dataclass(frozen=True)
class Undisturbed:
    """What a command leaves, how it ends, and what it takes."""

    tree: Tree
    code: int
    seconds: float
    events: int
    sizes: tuple[int, ...]


@dataclass
class Stage:
    """The folders of a series of cases, with what undisturbed runs left, each made when it is first wanted."""

    folder: Path
    known: dict[Words, Undisturbed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for module in WARM:  # in this process, of which each command is a fork
            importlib.import_module(f"loraport.{module}")

    def undisturbed(self, words: Words) -> Undisturbed:
        """What a command leaves in an empty folder."""
        if words not in self.known:
            place, counter, began = self.empty(), Counter(), time.monotonic()
            outcome = start(words, place, None, counter).end()
            if outcome.faults(place) or outcome.code == 2:
                raise RuntimeError(f"loraport {words} fails undisturbed: {outcome}")
            sizes = tuple(path.stat().st_size for path in place.rglob("*") if path.is_file())
            self.known[words] = Undisturbed(tree(place), outcome.code, time.monotonic() - began, int(counter), sizes)
        return self.known[words]

    def empty(self) -> Path:
        """The folder of a case, beside the inputs."""
        if not (self.folder / "inputs").exists():
            write_inputs(self.folder / "inputs")
        place = self.folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place


def start(words: Words, place: Path, death: Death | None, counter: Counter, name: str = "") -> Running:
    """Start a command that will die, or not; `Running.end` waits for it."""
    running = begin(words, place, name=name, prepare=lambda: counter.watch(death))
    if death is not None and death.seconds is not None:
        counter.wait()
        time.sleep(death.seconds)
        os.kill(running.process, death.signal)  # not waited for yet: it cannot be another's number
    return running


def kill(folder: Path, seed: int, numbers: range, names: Sequence[str] = tuple(WRITERS)) -> Iterator[Finding]:
    """One finding a case, without faults where nothing went wrong."""
    stage = Stage(folder)
    for number in numbers:
        rng = random.Random(f"kill {seed} {number}")
        name = rng.choice(names)
        case = _together if rng.random() < 0.15 else _killed
        inputs = tree(folder / "inputs") if stage.known else None
        what, outcome, faults = case(stage, name, rng)
        if inputs is not None and tree(folder / "inputs") != inputs:
            faults.append("an input was changed")
        yield Finding(number, f"killed: {name}", what, outcome, tuple(faults))


def _killed(stage: Stage, name: str, rng: random.Random) -> tuple[str, Outcome, list[str]]:
    """A command dies once or twice, then runs to its end, perhaps over older results, perhaps after another one."""
    writer, way = WRITERS[name], rng.choice(["new", "new", "over older", "after another"])
    alone = stage.undisturbed(writer.other if way == "after another" else writer.words)
    deaths = [draw(alone, rng) for _ in range(rng.choice([1, 1, 2]))]
    outcome, faults = relive(stage, name, deaths, way)
    return f"{way}; {', '.join(map(str, deaths))}", outcome, faults


def relive(stage: Stage, name: str, deaths: Sequence[Death], way: str = "new") -> tuple[Outcome, list[str]]:
    """How a command ends that has died before, and what was wrong on the way.

    `over older`: what the writer's other command wrote is there already. `after another`: that one has died instead.
    """
    writer = WRITERS[name]
    expected, older = stage.undisturbed(writer.words), stage.undisturbed(writer.other)
    place, faults, flag = stage.empty(), [], OVERWRITE if way == "over older" else ()
    if way == "over older":
        start(writer.other, place, None, Counter()).end()

    def now(as_alone: Undisturbed) -> Tree:
        """What is there; a file that says what this start made counts as what an undisturbed one says."""
        found = tree(place)
        return found | {path: as_alone.tree[path] for path in writer.of_the_start if path in found}

    words, alone = (writer.other, older) if way == "after another" else ((*writer.words, *flag), expected)
    for death in deaths:
        before = tree(place)
        outcome = start(words, place, death, Counter()).end()
        faults += [f"{death}: {fault}" for fault in _after_death(outcome, death, alone, now(alone), (expected, older))]
        if outcome.code == 128 + death.signal:
            faults += [f"{death}: {path} was left behind" for path in tree(place) if path not in before and _dirt(path)]
    outcome = start((*writer.words, *flag), place, None, Counter()).end()
    if outcome.code == 2 and "--overwrite" in outcome.output and not flag:
        found = now(alone)
        if missing := [path for path, content in alone.tree.items() if found.get(path) != content]:
            faults.append(f"refused, as if it were finished, without {missing}")
        outcome = start((*writer.words, *OVERWRITE), place, None, Counter()).end()
    faults += outcome.faults(place)
    if outcome.code != expected.code:
        faults.append(f"exit {outcome.code} at the end, undisturbed {expected.code}")
    faults += _unlike(now(expected), expected.tree, (older.tree if way != "new" else {}))
    return outcome, faults + _poisoned(place)


def _together(stage: Stage, name: str, rng: random.Random) -> tuple[str, Outcome, list[str]]:
    outcomes, faults = together(stage, name, other=rng.random() < 0.5)
    return f"two at once, {[one.code for one in outcomes]}", outcomes[0], faults


def together(stage: Stage, name: str, *, other: bool) -> tuple[list[Outcome], list[str]]:
    """How two commands end that start together on one output, the same or the writer's `other`; and what was wrong.

    One writes, and the other is refused or comes later; the end is the work of one that says it has written.
    """
    writer = WRITERS[name]
    pair = (writer.words, writer.other if other else writer.words)
    alone = [stage.undisturbed(words) for words in pair]
    place = stage.empty()
    running = [start(words, place, None, Counter(), name=str(number)) for number, words in enumerate(pair)]
    outcomes = [one.end() for one in running]
    faults = [fault for outcome in outcomes for fault in outcome.faults(place)]
    wrote = [number for number, outcome in enumerate(outcomes) if outcome.code != 2]
    if not wrote:
        faults.append("both were refused")
    ends = [_unlike(tree(place), alone[number].tree, alone[1 - number].tree) for number in wrote]
    if ends and all(ends):
        faults += [f"is the work of neither: {fault}" for fault in min(ends, key=len)]
    return outcomes, faults + _poisoned(place)


def draw(alone: Undisturbed, rng: random.Random) -> Death:
    """A moment: before an event, of all or of the last ones; any time; or in the middle of writing a file."""
    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    kind = rng.choice(["event", "event", "last", "last", "seconds", "size"])
    if kind == "seconds":
        return Death(number, seconds=rng.uniform(0, alone.seconds))
    if kind == "size":
        return Death(signal.SIGXFSZ, size=max(1, int(rng.choice(alone.sizes) * rng.random())))
    first = max(0, alone.events - LAST) if kind == "last" else 0
    return Death(number, event=rng.randrange(first, max(first + 1, alone.events)))


def _after_death(
    outcome: Outcome, death: Death, alone: Undisturbed, found: Tree, whole: Sequence[Undisturbed]
) -> list[str]:
    """What must not be at the moment after: an odd end, or a result that is half-written."""
    faults = []
    if outcome.signal not in (0, death.signal) or (
        not outcome.signal and outcome.code not in (128 + death.signal, alone.code, 2)
    ):
        faults.append(f"exit {outcome.code}, signal {outcome.signal}: {outcome.output[-300:]!r}")
    if "Traceback" in outcome.output:
        faults.append(f"a traceback {outcome.output[-600:]!r}")
    for path, content in found.items():
        waits = ".partial/" in path or TEMPORARY.search(path) or path.startswith(f"{CACHE}/") or content == ""
        if not waits and content not in [one.tree.get(path) for one in whole]:
            faults.append(f"{path} was seen half-written, or is not one of the results")
    return faults


def _dirt(path: str) -> bool:
    """Whether it is nothing that a later start goes on from."""
    return TEMPORARY.search(path) is not None or path.endswith(".partial/lock")


def _unlike(found: Tree, expected: Tree, other: Tree) -> list[str]:
    """How what is there differs; what another command left in the cache may be there."""
    faults = [f"{path} is missing" for path in expected if path not in found]
    faults += [f"{path} has other bytes" for path in expected if path in found and found[path] != expected[path]]
    extra = [path for path in found if path not in expected]
    kept = {path: content for path, content in other.items() if path == CACHE or path.startswith(f"{CACHE}/")}
    faults += [f"left behind: {path}" for path in extra if kept.get(path) != found[path]]
    return faults


def _poisoned(place: Path) -> list[str]:
    return [f"the cache is damaged: {why}" for _, why in BasisCache(place / CACHE).verify()]


def tree(place: Path) -> Tree:
    """Every file with the hash of its bytes, every folder with nothing."""
    return {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(place.rglob("*"))
    }
