"""The columns of a comparison: a model each, with a LoRA or without."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loraport.errors import SettingsError
from loraport.files.disk.user_paths import expand_home
from loraport.files.strength import split_strength
from loraport.inputs.recipes import check_method_or_file
from loraport.methods.recipes import METHODS

SOURCE, TARGET = "source", "target"
WITH_LORA = "source+lora"
DIRECT = "direct"
_TAKEN = (SOURCE, TARGET, WITH_LORA)


@dataclass(frozen=True)
class Column:
    """One column: which model, and the adapter on it."""

    name: str
    label: str
    model: str
    """source or target."""
    lora: str | None
    """None; given, the LoRA itself; made, by a method; file, another one."""
    method: str | None = None
    place: str | None = None
    """Where the adapter is, as a user names it; of one that is made, known when it is."""
    strength: float = 1.0
    files: tuple[str, ...] = ()
    """What is loaded: a file for each of the model's networks."""
    parts: tuple[str | None, ...] = ()
    """Which of several LoRAs in each file."""
    sha256: str | None = None

    @property
    def folder(self) -> str:
        """The name of its folder: that of the column, without letters that some systems do not allow."""
        return re.sub(r"[^A-Za-z0-9.+_-]", "-", self.name)

    def as_json(self) -> dict[str, Any]:
        """Return the row of the manifest."""
        return {
            "name": self.name, "label": self.label, "model": self.model, "lora": self.lora, "method": self.method,
            "file": self.sha256, "strength": self.strength if self.lora else None, "folder": self.folder,
        }  # fmt: skip


def plan_columns(lora: str, others: Sequence[str], *, without_lora: bool = True) -> tuple[Column, ...]:
    """Return the columns: the source with the LoRA, the target with direct reuse, then the others as they are named.

    `others`: methods as `transfer` names them, or LoRAs on the target, `FILE*0.8`. Both models without a LoRA are
    `source` and `target`. Raises SettingsError for what is neither a method nor a file, and for a name given twice.
    """
    plain = [Column(SOURCE, "the source alone", SOURCE, None)] if without_lora else []
    bare = [Column(TARGET, "the target alone", TARGET, None)] if without_lora else []
    given = Column(WITH_LORA, "the source with the LoRA", SOURCE, "given", None, lora)
    columns = [*plain, given, *bare, _made(DIRECT), *(_other(name) for name in others if name != DIRECT)]
    names: dict[str, Column] = {}
    for column in columns:
        if column.folder.lower() in names:
            raise SettingsError(f"two columns would be called {column.folder!r}; name each once, or rename a file")
        names[column.folder.lower()] = column
    return tuple(columns)


def _made(method: str) -> Column:
    label = "the LoRA as it is, on the target" if method == DIRECT else f"the LoRA transferred by {method}"
    return Column(method, label, TARGET, "made", method)


def _other(text: str) -> Column:
    if text.partition(":")[0] in METHODS:
        return _made(text)
    check_method_or_file(text)
    place, strength = split_strength(text)
    path = expand_home(place)
    name = re.sub(r"[/:@]", "-", place) if not path.exists() else path.resolve().name if path.is_dir() else path.stem
    if name in _TAKEN:
        raise SettingsError(f"{text!r} in --with would be a column {name!r}, which there is already; rename the file")
    shown = name if strength == 1 else f"{name}*{strength:g}"
    return Column(shown, f"{shown}, on the target", TARGET, "file", None, place, strength)
