"""The manifest of a comparison: what every clip is, by hashes, so that a later start and `evaluate` know it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraport.errors import FileFormatError, InputError
from loraport.files.disk.atomic import write_whole
from loraport.plain_json import json_text

NAME, FORMAT = "manifest.json", 1


@dataclass
class Manifest:
    """What is in `manifest.json`; written again, whole, after every clip."""

    folder: Path
    facts: dict[str, Any]
    """All but the clips."""
    clips: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    """(column, prompt's id, seed) -> its row."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a clip, in the place of an earlier one."""
        self.clips[row["column"], row["prompt"], row["seed"]] = dict(row)

    def write(self) -> None:
        """Write it. The order of clips is that of columns, prompts and seeds, whenever they were made."""
        places = {row["name"]: number for number, row in enumerate(self.facts["columns"])}
        order = sorted(self.clips, key=lambda key: (places.get(key[0], len(places)), *key))
        whole = {**self.facts, "clips": [self.clips[key] for key in order]}
        write_whole(self.folder / NAME, (json_text(whole, indent=1) + "\n").encode())


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder; None where there is none.

    Raises FileFormatError for one that is damaged, InputError for one of a later format.
    """
    path = folder / NAME
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        clips = {(row["column"], row["prompt"], row["seed"]): dict(row) for row in whole.pop("clips")}
        known = whole["format"] == FORMAT
        {str(row["name"]) for row in whole["columns"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{path} is not the manifest of a comparison ({error}); move the folder away") from error
    if not known:
        raise InputError(f"{path} is of another format than this program's; name another folder")
    return Manifest(folder, whole, clips)


def existing_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder that has to have one. Raises InputError."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder} has no {NAME}: no comparison wrote it")
    return manifest


def file_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None where there is none."""
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()
