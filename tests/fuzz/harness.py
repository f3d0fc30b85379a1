"""One command in a process of its own, within bounds, and what it did wrong."""

from __future__ import annotations

import os
import re
import resource
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Preparation = Callable[[], None]
CPU_SECONDS = 20
"""Processor time after which a command counts as hanging; the inputs are a few hundred kB."""
MEMORY = 600 << 20
"""Bytes of memory that a command may take beyond the program at rest."""
ENDINGS = {0, 2, 3}
CANARY = "canary"
"""A file that code inside an input would write."""
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters that a terminal would obey; a line's end and a tab are none."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    words: tuple[str, ...]
    code: int
    signal: int
    seconds: float
    memory: int
    output: str

    def faults(self, folder: Path) -> list[str]:
        """Everything that must not happen, whatever the input."""
        found = []
        if self.signal:
            found.append(f"ended by signal {self.signal} after {self.seconds:.1f} s of processor time")
        elif self.code not in ENDINGS:
            found.append(f"exit {self.code}")
        if "Traceback" in self.output:
            found.append("a traceback")
        if raw := RAW.search(self.output):
            found.append(f"a raw control character {raw[0]!r}")
        if self.memory > MEMORY:
            found.append(f"{self.memory >> 20} MB beyond the program at rest")
        if (folder / CANARY).exists():
            found.append("code inside an input ran")
        if self.code == 2 and not self.output.strip():
            found.append("exit 2 without a word")
        if len(self.output) > 60_000:
            found.append(f"{len(self.output)} characters of output")
        return found


@dataclass(frozen=True)
class Running:
    """A command in a process of its own, which writes what it says to a file."""

    words: tuple[str, ...]
    process: int
    out: Path

    def end(self) -> Outcome:
        """Wait for its end."""
        _, status, usage = os.wait4(self.process, 0)
        text = self.out.read_bytes().decode("utf-8", "surrogateescape")
        self.out.unlink()
        return Outcome(
            self.words,
            os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1,
            os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            usage.ru_utime + usage.ru_stime,
            max(0, usage.ru_maxrss * 1024 - resting_memory()),
            text,
        )


def run(words: Sequence[str | Path], folder: Path) -> Outcome:
    """Run `loraport WORDS` in a fork of this process, in `folder`; its output goes to files beside it."""
    return begin(words, folder).end()


def begin(words: Sequence[str | Path], folder: Path, *, name: str = "", prepare: Preparation = lambda: None) -> Running:
    """Start it; `prepare` is called in its process before the program. Of two at once in a folder each has a name."""
    out = folder.parent / f"{folder.name}{name}.output"
    out.touch()
    child = os.fork()
    if child == 0:
        texts = [os.fsdecode(word) if isinstance(word, bytes) else str(word) for word in words]
        _become(texts, folder, out, prepare)
    return Running(tuple(map(str, words)), child, out)


def resting_memory() -> int:
    """Bytes that this process has resident, which each fork starts with."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _become(words: list[str], folder: Path, out: Path, prepare: Preparation) -> None:
    """In the child: bounds, output to a file, then the program itself. Never returns."""
    try:
        file = os.open(out, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0), os.dup2(file, 1), os.dup2(file, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        space = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (space + (3 << 30), space + (3 << 30)))
        os.chdir(folder)
        sys.argv = ["loraport", *words]
        from loraport.cli import main

        prepare()
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        _leave(code)
    except BaseException:
        import traceback

        traceback.print_exc()
        _leave(1)
    _leave(0)


def _leave(code: int) -> None:
    """End as a program does, which waits for its threads; what Python itself does at an end is not of interest."""
    threading._shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
