"""Folders of clips without a manifest: a column each, their clips paired by name."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from loraport.clips.clip import IMAGES, VIDEOS, Clip, is_clip_file, is_image_file
from loraport.clips.read import read_clip
from loraport.errors import FileFormatError, InputError, MismatchError, SettingsError, UnreadableError
from loraport.evaluation.grid import Column, Grid, Key
from loraport.files.disk.user_paths import expand_home

FRAMES_FPS = 8.0
"""At which speed a folder of frames counts as shown, since nothing in it says."""
_NUMBERED = re.compile(r"(?P<prompt>.+?)[-_ ](?:seed)?(?P<seed>\d+)")
_ORDER = (".mkv", ".png", *VIDEOS, *IMAGES)
"""Which of several files of one name is measured: lossless ones first."""


def read_plain_folders(folders: Sequence[Path], prompts: Mapping[str, str] | None = None) -> Grid:
    """Return folders as the columns of a grid. One folder of folders with videos is taken for its columns.

    Raises UnreadableError, MismatchError where a folder holds no clips.
    """
    if len(folders) == 1 and not _files(folders[0]) and (inner := _columns_inside(folders[0])):
        folders = inner
    columns, notes = [], []
    for folder, name in zip(folders, _names(folders), strict=True):
        column, ignored = _column(folder, name)
        columns.append(column)
        notes += ignored
    texts = dict(prompts or {})
    for column in columns:
        for key in column.clips:
            if " " in key.prompt and not prompts:  # as VBench names its clips: the prompt itself, and a number
                texts[key.prompt] = key.prompt
    title = ", ".join(column.name for column in columns[:4]) + (", …" if len(columns) > 4 else "")
    return Grid(title, tuple(columns), prompts=texts, notes=tuple(notes))


def read_clip_or_frames(path: Path) -> Clip:
    """Return a clip from a file, or from a folder of numbered frames. Raises as `read_clip` does."""
    if not path.is_dir():
        return read_clip(path)
    pictures = [read_clip(file) for file in frame_files(path)]
    sizes = Counter((one.width, one.height) for one in pictures)
    if len(sizes) > 1:
        (width, height), _ = sizes.most_common(1)[0]
        odd = next(index for index, one in enumerate(pictures) if (one.width, one.height) != (width, height))
        raise FileFormatError(
            f"{path} is no clip: its frame {odd} is {pictures[odd].width} × {pictures[odd].height} pixels, others are "
            f"{width} × {height}; write them again in one size"
        )
    notes = (f"{path} is a folder of frames, which says no speed: taken as {FRAMES_FPS:g} frames a second",)
    return Clip(np.concatenate([one.frames for one in pictures]), FRAMES_FPS, notes)


def frame_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder of frames in the order of their numbers."""
    files = [file for file in folder.iterdir() if file.is_file() and is_image_file(file)]
    return sorted(files, key=lambda file: [(int(part), "") if part.isdigit() else (-1, part) for part in _parts(file)])


def read_prompts(place: str) -> dict[str, str]:
    """Return {name: prompt} from a file: one JSON object, or JSON lines with `id` and `text`, or lines `name<tab>text`.

    Raises UnreadableError, FileFormatError.
    """
    path = expand_home(place)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UnreadableError(f"{place} cannot be read: {error.strerror or error}; name a file of prompts") from error
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{place} is no text in UTF-8; save it as that") from error
    try:
        if path.suffix.lower() == ".json":
            rows = json.loads(text)
            if not isinstance(rows, dict):
                raise TypeError
            return {str(name): str(prompt) for name, prompt in rows.items()}
        lines = [line for line in text.splitlines() if line.strip()]
        if path.suffix.lower() == ".jsonl":
            return {str(row["id"]): str(row["text"]) for row in map(json.loads, lines)}
        pairs = [line.split("\t", 1) for line in lines]
        return {name.strip(): prompt.strip() for name, prompt in pairs}
    except (ValueError, TypeError, KeyError) as error:
        raise FileFormatError(
            f"{place} does not say which prompt is whose; write a .json {{name: prompt}}, a .jsonl of id and text, or "
            "a line for each: the clips' name, a tab, the prompt"
        ) from error


def _column(folder: Path, name: str) -> tuple[Column, list[str]]:
    """Return a folder as a column, and what in it was not taken."""
    chosen: dict[Key, Path] = {}
    copies = 0
    for path in sorted(_entries(folder), key=lambda path: (_rank(path), path.name)):
        key = _key(path)
        if key in chosen:
            copies += 1
        else:
            chosen[key] = path
    if not chosen:
        raise MismatchError(
            f"{folder} holds no clips: none of {', '.join((*VIDEOS, *IMAGES))}, and no folder of frames"
        )
    notes = []
    if copies:
        files = "1 file has" if copies == 1 else f"{copies} files have"
        notes.append(f"{folder}: {files} another's name with another ending; the lossless ones are measured")
    return Column(name, name, chosen), notes


def _key(path: Path) -> Key:
    """Return prompt and seed of a clip by its name: `03-1` is seed 1 of prompt 03, `cat` has no seed."""
    stem = path.name if path.is_dir() else path.stem
    numbered = _NUMBERED.fullmatch(stem)
    return Key(numbered["prompt"], numbered["seed"]) if numbered else Key(stem, "")


def _entries(folder: Path) -> list[Path]:
    return [*_files(folder), *(path for path in _folders(folder) if _is_frames(path))]


def _files(folder: Path) -> list[Path]:
    return [path for path in _listed(folder) if path.is_file() and is_clip_file(path) and path.name[0] != "."]


def _folders(folder: Path) -> list[Path]:
    return [path for path in _listed(folder) if path.is_dir() and path.name[0] != "."]


def _is_frames(folder: Path) -> bool:
    files = _files(folder)
    return bool(files) and all(map(is_image_file, files))


def _columns_inside(folder: Path) -> list[Path]:
    """Return the folders inside that hold videos: columns, and no clips."""
    return sorted(path for path in _folders(folder) if any(not is_image_file(file) for file in _files(path)))


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except NotADirectoryError as error:
        raise InputError(f"{folder} is a file; give the folder that the clips are in") from error
    except OSError as error:
        raise UnreadableError(f"{folder} cannot be read: {error.strerror or error}; give a folder of clips") from error


def _names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: its own, with as much of the path before it as tells them apart."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise SettingsError("a folder is given twice; give each once")
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]


def _rank(path: Path) -> int:
    return -1 if path.is_dir() else _ORDER.index(path.suffix.lower())


def _parts(file: Path) -> list[str]:
    return re.split(r"(\d+)", file.stem)
