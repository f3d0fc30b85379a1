"""Jobs: what a visitor asked for, in the line, at work, done; every moment of it as a view that can be shown."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from loraport.app.asks import Ask, Machine, Order
from loraport.app.limits import Limits
from loraport.app.line import Line, Ticket
from loraport.app.places import Places
from loraport.app.work import Work
from loraport.app.work_folder import WorkFolder, remove
from loraport.compute import find_device
from loraport.errors import LOST, InputError, LoraportError
from loraport.files.disk.atomic import write_whole
from loraport.files.models.named_places import known_place
from loraport.sampling.providers import owner_of

State = Literal["waiting", "running", "done", "refused", "stopped"]
_MOMENT = 0.25
"""Seconds between two looks at a job."""
STOPPED = "Stopped. Nothing of it is left."


@dataclass(frozen=True)
class Result:
    """What a job has made."""

    files: tuple[Path, ...] = ()
    """The new LoRA."""
    page: Path | None = None
    """The page about it, below the folder of jobs."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the command said of it, without the rows of layers."""
    command: str = ""
    """What does the same in a terminal."""


@dataclass(frozen=True)
class View:
    """A moment of a job."""

    state: State
    sentence: str
    share: float | None = None
    """How much is done; None where that is not known."""
    seconds_left: float | None = None
    log: str = ""
    result: Result | None = None


@dataclass(eq=False)
class Job:
    """A job in the line or at work, and the session that asked for it."""

    session: str
    folder: Path
    ticket: Ticket
    work: Work | None = None
    is_stopped: bool = False

    def stop(self) -> None:
        """Take it out of the line, or stop its work."""
        self.is_stopped = True
        self.ticket.moved.set()
        if self.work is not None:
            self.work.stop()


