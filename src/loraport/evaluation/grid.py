"""What is evaluated: clips in columns, the same prompts and seeds in each, so that columns are compared in pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from loraport.errors import MismatchError, SettingsError

SOURCE, REFERENCE, TARGET, DIRECT = "source", "source+lora", "target", "direct"
"""The columns of a comparison whose part is known by their names; every other one is a way of moving the LoRA."""


class Key(NamedTuple):
    """Which clip of a column: clips of one key are compared, clips of one prompt are not independent."""

    prompt: str
    seed: str


@dataclass(frozen=True)
class Column:
    """One way of making the clips."""

    name: str
    label: str
    """Words for people."""
    clips: Mapping[Key, Path]
    facts: Mapping[str, object] = field(default_factory=dict)
    """What else is known of it, such as model, method, strength."""
    digests: Mapping[Key, str] = field(default_factory=dict)
    """The SHA-256 that a clip's file had when it was made, where that is known."""


@dataclass(frozen=True)
class Grid:
    """Columns of clips that belong together: one LoRA on one pair of models, or some folders."""

    name: str
    columns: tuple[Column, ...]
    reference: str | None = None
    """The column that the others are measured against."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """The text of each prompt that is known."""
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """What of the input cannot be used, and why, a sentence each."""

    def column(self, name: str) -> Column | None:
        """Return the column of a name, or None."""
        return next((column for column in self.columns if column.name == name), None)

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every key that any column has, in order."""
        return tuple(sorted({key for column in self.columns for key in column.clips}))

    @property
    def measured(self) -> tuple[Column, ...]:
        """The columns beside the reference."""
        return tuple(column for column in self.columns if column.name != self.reference)


def choose_baseline(grid: Grid, named: str | None) -> str | None:
    """Return the column that others are compared with: the named one, direct reuse, or the first; None for one alone.

    Raises SettingsError for a name that is no column.
    """
    names = [column.name for column in grid.measured]
    if named is not None:
        if named not in names:
            raise SettingsError(
                f"{grid.name} has no column {named!r} to compare with; its columns: {', '.join(names) or 'none'}"
            )
        return named
    if DIRECT in names:
        return DIRECT
    candidates = [name for name in names if name not in (SOURCE, TARGET)]
    return candidates[0] if len(candidates) > 1 else None


def paired(grid: Grid) -> Grid:
    """Return the grid with a sentence for each clip that a column lacks; a column without any in common is refused.

    Raises MismatchError where the columns have no clip in common at all.
    """
    if not any(column.clips for column in grid.columns):
        raise MismatchError(f"{grid.name} holds no clips")
    common = set.intersection(*({*column.clips} for column in grid.columns))
    if not common:
        examples = "; ".join(f"{column.name}: {_first(column.clips)}" for column in grid.columns)
        raise MismatchError(
            f"no clip of {grid.name} is in every column, and clips are paired by name ({examples}); name files alike"
        )
    lacking = []
    for column in grid.columns:
        missing = [key for key in grid.keys if key not in column.clips]
        if missing:
            shown = ", ".join(clip_name(key) for key in missing[:3]) + (", …" if len(missing) > 3 else "")
            count = "1 clip" if len(missing) == 1 else f"{len(missing)} clips"
            lacking.append(
                f"{column.name} lacks {count} that others have ({shown}): left out where columns are compared"
            )
    return replace(grid, left_out=(*grid.left_out, *lacking))


def clip_name(key: Key) -> str:
    """Return a clip's name as people know it."""
    return f"{key.prompt}-{key.seed}" if key.seed else key.prompt


def _first(clips: Iterable[Key]) -> str:
    return clip_name(min(clips, default=Key("nothing", "")))
