"""Clips that are asked for: of a column, a prompt and a seed; and what makes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from loraport.clips.clip import Clip
from loraport.compare.grid.columns import Column
from loraport.errors import SettingsError
from loraport.progress import NO_PROGRESS, Progress

OFFLOADS = ("none", "model", "group", "disk")


@dataclass(frozen=True)
class Prompt:
    """A prompt as the models get it."""

    id: str
    text: str
    number: int
    """Its place in the list, from 0."""


@dataclass(frozen=True)
class Request:
    """One clip. Its noise is of the prompt and the seed, the same in every column."""

    column: Column
    prompt: Prompt
    seed: int
    key: str
    """A hash of all that the clip depends on."""

    @property
    def noise(self) -> int:
        """The seed of the generator that its noise is drawn with."""
        return noise_seed(self.prompt.number, self.seed)

    @property
    def name(self) -> str:
        """Its file's name without ending."""
        return f"{self.prompt.id}-{self.seed}"

    def generator(self) -> torch.Generator:
        """Return the generator, on the processor, so that the noise is the same on every device."""
        return torch.Generator().manual_seed(self.noise)


def noise_seed(number: int, seed: int) -> int:
    """Return the seed of a clip's noise: of its own for every prompt, as they are to be independent."""
    return seed * 100_003 + number


Emit = Callable[[Request, Clip], None]


@dataclass(frozen=True)
class Course:
    """How clips are made: of both models alike, and of each. None: what is usual for its pipeline."""

    frames: int | None = None
    height: int | None = None
    width: int | None = None
    source_steps: int | None = None
    source_guidance: float | None = None
    target_steps: int | None = None
    target_guidance: float | None = None
    target_timesteps: tuple[float, ...] = ()
    negative: str = ""
    pipeline: str | None = None
    batch: int = 1
    offload: str = "none"
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        if self.offload not in OFFLOADS:
            raise SettingsError(f"offload {self.offload!r} is none of: {', '.join(OFFLOADS)}")


@dataclass(frozen=True)
class Comparison:
    """What to compare, and where the clips go."""

    lora: str
    source: str
    target: str
    folder: Path
    others: tuple[str, ...] = ("casa",)
    without_lora: bool = True
    prompts: str | None = None
    first: int | None = None
    seeds: int = 1
    trigger: str | None = None
    """None: the LoRA's own; empty: none."""
    course: Course = Course()
    lora_part: str | None = None
    preset: str | None = None
    cache: str | None = None
    overwrite: bool = False


class ClipModel(Protocol):
    """One of the two models, which makes clips with the adapters of its columns."""

    name: str
    notes: tuple[str, ...]
    cost: int
    """Passes of its network that a clip takes."""
    columns: Sequence[Column]
    dropped: list[str]
    """What of the adapters was not applied, a sentence each; known when clips were made."""

    def as_json(self, progress: Progress = NO_PROGRESS) -> dict[str, Any]:
        """Return the manifest's entry of the model; files are hashed, which takes a while."""

    def sampling(self) -> dict[str, Any]:
        """Return how it is sampled, for the manifest."""

    def noise_shape(self) -> tuple[int, ...]:
        """Return the shape of one clip's noise."""

    def prepare(self, columns: Sequence[Column]) -> None:
        """Read the adapters of its columns. Raises InputError for what cannot be loaded, before anything is sampled."""

    def make(
        self, requests: Sequence[Request], wanted: Collection[str], kept: Path, emit: Emit, progress: Progress
    ) -> None:
        """Make those of its clips that are wanted, by their keys, each given to `emit` when it is whole.

        What is finished of them is kept in a folder until then.
        """


def groups(requests: Sequence[Request], size: int, wanted: Collection[str]) -> Iterator[tuple[Request, ...]]:
    """Yield the clips of a column that are made at once: the same ones whatever is there already.

    A clip's last bits depend on those beside it, so a group of which one is wanted (by key) is made again whole.
    """
    by_column: dict[str, list[Request]] = {}
    for request in requests:
        by_column.setdefault(request.column.name, []).append(request)
    for row in by_column.values():
        for start in range(0, len(row), size):
            group = tuple(row[start : start + size])
            if any(request.key in wanted for request in group):
                yield group
