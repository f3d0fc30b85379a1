"""Tell from a file's name which of two experts it is (high or low as a word, in any spelling), and the other's name.

Published pairs are called `wan2.2_high_noise_14B` and `..._low_noise_...`, `Lightning_HIGH_fp16`, `T2V-HighNoise-Q4`,
`style-high-v2`, `Seko-V1-H`. A word counts, never letters inside one: `slow_noise` and `Highlight` mean no expert.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

HIGH, LOW = "high_noise", "low_noise"
FOLDERS = {"transformer": "transformer_2", f"{HIGH}_model": f"{LOW}_model"}
"""Where the two lie inside a model, the high-noise one first."""

WEAK, WORD, NOISE = 1, 2, 3
"""How surely a mark means an expert: a letter or a word joined to the next; high or low alone; with noise beside it."""

_WORDS = re.compile(r"(?P<word>high|low)(?P<noise>[-_ .]*noise)?|(?P<letter>[hl])n?", re.IGNORECASE)
_NOISE_BEFORE = re.compile(r"noise[-_ .]*$", re.IGNORECASE)
_MARKER_FOLDER = re.compile(r"[\W_]*(high|low)([\W_]*noise)?([\W_]*(models?|experts?))?[\W_]*", re.IGNORECASE)
_OTHER = {"high": "low", "low": "high", "h": "l", "l": "h"}
_PARTNERS = {**FOLDERS, **{low: high for high, low in FOLDERS.items()}}


@dataclass(frozen=True)
class Mark:
    """A place in a name that says high or low."""

    start: int
    text: str
    """`HIGH`, `Low`, `h`."""
    strength: int

    @property
    def side(self) -> str:
        """The expert that it means."""
        return HIGH if self.text[0] in "hH" else LOW

    def turned(self) -> str:
        """Return the other word, in the same case."""
        other = _OTHER[self.text.lower()]
        return other.upper() if self.text.isupper() else other.capitalize() if self.text[0].isupper() else other


def marks(name: str) -> list[Mark]:
    """Return all places in a name that say high or low, from left to right."""
    of_name = []
    for match in _WORDS.finditer(name):
        text = match["word"] or match["letter"]
        start, end, after = match.start(), match.end(), name[match.end() : match.end() + 1]
        before = name[max(0, start - 1) : start]
        if before.isalpha() and not (before.islower() and text[0].isupper()):
            continue
        joined = (text[-1].islower() and after.isupper()) or (text.isupper() and after.islower())
        if match["letter"]:
            strength = 0 if after.isalpha() else WEAK
        elif match["noise"] or (_NOISE_BEFORE.search(name[:start]) and not after.isalpha()):
            strength = NOISE
        else:
            strength = WORD if not name[end : end + 1].isalpha() else WEAK if joined else 0
        if strength:
            of_name.append(Mark(start, text, strength))
    return of_name


def side_of(name: str, least: int = WEAK) -> str | None:
    """Return the expert that a name's surest marks agree on; None if they do not, or are less sure than `least`."""
    of_name = marks(name)
    best = max((mark.strength for mark in of_name), default=0)
    sides = {mark.side for mark in of_name if mark.strength == best}
    return sides.pop() if best >= least and len(sides) == 1 else None


def turned(name: str, at: Sequence[Mark]) -> str:
    """Return the name with the other word at these marks."""
    for mark in sorted(at, key=lambda mark: -mark.start):
        name = name[: mark.start] + mark.turned() + name[mark.start + len(mark.text) :]
    return name


def partners(name: str) -> Iterator[tuple[str, str]]:
    """Yield (the expert that this name means, what the other's would be called), the likeliest first."""
    if name in _PARTNERS:
        yield HIGH if name in FOLDERS else LOW, _PARTNERS[name]
    of_name = sorted(marks(name), key=lambda mark: (-mark.strength, -mark.start))
    for side in dict.fromkeys(mark.side for mark in of_name):
        yield side, turned(name, [mark for mark in of_name if mark.side == side])
    for mark in of_name:
        yield mark.side, turned(name, [mark])


def partner_paths(parts: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (the expert that this path means, where the other's would lie), the likeliest first.

    The last name counts, and a folder only where its whole name says nothing else (`HighNoise/X-HighNoise.gguf`).
    """
    *folders, name = parts
    places = [
        (at, side, other)
        for at in reversed(range(len(folders)))
        if folders[at] in _PARTNERS or _MARKER_FOLDER.fullmatch(folders[at])
        for side, other in list(partners(folders[at]))[:1]
    ]
    names = list(dict.fromkeys(partners(name)))
    for at, side, other in places:
        moved = [*folders[:at], other, *folders[at + 1 :]]
        yield from ((side, (*moved, twin)) for own, twin in names if own == side)
    yield from ((side, (*folders, twin)) for side, twin in names)
    for at, side, other in places:
        yield side, (*folders[:at], other, *folders[at + 1 :], name)


def name_for(name: str, side: str) -> str:
    """Return the name of an expert's output: the name with its word in it, or behind it if it has none.

    `out-high_noise.safetensors` of `out.safetensors`, `out_LOW.safetensors` of `out_HIGH.safetensors`.
    """
    suffix = ".safetensors" if name.endswith(".safetensors") else ""
    stem = name.removesuffix(suffix)
    of_stem = marks(stem)
    best = max((mark.strength for mark in of_stem), default=0)
    last = [mark for mark in of_stem if mark.strength == best]
    # A lone "low" or letter is often another word (low poly, size L): a name is changed only where it surely means one.
    sure = best == NOISE or any(mark.side == HIGH or mark.text == "LOW" for mark in last)
    if best == WEAK:
        sure = sure and stem.endswith(last[-1].text)
    if not sure or side_of(stem) is None:
        return f"{stem}-{side}{suffix}"
    return (stem if side_of(stem) == side else turned(stem, last)) + suffix
