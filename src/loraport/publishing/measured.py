"""Read what was sampled and measured of a LoRA: the clips of a comparison, and the numbers of its evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from loraport.compare.manifest import existing_manifest
from loraport.errors import FileFormatError, InputError, MismatchError
from loraport.files.disk.user_paths import expand_home
from loraport.publishing.moved_lora import MovedLora

PROMPTS_SHOWN = 4
DIRECT = "direct"
_LOOKS = (".mp4", ".webm", ".gif", ".webp", ".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Gallery:
    """Clips of a few prompts, of this file and of what it is compared with."""

    own: str
    """The column whose clips this file made."""
    labels: Mapping[str, str]
    """Column -> its words, in the order of the comparison."""
    prompts: tuple[tuple[str, Mapping[str, str]], ...]
    """(prompt, column -> name of its clip in the repository)."""
    files: Mapping[str, Path]
    """Name in the repository -> clip."""
    hashes: frozenset[str]
    """Those of all measured clips of its own column."""


@dataclass(frozen=True)
class Numbers:
    """The means and differences of one grid of an evaluation."""

    metrics: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    """(name, words)."""
    means: Mapping[tuple[str, str], tuple[float, float, float]]
    """(metric, column) -> mean and the ends of its interval."""
    baseline: str | None
    differences: Mapping[str, tuple[float, float, float, str]]
    """Metric -> how this file differs from the baseline: value, ends of its interval, verdict."""


def read_gallery(place: str, lora: MovedLora) -> Gallery:
    """Return the clips of a comparison in which this file, or the same transfer, has a column.

    Raises InputError where there is no comparison, MismatchError where it is of another LoRA.
    """
    folder = expand_home(place)
    manifest = existing_manifest(folder)
    try:
        columns = [dict(column) for column in manifest.facts["columns"]]
        prompts = [(str(row["id"]), str(row["text"])) for row in manifest.facts["prompts"]]
        labels = {str(column["name"]): str(column.get("label") or column["name"]) for column in columns}
        given = (manifest.facts.get("lora") or {}).get("sha256")
        rows = sorted(manifest.clips.values(), key=lambda row: int(row["seed"]))
        own = _own_column(columns, given, lora)
        if own is None:
            raise MismatchError(
                f"{place} has no column of {lora.path.name}: neither a file of its hash ({lora.sha256[:12]}…) nor the "
                "method of its transfer from the same LoRA; compare it with --with FILE, or leave --compare out"
            )
        hashes = frozenset(str(row["sha256"]) for row in rows if row["column"] == own)
        looks: dict[tuple[str, str], str] = {}
        for row in rows:
            looks.setdefault((str(row["prompt"]), str(row["column"])), str(row["look"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{place} is not what `loraport compare` writes ({error}); compare again") from error
    shown: list[tuple[str, Mapping[str, str]]] = []
    files: dict[str, Path] = {}
    wanted = [name for name in labels if name in ("source+lora", DIRECT, own)]
    for identity, text in prompts:
        if (identity, own) not in looks or len(shown) == PROMPTS_SHOWN:
            continue
        cells = {}
        for number, column in enumerate(wanted):
            if (identity, column) in looks:
                clip = _inside(folder, looks[identity, column])
                name = f"clips/{len(shown) + 1}-{number + 1}{clip.suffix.lower()}"
                files[name], cells[column] = clip, name
        shown.append((text, cells))
    if not shown:
        raise InputError(f"{place} has no clip of the column {own} yet; run `loraport compare` to its end")
    return Gallery(own, {name: labels[name] for name in wanted}, tuple(shown), files, hashes)


def _own_column(columns: list[dict[str, Any]], given: Any, lora: MovedLora) -> str | None:
    by_file = [column for column in columns if column.get("file") == lora.sha256 and column.get("model") == "target"]
    same = given is not None and given == lora.step.get("lora_sha256")
    by_method = [one for one in columns if same and one.get("lora") == "made" and one.get("method") == _method(lora)]
    return next((str(column["name"]) for column in by_file + by_method), None)


def _method(lora: MovedLora) -> str:
    return lora.step["method"]


def _inside(folder: Path, name: str) -> Path:
    """Return a clip that a manifest names; only a clip inside its folder is ever published."""
    path = (folder / PurePosixPath(name)).resolve()
    if not path.is_relative_to(folder.resolve()) or path.suffix.lower() not in _LOOKS:
        raise FileFormatError(f"{folder} names {name!r} as a clip, which is not one inside it; nothing is published")
    if not path.is_file():
        raise InputError(f"{path} is not there any more; run `loraport compare` again, which makes what is missing")
    return path


def read_numbers(place: str, gallery: Gallery) -> Numbers:
    """Return the numbers of the evaluation of a comparison.

    Raises MismatchError where none of its clips is one of this file's.
    """
    folder = expand_home(place)
    try:
        whole = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        grids = {str(row["grid"]) for row in rows if row["column"] == gallery.own and row["sha256"] in gallery.hashes}
        grid = next((one for one in whole["grids"] if one["name"] in grids), None)
        if grid is None:
            raise MismatchError(
                f"{place} measured no clip of the column {gallery.own} of that comparison; evaluate it, or leave "
                "--evaluation out"
            )
        return Numbers(
            tuple(str(name) for name in grid["metrics"]),
            tuple((str(one["name"]), str(one["label"])) for one in grid["columns"]),
            {(str(one["metric"]), str(one["column"])): _interval(one) for one in grid["means"]},
            grid["baseline"],
            {
                str(one["metric"]): (*_interval(one), str(one["verdict"] or ""))
                for one in grid["differences"]
                if one["column"] == gallery.own
            },
        )
    except FileNotFoundError as error:
        raise InputError(f"{place} has no evaluation.json and metrics.jsonl: no evaluation wrote it") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{place} is not what `loraport evaluate` writes ({error}); evaluate again") from error


def _interval(one: Mapping[str, Any]) -> tuple[float, float, float]:
    ends = [float("nan") if one[name] is None else float(one[name]) for name in ("value", "low", "high")]
    return ends[0], ends[1], ends[2]
