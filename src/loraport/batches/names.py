"""Name outputs by a template, inside the folder of the results and nowhere else."""

from __future__ import annotations

import os
import re
import string
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath

from loraport.batches.find import FoundLora
from loraport.errors import SettingsError, unknown_name

FIELDS = ("folder", "name", "method", "source", "target")
"""What a template may name."""
DEFAULT = "{folder}/{name}-{method}"
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]+')
"""What no name of a file may hold on one system or another."""


@dataclass(frozen=True)
class NameTemplate:
    """Such as `{folder}/{name}-{method}`: where an output goes below the folder of the results."""

    text: str = DEFAULT

    def __post_init__(self) -> None:
        try:
            parsed = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise SettingsError(
                f"the template {self.text!r} cannot be read: {error}; write for example {DEFAULT}"
            ) from error
        for _, field, form, conversion in parsed:
            if field is None:
                continue
            if form or conversion:
                raise SettingsError(f"the template {self.text!r} formats {field!r}; write {{{field}}} alone")
            if field not in FIELDS:
                raise unknown_name("field of a template", field, FIELDS)
        if not self.text.strip():
            raise SettingsError(f"the template of the outputs' names is empty; write for example {DEFAULT}")

    def place(self, root: str, lora: FoundLora, method: str, source: str, target: str) -> str:
        """Return the path of an output without its ending. Raises SettingsError for one outside the root."""
        filled = self.text.format(
            folder=lora.folder,
            name=lora.name,
            method=_in_names(method),
            source=_of_model(source),
            target=_of_model(target),
        )
        inside = PurePath(filled.lstrip("/") if self.text.startswith("{folder}") else filled)
        if inside.is_absolute() or PureWindowsPath(filled).drive or ".." in inside.parts or not inside.name:
            raise SettingsError(
                f"the output {filled!r} of {lora.place} lies outside the folder of the results; give a path inside it"
            )
        return str(Path(root) / inside)


def same_place(output: str) -> str:
    """Return the same text for paths that some file system takes for one: upper and lower case, composed accents."""
    return unicodedata.normalize("NFC", os.path.abspath(os.path.expanduser(output))).casefold()


def _in_names(text: str) -> str:
    return _UNSAFE.sub("-", text)


def _of_model(place: str) -> str:
    """Return a model's name as a part of a file's: without folders and ending."""
    parts = [PurePath(one).name.removesuffix(".safetensors") for one in place.split("+")]
    return _in_names("+".join(parts))
