"""What differs between two records, and between two files."""

from __future__ import annotations

import difflib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.frozen.cases import Case
from tests.frozen.recording import page

LINES = 30
"""Of a diff; more is told by its number."""

Outputs = tuple[Path | None, Path | None]
"""The folders where the outputs before and now lie, for a closer look."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any], outputs: Outputs = (None, None)) -> list[str]:
    """Return a line or more for each frozen thing that is not as it was."""
    found = missing(before, now, "case")
    for name in (name for name in before if name in now):
        old, new = before[name], now[name]
        if old["code"] != new["code"]:
            found.append(f"{name}: exit {old['code']} was, {new['code']} is")
        found += text_difference(f"{name}: --json", old["json"], new["json"])
        found += missing(old["files"], new["files"], f"{name}: file")
        for file in (file for file in old["files"] if file in new["files"]):
            if old["files"][file] != new["files"][file]:
                where = f"{name}: {file}"
                found += file_difference(where, old["files"][file], new["files"][file], places(outputs, name, file))
    return found


def word_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a diff for each text that is not as it was."""
    found = []
    for name in (name for name in before if name in now):
        for kind in sorted(before[name].keys() | now[name].keys()):
            found += text_difference(f"{name}: {kind}", before[name].get(kind, ""), now[name].get(kind, ""))
    return found


def missing(before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> list[str]:
    """Return a line for each name that only one of the two has."""
    gone = [f"{what} {name} is missing" for name in before if name not in now]
    return gone + [f"{what} {name} is new" for name in now if name not in before]


def text_difference(where: str, before: str, now: str) -> list[str]:
    """Return nothing for equal texts, else one entry with their diff."""
    if before == now:
        return []
    lines = list(difflib.unified_diff(before.splitlines(), now.splitlines(), "was", "is", lineterm="", n=1))
    more = [f"... {len(lines) - LINES} lines more"] if len(lines) > LINES else []
    return ["\n    ".join([f"{where} differs", *lines[:LINES], *more])]


def places(outputs: Outputs, name: str, file: str) -> Outputs:
    """Return where a file lies before and now, None where it does not."""
    inner = Path(Case(name, ()).folder) / file
    found = [folder / inner if folder is not None and (folder / inner).is_file() else None for folder in outputs]
    return found[0], found[1]


def file_difference(where: str, before: Mapping[str, Any], now: Mapping[str, Any], paths: Outputs) -> list[str]:
    """Return what is different in a file, as closely as its outputs allow."""
    if "json" in before and "json" in now:
        return text_difference(where, before["json"], now["json"])
    old, new = paths
    if old is None or new is None:
        return [f"{where}: other bytes"]
    if old.suffix == ".html":
        return text_difference(where, page(old.read_text()), page(new.read_text())) or [f"{where}: other bytes"]
    if old.suffix == ".safetensors":
        return ["\n    ".join([f"{where}: other bytes", *tensor_differences(old, new)])]
    return [f"{where}: other bytes ({old.stat().st_size} were, {new.stat().st_size} are)"]


def header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    found: dict[str, Any] = json.loads(data[8 : 8 + size])
    return found


def tensor_differences(old: Path, new: Path) -> list[str]:
    """Return what differs between two safetensors files: notes, names, shapes, and how far values are apart."""
    from safetensors.torch import load_file

    notes = [header(path).get("__metadata__", {}) for path in (old, new)]
    keys = sorted(notes[0].keys() | notes[1].keys())
    found = [f"note {key}: {notes[0].get(key)!r} was, {notes[1].get(key)!r} is"[:400] for key in keys
             if notes[0].get(key) != notes[1].get(key)]  # fmt: skip
    was, is_ = load_file(old), load_file(new)
    found += missing(was, is_, "tensor")[:LINES]
    apart = 0.0
    for name in (name for name in was if name in is_):
        a, b = was[name], is_[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            found.append(f"{name}: {a.dtype} {tuple(a.shape)} was, {b.dtype} {tuple(b.shape)} is")
        elif a.numel():
            apart = max(apart, float((a.double() - b.double()).abs().max()))
    if apart:
        found.append(f"values are at most {apart:.3g} apart")
    return found or ["tensors and notes are equal; the order of the file is not"]
