"""Read the manifest of a comparison that `loraport compare` wrote: its columns, prompts and clips."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from loraport.errors import FileFormatError, UnreadableError
from loraport.evaluation.grid import REFERENCE, Column, Grid, Key

MANIFEST = "manifest.json"
_FORMAT = 1
_FACTS = ("model", "lora", "method", "strength", "file")


def is_compare_folder(folder: Path) -> bool:
    """Return whether a folder is a comparison of ours."""
    return (folder / MANIFEST).is_file()


def read_compare_folder(folder: Path) -> Grid:
    """Return a comparison as a grid. Raises FileFormatError for a manifest that is not one, UnreadableError."""
    place = folder / MANIFEST
    try:
        manifest = json.loads(place.read_bytes())
    except OSError as error:
        raise UnreadableError(f"{place} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise FileFormatError(
            f"{place} is damaged: it is not JSON; run `loraport compare` again, it resumes"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise FileFormatError(
            f"{place} is not a manifest of format {_FORMAT}, which this version reads; make the comparison with it"
        )
    try:
        return _grid(folder, manifest)
    except (KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f"{place} lacks something that a manifest of `loraport compare` has ({error}); run the command again"
        ) from error


def _grid(folder: Path, manifest: Mapping[str, Any]) -> Grid:
    clips: dict[str, dict[Key, Path]] = {str(column["name"]): {} for column in manifest["columns"]}
    digests: dict[str, dict[Key, str]] = {name: {} for name in clips}
    for clip in manifest["clips"]:
        key = Key(str(clip["prompt"]), str(clip["seed"]))
        clips[str(clip["column"])][key] = _inside(folder, str(clip["measure"]))
        digests[str(clip["column"])][key] = str(clip["sha256"])
    columns = tuple(
        Column(
            str(column["name"]), str(column["label"]), clips[str(column["name"])],
            {name: column[name] for name in _FACTS if column.get(name) is not None}, digests[str(column["name"])],
        )
        for column in manifest["columns"]
        if clips[str(column["name"])]
    )  # fmt: skip
    empty = [name for name, found in clips.items() if not found]
    notes = tuple(f"{folder}: column {name!r} has no clips yet; `loraport compare` makes them" for name in empty)
    return Grid(
        _title(folder, manifest),
        columns,
        REFERENCE if clips.get(REFERENCE) else None,
        {str(prompt["id"]): str(prompt["text"]) for prompt in manifest["prompts"]},
        left_out=notes,
    )


def _title(folder: Path, manifest: Mapping[str, Any]) -> str:
    models = manifest["models"]
    names = (manifest["lora"]["name"], models["source"]["name"], models["target"]["name"])
    lora, source, target = (str(name).rstrip("/\\").replace("\\", "/").rpartition("/")[2] for name in names)
    return f"{lora}, {source} to {target}"


def _inside(folder: Path, where: str) -> Path:
    """Return a path of the manifest, which may not lead out of its folder. Raises FileFormatError."""
    path = PurePosixPath(where)
    if path.is_absolute() or ".." in path.parts or "\\" in where or ":" in where:
        raise FileFormatError(f"{folder / MANIFEST} names {where!r}, which is outside of its folder; it is not used")
    return folder / path
