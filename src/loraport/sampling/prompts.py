"""Prompts for pipelines: from a file, or a short list of ordinary scenes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from loraport.errors import InputError
from loraport.files.disk.user_paths import expand_home

_KEYS = ("prompt", "text", "prompt_en", "caption")
"""Where the prompt stands in a JSON object; `prompt_en` is VBench's."""


def built_in_prompts() -> tuple[str, ...]:
    """Return thirty ordinary scenes, `prompts.txt` beside this file."""
    return _lines(files(__package__).joinpath("prompts.txt").read_text(encoding="utf-8"))


def read_prompts(file: str | None) -> tuple[str, ...]:
    """Return the prompts of a file, each once and in its order, or the built-in list.

    A text file has one a line; JSONL an object (or a text) a line; JSON a list of either, such as VBench's
    VBench_full_info.json. Raises InputError where there are none, or not all of them are texts.
    """
    if file is None:
        return built_in_prompts()
    try:
        text = expand_home(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as text: {error}; give prompts, one a line") from error
    ending = file.lower().rpartition(".")[2]
    if ending in ("json", "jsonl"):
        prompts = tuple(_of_entry(entry, number, file) for number, entry in enumerate(_entries(text, ending, file), 1))
    else:
        prompts = _lines(text)
    if not prompts:
        raise InputError(f"{file} has no prompts; write one a line")
    return tuple(dict.fromkeys(prompts))


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _entries(text: str, ending: str, file: str) -> Sequence[Any]:
    lines: Iterable[str] = (line for line in text.splitlines() if line.strip())
    try:
        entries = [json.loads(line) for line in lines] if ending == "jsonl" else json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "a JSON object in each line" if ending == "jsonl" else "a JSON list"
        raise InputError(f"{file} is not {what}: {error}; name it .txt if it has a prompt a line") from error
    if not isinstance(entries, list):
        raise InputError(f"{file} is no JSON list of prompts; write a list of texts, or of objects with a prompt each")
    return entries


def _of_entry(entry: Any, number: int, file: str) -> str:
    if isinstance(entry, dict):
        entry = next((entry[key] for key in _KEYS if key in entry), None)
    if not isinstance(entry, str) or not entry.strip():
        raise InputError(
            f"{file}: entry {number} has no prompt; write a text, or an object with one of the keys {', '.join(_KEYS)}"
        )
    return entry.strip()
