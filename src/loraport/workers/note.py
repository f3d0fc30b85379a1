"""What a worker says of itself in the store, for `loraport status`: where it runs, how much it has done."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from loraport.errors import FileFormatError
from loraport.files.disk.ownership import HOST
from loraport.objects.store import MissingObjectError, ObjectStore
from loraport.plain_json import json_text
from loraport.workers.records import WORKERS


@dataclass(frozen=True)
class WorkerNote:
    """One worker of a run."""

    who: str
    run: str
    share: str
    device: str
    host: str = HOST
    process: int = 0
    began: float = 0.0
    """By its own clock, in seconds since 1970, as `seen`: for people, and for its own rate."""
    seen: float = 0.0
    parts: int = 0
    jobs: int = 0
    """Outputs that it gathered."""
    bytes: int = 0
    seconds: float = 0.0
    """Of work on parts."""
    shares: float = 0.0
    """How many jobs' work it has done, in parts of them."""
    state: str = "working"

    @classmethod
    def here(cls, who: str, run: str, share: str, device: str) -> WorkerNote:
        """Return the note of a worker that begins now in this process."""
        return cls(who, run, share, device, process=os.getpid(), began=time.time(), seen=time.time())

    def after(self, event: str, facts: Mapping[str, Any]) -> WorkerNote:
        """Return the note after an event of the worker."""
        if event == "part":
            return replace(
                self, parts=self.parts + 1, bytes=self.bytes + facts["bytes"], state="working",
                seconds=self.seconds + facts["seconds"], shares=self.shares + facts["share"],
            )  # fmt: skip
        if event == "made":
            return replace(self, jobs=self.jobs + 1, state="working")
        return replace(self, state="waiting for others") if event == "waiting" else self

    def write(self, store: ObjectStore, state: str | None = None) -> None:
        """Write it."""
        now = replace(self, seen=time.time(), state=state or self.state)
        store.write(f"{WORKERS}{self.who}.json", json_text(asdict(now)).encode())


def worker_notes(store: ObjectStore, run: str) -> list[WorkerNote]:
    """Return the notes of a run's workers, in the order in which they began. Raises FileFormatError."""
    notes = []
    for name in store.names(WORKERS):
        try:
            note = WorkerNote(**json.loads(store.read(name)))
        except MissingObjectError:
            continue
        except (ValueError, TypeError) as error:
            raise FileFormatError(f"{store.url}/{name} is no note of this version's workers; remove it") from error
        notes += [note] if note.run == run else []
    return sorted(notes, key=lambda note: (note.began, note.who))
