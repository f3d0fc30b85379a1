"""A command of the program in a process of its own: followed while it runs, and stopped for good when it has to end.

A process of its own gives all memory back, of the card too; it can be ended at any point; and it writes what the same
command writes in a terminal, since it is that command.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraport.progress import ASKED_FOR_LINES, Pace

PATIENCE = 10.0
"""Seconds that a stopped command has to tidy up, before it is ended at once."""
_KEPT = 2000
"""Lines of its messages that are kept."""


@dataclass
class Heard:
    """What a command has told so far."""

    doing: str = "starting"
    done: int = 0
    total: int = 0
    log: list[str] = field(default_factory=list)
    refusal: str = ""
    """The program's last sentence about itself, which is the reason where it ended early."""
    pace: Pace = field(default_factory=lambda: Pace(0))

    @property
    def share(self) -> float | None:
        """How much of the work at hand is done; None before it is known."""
        return min(1.0, self.done / self.total) if self.total else None

    def take(self, line: str) -> None:
        """Take one line of its messages in."""
        report = _report(line)
        if report is None:
            self._say(line)
            if line.startswith(_NAME):
                self.refusal = line.removeprefix(_NAME)
        elif "advance" in report:
            self._advance(report)
        elif "step" in report:
            self._say(f"[{report['done'] + 1}/{report['total']}] {report['step']}")
        else:
            self._say(f"note: {report['note']}")

    def _advance(self, report: dict[str, Any]) -> None:
        if report["advance"] != self.doing:
            self.doing, self.pace = report["advance"], Pace(report["done"])
        self.done, self.total = report["done"], report["total"]
        self.pace.report(self.done)
        if report["part"]:
            self._say(f"{self.doing} {self.done} of {self.total}: {report['part']}")

    def _say(self, line: str) -> None:
        self.log.append(line)
        del self.log[:-_KEPT]


_NAME = "loraport: "


class Work:
    """One command while it runs."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        """Start `loraport WORDS...`; what it prints goes into the folder, which must be there."""
        self.heard = Heard()
        self.was_stopped = False
        self._lock = threading.Lock()
        here = folder / "here"  # the command's own folder, empty: no name of a visitor's is a path in it
        here.mkdir(exist_ok=True)
        self._printed = folder / "printed.json"
        with self._printed.open("wb") as printed:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "loraport", *words], cwd=here, stdin=subprocess.DEVNULL, stdout=printed,
                stderr=subprocess.PIPE, env=_environment(), start_new_session=True, text=True, encoding="utf-8",
                errors="replace",
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def is_running(self) -> bool:
        """Whether it runs, or something of what it said has not been read."""
        return self._process.poll() is None or self._reader.is_alive()

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def printed(self) -> dict[str, Any]:
        """Return the one object that a command prints with --json. Raises ValueError where it printed none."""
        found = json.loads(self._printed.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("the command printed no object")
        return found

    def stop(self) -> None:
        """Ask it to end."""
        with self._lock:
            if self._process.poll() is None:
                self.was_stopped = True
                self._process.terminate()

    def end(self, patience: float = PATIENCE) -> None:
        """End it and return when it has ended, with all processes that it started."""
        self.stop()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            _kill(self._process)
            self._process.wait()
        self._reader.join(1.0)

    def _read(self) -> None:
        stream = self._process.stderr
        if stream is None:  # it was asked for above
            return
        with stream as lines:
            for line in lines:
                self.heard.take(line.rstrip("\n"))


def _report(line: str) -> dict[str, Any] | None:
    """Return the report that a line is; None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        report = json.loads(line)
    except ValueError:
        return None
    is_one = isinstance(report, dict) and {"advance", "step", "note"} & report.keys()
    return report if is_one else None


def _environment() -> dict[str, str]:
    """Return the environment of a command: the page's own, with reports as lines and no path that depends on where."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")}
    places = [os.path.abspath(place) for place in own.get("PYTHONPATH", "").split(os.pathsep) if place]
    return own | {
        ASKED_FOR_LINES: "json", "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(places),
        "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1",
    }  # fmt: skip


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process at once, and where the system has groups all that it started."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
