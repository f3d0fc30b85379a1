"""The embedded family, or any other pair that a package provides, as models that make clips: small, all in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loraport.clips.clip import Clip
from loraport.compare.grid.columns import SOURCE, Column
from loraport.compare.grid.requests import Emit, Request
from loraport.digests import text_digest
from loraport.progress import NO_PROGRESS, Progress, counter
from loraport.sampling.choice.candidates import read_adapter
from loraport.sampling.hooks import scale_updates
from loraport.sampling.pair import Clips, ShownPair, Updates

ROLE = "compare"


class PairModel:
    """One role of a pair; see `requests.ClipModel` for what each member means."""

    def __init__(self, pair: ShownPair, role: str, name: str, columns: Sequence[Column]) -> None:
        self.pair, self.role, self.name, self.columns = pair, role, name, columns
        self.notes = pair.notes if role == SOURCE else ()
        self.cost = pair.passes.source if role == SOURCE else pair.passes.target
        self.dropped: list[str] = []
        self.adapters: dict[str, Updates] = {}

    @property
    def identity(self) -> str:
        """What its clips depend on, in words."""
        return self.pair.source_identity if self.role == SOURCE else self.pair.target_identity

    def as_json(self, progress: Progress = NO_PROGRESS) -> dict[str, Any]:
        return {"name": self.name, "revision": None, "weights": text_digest(self.identity), "accelerators": []}

    def sampling(self) -> dict[str, Any]:
        return {"pipeline": self.identity} if self.role == SOURCE else {"pipeline": self.pair.sampler.in_words()}

    def noise_shape(self) -> tuple[int, ...]:
        return ()

    def make(
        self, requests: Sequence[Request], wanted: Collection[str], kept: Path, emit: Emit, progress: Progress
    ) -> None:
        todo = [request for request in requests if request.key in wanted]
        done = counter(progress, f"sampling the {self.role}", len(todo) * self.cost)
        for request in todo:
            emit(request, self._clip(request, self.adapters[request.column.name]))
            done(self.cost, f"{request.column.name} {request.name}")

    def prepare(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        self.adapters = {column.name: self._updates(column) for column in columns}

    def _updates(self, column: Column) -> Updates:
        if not column.files:
            return {}
        _, updates, notes = read_adapter(column.files[0], self.pair, part=column.parts[0])
        self.dropped += notes
        return scale_updates(updates, column.strength)

    def _clip(self, request: Request, updates: Updates) -> Clip:
        number = request.prompt.number
        clips = Clips(ROLE, number, number + 1, request.seed, prompt_seed=0)
        make = self.pair.source_clips if self.role == SOURCE else self.pair.target
        frames = self.pair.pictures(make(clips, updates))[0]
        return Clip(np.ascontiguousarray(frames.numpy()), self.pair.fps)