@dataclass
class Office:
    """Takes what visitors ask for, and does one after the other."""

    places: Places
    folder: WorkFolder
    limits: Limits
    machine: Machine
    jobs: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.line = Line(self.limits.waiting)
        self.has_card = find_device(self.machine.device).type != "cpu"

    async def run(self, ask: Ask, session: str) -> AsyncGenerator[View, None]:
        """Yield the moments of a job, the last one done, refused or stopped; left early, it stops the work.

        Raises nothing for bad input: that is a view, too.
        """
        folder = self.folder.jobs / secrets.token_urlsafe(16)
        finished = False
        try:
            folder.mkdir(mode=0o700)
            order = await asyncio.to_thread(self._checked, ask, folder)
            job = Job(session, folder, self.line.join())
        except LoraportError as error:
            remove(folder)
            yield View("refused", self.plain(str(error)))
            return
        except BaseException:
            remove(folder)
            raise
        self.jobs.append(job)
        try:
            async with aclosing(self._moments(job, order)) as moments:
                async for view in moments:
                    finished = view.state == "done"
                    yield view
        finally:
            try:
                if job.work is not None:
                    await asyncio.to_thread(job.work.end)
            finally:
                if not finished:
                    remove(folder)
                job.ticket.leave()
                self.jobs.remove(job)

    def stop(self, session: str) -> int:
        """Stop all jobs of a session; return how many there were."""
        own = [job for job in self.jobs if job.session == session]
        for job in own:
            job.stop()
        return len(own)

    def close(self) -> None:
        """End all work."""
        for job in self.jobs:
            job.stop()
        for job in self.jobs:
            if job.work is not None:
                job.work.end()

    def sweep(self) -> None:
        """Remove what was kept long enough."""
        self.folder.sweep(self.limits, running=frozenset(job.folder.name for job in self.jobs))

    def why_no_comparison(self, source: str = "") -> str | None:
        """Return why clips cannot be compared here; None where they can."""
        if self.has_card:
            return None
        if source and self._is_small(source):
            return None
        return (
            "this machine has no graphics card, and sampling video without one takes hours. Where there is one, this "
            "page does it in minutes, and so does `loraport compare`. The embedded family (toy:base to toy:one-step) "
            "is small enough to be compared here."
        )

    def plain(self, text: str, order: Order | None = None) -> str:
        """Return a message without the folders that a visitor does not know of."""
        own: list[Path] = []
        if order is not None:
            for name in (order.lora, order.source, order.target):
                if (place := known_place(name)) != name:
                    text = text.replace(place, name)
            own = [order.folder / "in", order.folder]
        for folder in (*own, *self.places.folders):
            text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), ".")
        return text

    def _is_small(self, source: str) -> bool:
        try:
            return owner_of(Path(known_place(self.places.find(source, "source")))) is not None
        except InputError:
            return False

    def _checked(self, ask: Ask, folder: Path) -> Order:
        order = ask.order(folder, self.places, self.folder, self.machine)
        if ask.kind == "compare" and (why := self.why_no_comparison(ask.source)):
            raise InputError(why)
        return order

    async def _moments(self, job: Job, order: Order) -> AsyncGenerator[View, None]:
        known = -1
        while before := job.ticket.before:
            if job.is_stopped:
                break
            if before != known:
                known = before
                yield View("waiting", f"In the line: {before} {'job' if before == 1 else 'jobs'} before yours.")
            await job.ticket.wait(5.0)
        log: list[str] = []
        for words in (order.first, order.words):
            if job.is_stopped:
                yield View("stopped", STOPPED)
                return
            typed = await asyncio.to_thread(words)
            if typed is None:
                continue
            async with aclosing(self._worked(job, order, typed, log)) as moments:
                async for view in moments:
                    yield view
            if job.work is None or job.work.code not in (0, LOST):
                yield self._ended(job, order, log)
                return
        yield self._done(job, order, log)

    async def _worked(self, job: Job, order: Order, words: Sequence[str], log: list[str]) -> AsyncGenerator[View, None]:
        """Yield the moments of one command; `log` gets its messages."""
        job.work = work = Work(words, job.folder)  # not in a thread: a job that is left now must know of it
        if job.is_stopped:
            work.stop()
        begun, last = [*log], None
        while True:
            is_over = not work.is_running
            heard = work.heard
            log[:] = [*begun, *(self.plain(line, order) for line in [*heard.log])]
            left = heard.pace.seconds_left(heard.total)
            view = View("running", _sentence(heard.doing), heard.share, left, "\n".join(log))
            if is_over:
                return
            if last is None or replace(view, seconds_left=None) != replace(last, seconds_left=None):
                last = view
                yield view
            await asyncio.sleep(_MOMENT)

    def _ended(self, job: Job, order: Order, log: list[str]) -> View:
        """Return the view of a command that made nothing."""
        work = job.work
        if work is None or work.was_stopped or job.is_stopped:
            return View("stopped", STOPPED, log="\n".join(log))
        why = work.heard.refusal or (log[-1] if log else "it ended without a word")
        if work.code is not None and work.code < 0:
            why = "the system ended the work, most likely because memory ran out; a smaller model may fit"
        elif work.code == 1:
            why = "this is a fault of the program; please report the lines of the log"
        return View("refused", self.plain(why, order), log="\n".join(log))

    def _done(self, job: Job, order: Order, log: list[str]) -> View:
        work = job.work
        if work is None:
            return View("stopped", STOPPED)
        told = work.printed()
        told.pop("layers", None)
        facts = {name: self._plain_value(value, order) for name, value in told.items()}
        page = order.compared / "index.html" if order.ask.kind == "compare" else order.page
        files = tuple(order.files()) if order.ask.kind == "transfer" else ()
        lost = " Something of the LoRA was lost: the log says what." if work.code == LOST else ""
        if order.ask.kind == "diagnose":
            sentence = f"{facts['verdict']}: {facts['why']}"
        elif order.ask.kind == "transfer":
            sentence = f"Moved by {facts['method']}, in {facts['seconds']['total']:.1f} s.{lost}"
        else:
            sentence = f"{facts['clips']['made']} clips, in {len(facts['columns'])} columns.{lost}"
        if page.is_file():
            write_whole(page, self.plain(page.read_text(encoding="utf-8"), order).encode())
        result = Result(files, page if page.is_file() else None, facts, self.plain(order.command(), order))
        return View("done", sentence, 1.0, None, "\n".join(log), result)

    def _plain_value(self, value: Any, order: Order) -> Any:
        if isinstance(value, str):
            return self.plain(value, order)
        if isinstance(value, dict):
            return {name: self._plain_value(one, order) for name, one in value.items()}
        return [self._plain_value(one, order) for one in value] if isinstance(value, list) else value


def _sentence(doing: str) -> str:
    """Return what is done at the moment, as the beginning of a sentence."""
    return f"{doing[:1].upper()}{doing[1:]}…"
