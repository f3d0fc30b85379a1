"""Read a manifest: JSON Lines, one object a line that says which LoRA goes from which model to which, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraport.errors import InputError, SettingsError, unknown_name
from loraport.files.disk.user_paths import expand_home

ENDING = ".jsonl"
_TEXTS = (
    *("lora", "source", "target", "output", "source_part", "target_part", "lora_part", "rank", "format", "as"),
    *("dtype", "dora", "preset"),
)
_KNOWN = (*_TEXTS, "method", "settings", "include", "exclude", "seed", "force_drift", "transfer_diffs")


@dataclass(frozen=True)
class ManifestRow:
    """One line: what it says beside the LoRA wins over the options of the command."""

    where: str
    """For messages: the file and the line."""
    lora: str
    methods: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Everything else, by its name in the manifest."""


def is_manifest(word: str) -> bool:
    """Return whether a word on the command line names a manifest."""
    return word.lower().endswith(ENDING)


def read_manifest(word: str) -> tuple[list[ManifestRow], list[tuple[str, InputError]]]:
    """Return the rows, and what is wrong with the others, each as (file and line, error); blank lines are left out.

    Raises InputError for a file that cannot be read, or holds no row.
    """
    try:
        lines = expand_home(word).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{word} is no text in UTF-8, so no manifest; give JSON Lines: one object a line") from error
    except OSError as error:
        raise InputError(
            f"{word} cannot be read: {error.strerror or error}; give a manifest, one JSON object a line"
        ) from error
    rows: list[ManifestRow] = []
    wrong: list[tuple[str, InputError]] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{word}:{number}"
            try:
                rows.append(_row(line, where))
            except InputError as error:
                wrong.append((where, error))
    if not rows and not wrong:
        raise InputError(f'{word} has no line: write one object a line, such as {{"lora": "style.safetensors"}}')
    return rows, wrong


def folder_of(word: str) -> Path:
    """Return the folder from which the paths in a manifest are meant."""
    return expand_home(word).parent


def _row(line: str, where: str) -> ManifestRow:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {error}; write one object a line") from error
    if not isinstance(value, dict):
        raise InputError(f'{where} is no object; write for example {{"lora": "style.safetensors"}}')
    for name in value:
        if name not in _KNOWN:
            raise SettingsError(f"{where}: {unknown_name('key', name, _KNOWN)}")
    for name in _TEXTS:
        if name in value and not (isinstance(value[name], str) or (name == "rank" and _is_number(value[name]))):
            raise SettingsError(f"{where}: {name} is {value[name]!r}, but it must be a text")
    for name, kind, word in (("seed", int, "a whole number"), ("force_drift", bool, "true or false"),
                             ("transfer_diffs", bool, "true or false"), ("settings", dict, "an object")):  # fmt: skip
        if name in value and type(value[name]) is not kind:
            raise SettingsError(f"{where}: {name} is {value[name]!r}, but it must be {word}")
    if not value.get("lora"):
        raise SettingsError(f'{where} names no LoRA; add "lora"')
    fields = {name: one for name, one in value.items() if name not in ("lora", "method", "settings")}
    fields |= {name: _texts(where, name, value[name]) for name in ("include", "exclude") if name in value}
    methods = _texts(where, "method", value["method"]) if "method" in value else ()
    return ManifestRow(where, value["lora"], methods, value.get("settings", {}), fields)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _texts(where: str, name: str, value: Any) -> tuple[str, ...]:
    """Return a text, or a list of texts, as several."""
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list) or not several or not all(isinstance(one, str) and one for one in several):
        raise SettingsError(f"{where}: {name} is {value!r}, but it must be a text or a list of texts")
    return tuple(part.strip() for one in several for part in one.split(",")) if name == "method" else tuple(several)
