"""Look at every clip of a grid with every instrument: what is known already is not decoded again.

Instruments that need no weights look at a clip together; networks are in memory one at a time, each for all clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from loraport.clips.clip import Clip
from loraport.errors import InputError
from loraport.evaluation.grid import Column, Grid, Key
from loraport.evaluation.metrics.metric import Instrument, Look, Readings
from loraport.evaluation.plain_folders import read_clip_or_frames
from loraport.evaluation.readings import ReadingStore, clip_digest, reading_key
from loraport.progress import Progress, counter

Opener = Callable[[Instrument], Look]


@dataclass
class SeenClip:
    """One clip, and what the instruments read off it."""

    column: str
    key: Key
    path: Path
    digest: str
    readings: dict[str, Readings] = field(default_factory=dict)
    """By the instrument's name."""

    @property
    def frames(self) -> int:
        """How many frames it has."""
        return int(self.readings[_FACTS.name]["frames"])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        facts = self.readings[_FACTS.name]
        return int(facts["width"]), int(facts["height"])

    @property
    def fps(self) -> float:
        """Frames a second."""
        return float(self.readings[_FACTS.name]["fps"])


@dataclass(frozen=True)
class Collected:
    """All clips that could be read, and what was left out."""

    clips: Mapping[tuple[str, Key], SeenClip]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    failed: Mapping[str, str]
    """Instruments that could not look at all, by name, and why."""


def _look_at_facts(clip: Clip, reference: Clip | None, prompt: str | None) -> Readings:
    facts = {"frames": len(clip.frames), "width": clip.width, "height": clip.height, "fps": clip.fps}
    return {name: torch.tensor(float(value)) for name, value in facts.items()}


_FACTS = Instrument("facts", 1, lambda folders, device: _look_at_facts)


def collect(
    grid: Grid,
    instruments: Sequence[Instrument],
    open_instrument: Opener,
    store: ReadingStore,
    progress: Progress,
    weights: Mapping[str, str],
) -> Collected:
    """Return the readings of all clips by all instruments; `weights`: what tells an instrument's from others."""
    work = _Collection(grid, store, progress, weights)
    free = [instrument for instrument in instruments if not instrument.weights]
    work.run((_FACTS, *free), open_instrument)
    for instrument in instruments:
        if instrument.weights:
            work.run((instrument,), open_instrument)
    return Collected(work.clips, tuple(dict.fromkeys(work.notes)), tuple(work.left_out), work.failed)


class _Collection:
    """What is collected so far."""

    def __init__(self, grid: Grid, store: ReadingStore, progress: Progress, weights: Mapping[str, str]) -> None:
        self.grid, self.store, self.progress, self.weights = grid, store, progress, weights
        self.notes: list[str] = []
        self.left_out: list[str] = []
        self.failed: dict[str, str] = {}
        # the last one is the reference of the next clips, and may be the next clip itself
        self.decode = lru_cache(maxsize=2)(read_clip_or_frames)
        self.clips: dict[tuple[str, Key], SeenClip] = {}
        for column in self._in_order():
            for key, path in column.clips.items():
                self._identify(column, key, path)

    def _in_order(self) -> list[Column]:
        """Return the columns, the reference first: it is decoded for those after it."""
        return sorted(self.grid.columns, key=lambda column: column.name != self.grid.reference)

    def _identify(self, column: Column, key: Key, path: Path) -> None:
        try:
            digest = clip_digest(path)
        except InputError as error:
            self.left_out.append(f"{error}; left out")
            return
        made = column.digests.get(key)
        if made not in (None, digest):
            self.left_out.append(
                f"{path} is not the file that was made: its checksum is another than the manifest's; left out"
            )
            return
        self.clips[column.name, key] = SeenClip(column.name, key, path, digest)

    def _reference(self, clip: SeenClip) -> SeenClip | None:
        found = None if self.grid.reference is None else self.clips.get((self.grid.reference, clip.key))
        return None if found is clip else found

    def run(self, instruments: Sequence[Instrument], open_instrument: Opener) -> None:
        """Let some instruments look at every clip together; they are opened where there is something to look at."""
        order = {column.name: place for place, column in enumerate(self._in_order())}
        pending = [
            (clip, missing)
            for clip in sorted(self.clips.values(), key=lambda clip: (clip.key, order[clip.column]))
            if (missing := [one for one in instruments if not self._recall(clip, one)])
        ]
        wanted = {one.name: one for _, missing in pending for one in missing}
        opened: dict[str, Look] = {}
        for name, instrument in wanted.items():
            try:
                opened[name] = open_instrument(instrument)
            except InputError as error:
                self.failed[name] = str(error)
        title = "looking at clips" if len(instruments) > 1 else f"looking at clips: {instruments[0].name}"
        report = counter(self.progress, title, len(pending))
        for clip, missing in pending:
            self._look(clip, [one for one in missing if one.name in opened and one.name not in self.failed], opened)
            report(1, str(clip.path))

    def _recall(self, clip: SeenClip, instrument: Instrument) -> bool:
        """Return whether there is nothing to do: the readings are kept, or what else it needs is not there."""
        if instrument.beside and self._reference(clip) is None:
            return True
        if instrument.reads_prompt and clip.key.prompt not in self.grid.prompts:
            self.notes.append(f"the prompt of {clip.key.prompt} is not known: not looked at by {instrument.name}")
            return True
        entry = self.store.find(self._key(clip, instrument))
        if entry is None:
            return False
        clip.readings[instrument.name] = entry.tensors
        self.notes += [str(note) for note in entry.facts.get("notes", ())]
        return True

    def _key(self, clip: SeenClip, instrument: Instrument) -> str:
        reference, prompt = self._reference(clip), self.grid.prompts.get(clip.key.prompt)
        weights = self.weights.get(instrument.name, "")
        return reading_key(instrument, weights, clip.digest, reference.digest if reference else None, prompt)

    def _look(self, clip: SeenClip, instruments: Sequence[Instrument], opened: Mapping[str, Look]) -> None:
        if not instruments or (clip.column, clip.key) not in self.clips:
            return
        try:
            decoded = self.decode(clip.path)
        except InputError as error:
            self._drop(clip, f"{error}; left out")
            return
        for instrument in instruments:
            other = self._reference(clip) if instrument.beside else None
            prompt = self.grid.prompts.get(clip.key.prompt) if instrument.reads_prompt else None
            try:
                beside = None if other is None else self.decode(other.path)
                with torch.no_grad():
                    found = opened[instrument.name](decoded, beside, prompt)
            except torch.OutOfMemoryError:
                self.failed[instrument.name] = "it does not fit into the device's memory; --device cpu has more"
                continue
            except InputError as error:
                self.left_out.append(f"{clip.path} cannot be looked at by {instrument.name}: {error}")
                continue
            notes = decoded.notes if instrument is _FACTS else ()
            clip.readings[instrument.name] = self.store.keep(self._key(clip, instrument), found, notes).tensors
            self.notes += notes

    def _drop(self, clip: SeenClip, why: str) -> None:
        self.left_out.append(why)
        del self.clips[clip.column, clip.key]
