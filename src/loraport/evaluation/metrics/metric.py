"""What a metric is: declared as data, so that the list of all metrics needs no weights and no network.

An instrument looks at a clip and gives readings: vectors, raw scores. They are kept by the clip's content, so a clip is
decoded once for each instrument. A metric makes one number of the readings of a clip and, where it needs one, of its
reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from loraport.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor

    from loraport.clips.clip import Clip

Readings = Mapping[str, "Tensor"]
"""What an instrument gives for one clip: small float tensors by name."""
Direction = Literal["higher", "lower", "ideal"]
Need = Literal["reference", "prompt"]


@runtime_checkable
class Look(Protocol):
    """An opened instrument."""

    def __call__(self, clip: Clip, reference: Clip | None, prompt: str | None) -> Readings:
        """Return the readings of a clip; what the instrument did not ask for is None."""


@dataclass(frozen=True)
class WeightFile:
    """A file of a repository."""

    path: str
    """Where it lies in the repository."""
    bytes: int | None = None
    """Its size; None where it is small or not known."""


@dataclass(frozen=True)
class Weights:
    """Files that an instrument needs and that the user has to fetch."""

    repo: str
    """The Hub id, and in the user's folder of weights the name of theirs."""
    files: tuple[WeightFile, ...]
    licence: str
    """Under which the weights are given; "none stated" where they are given under none."""
    revision: str = "main"
    note: str = ""
    """What a user should know of them, such as what nobody has verified."""
    address: str = ""
    """Where the files are if not on the Hub: what stands before each file's path."""

    @property
    def bytes(self) -> int | None:
        """What is to be fetched, in bytes; None where a size is not known."""
        sizes = [file.bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def command(self) -> str:
        """The command that fetches them: into the Hub's cache, or what is elsewhere to where `--weights .` finds it."""
        if self.address:
            places = [(f"{self.repo}/{file.path}", f"{self.address}{file.path}") for file in self.files]
            return " && ".join(f"curl -L --create-dirs -o {place} {source}" for place, source in places)
        revision = "" if self.revision == "main" else f" --revision {self.revision}"
        return f"hf download {self.repo} {' '.join(file.path for file in self.files)}{revision}"


@dataclass(frozen=True)
class Instrument:
    """How a clip is looked at."""

    name: str
    version: int
    """Counts every change of the readings: of preprocessing, network, or which frames are looked at."""
    open: Callable[[Sequence[Path], str], Look]
    """Called with a folder for each of `weights`, in which their files lie, and the device; imports what it needs."""
    weights: tuple[Weights, ...] = ()
    modules: tuple[str, ...] = ()
    """Modules that have to be installed beside the program's own, all of them in its extra `evaluate`."""
    beside: bool = False
    """Whether it sees a clip and its reference together; else it looks at each alone."""
    reads_prompt: bool = False
    """Whether it also reads the clip's prompt."""


@dataclass(frozen=True)
class Metric:
    """One number, and how to read it."""

    name: str
    """As it is called on the command line."""
    title: str
    """As tables call it."""
    words: str
    """How to read it, in a sentence or two."""
    instrument: Instrument
    score: Callable[[Readings, Readings | None], float] | None = None
    """From the readings of a clip, and of its reference if it needs one (None beside it: `beside` has seen both).

    NaN where this clip has no such number."""
    whole: Callable[[Sequence[Readings], Sequence[Readings]], float] | None = None
    """Instead of `score`: one number for all clips of a column and their references, such as a distance of two sets."""
    better: Direction | None = "higher"
    """Which way is better; None where a number says what a clip is like and not how good it is."""
    ideal: float | None = None
    """The value that is right, where `better` is "ideal"."""
    unit: str = ""
    digits: int = 2
    needs: frozenset[Need] = frozenset()
    papers: tuple[str, ...] = ()
    """Whose tables show it."""
    style: bool = False
    """Whether it says how alike the style is to the reference's: then the controls stand beside it."""
    vector: str | None = None
    """Of a style: the reading [frames, n] whose cosine it is; the part that is the LoRA's own is worked out of it."""
    least_frames: int = 1

    def __post_init__(self) -> None:
        if (self.score is None) == (self.whole is None):
            raise SettingsError(f"metric {self.name!r} needs either a score of a clip or one of a whole column")
        if (self.better == "ideal") != (self.ideal is not None):
            raise SettingsError(f"metric {self.name!r} has an ideal value exactly where its direction is 'ideal'")
        if self.instrument.beside and "reference" not in self.needs:
            raise SettingsError(f"metric {self.name!r} sees clips beside a reference, and does not say it needs one")
        if self.instrument.reads_prompt and "prompt" not in self.needs:
            raise SettingsError(f"metric {self.name!r} reads prompts, and does not say it needs them")
        if self.whole is not None and "reference" not in self.needs:
            raise SettingsError(f"metric {self.name!r} compares sets of clips, and does not say it needs a reference")

    def gain(self, value: float, other: float) -> float:
        """Return how much better `value` is than `other`, in the metric's unit: above zero is better.

        Of a metric without a direction, how much higher it is.
        """
        if self.better == "lower":
            return other - value
        if self.ideal is not None:
            return abs(other - self.ideal) - abs(value - self.ideal)
        return value - other


def reading(name: str) -> Callable[[Readings, Readings | None], float]:
    """Return a score that is a reading of the clip as it stands."""
    return lambda readings, _: float(readings[name])


def mean_cosine(name: str, frames: int | None = None) -> Callable[[Readings, Readings | None], float]:
    """Return a score in percent: the cosine of a reading [frames, n] of clip and reference, the mean over frames.

    `frames`: of the first so many only. Of unequally many, those that both have.
    """

    def score(readings: Readings, reference: Readings | None) -> float:
        if reference is None:
            return float("nan")
        one, other = readings[name][:frames], reference[name][:frames]
        shared = min(len(one), len(other))
        one, other = one[:shared].double(), other[:shared].double()
        sizes = (one.norm(dim=-1) * other.norm(dim=-1)).clamp_min(1e-12)
        return float(100 * ((one * other).sum(-1) / sizes).mean())

    return score
