"""Run a comparison: adapters first, then the source's clips, then the target's; a killed run goes on where it was."""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraport._version import __version__
from loraport.clips.clip import Clip
from loraport.clips.write import write_for_viewing, write_lossless
from loraport.compare.grid.columns import SOURCE, TARGET, Column, plan_columns
from loraport.compare.grid.requests import Comparison, Request
from loraport.compare.loras import FilledColumns, columns_json, fill_columns, identity_of
from loraport.compare.manifest import FORMAT, Manifest, file_digest, read_manifest
from loraport.compare.models import OpenedModels, open_models
from loraport.compute import peak_rss_bytes
from loraport.digests import text_digest
from loraport.errors import OutputError
from loraport.files.disk.ownership import Lock
from loraport.files.disk.user_paths import expand_home
from loraport.plain_json import json_text
from loraport.progress import NO_PROGRESS, Progress

KEPT = ".latents"
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "av")


@dataclass(frozen=True)
class ComparisonResult:
    """What a run has made."""

    folder: Path
    columns: tuple[Column, ...]
    made: int
    kept: int
    """Clips that were there already."""
    notes: tuple[str, ...]
    lost: tuple[str, ...]
    seconds: float
    dry_run: bool = False
    passes: int = 0
    sampled: Mapping[str, str] = field(default_factory=dict)
    """Role -> how that model is sampled, in words."""

    def as_json(self) -> dict[str, Any]:
        """Return the one object that `--json` prints."""
        return {
            "output": str(self.folder), "manifest": str(self.folder / "manifest.json"),
            "columns": [column.name for column in self.columns], "clips": {"made": self.made, "kept": self.kept},
            "passes": self.passes, "notes": list(self.notes), "lost": list(self.lost), "seconds": self.seconds,
            "peak_rss_bytes": peak_rss_bytes(), "dry_run": self.dry_run, "sampled": dict(self.sampled),
        }  # fmt: skip

    def table(self) -> dict[str, str]:
        """Return the lines for people."""
        clips = f"{self.made} made" + (f", {self.kept} were there" if self.kept else "")
        if self.dry_run:
            clips = f"{self.made} would be made, in {self.passes} passes of the networks"
        rows = {**self.sampled, "columns": ", ".join(column.name for column in self.columns), "clips": clips}
        if self.dry_run:
            return {**rows, "written": "nothing"}
        return {"wrote": str(self.folder), **rows, "look at": str(self.folder / "index.html")}


def compare(comparison: Comparison, *, progress: Progress = NO_PROGRESS, dry_run: bool = False) -> ComparisonResult:
    """Make the clips that are not there yet.

    Raises InputError for what cannot be compared, before anything is sampled, OutputError where the folder holds
    clips of something else.
    """
    began = time.perf_counter()
    columns = plan_columns(comparison.lora, comparison.others, without_lora=comparison.without_lora)
    models = open_models(comparison, columns)
    if dry_run:
        for note in models.notes:
            progress.note(note)
        return _planned(comparison, columns, models, began)
    folder = comparison.folder
    lock = Lock(folder / ".lock")
    try:
        lock.take(str(folder))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}; name another place") from error
    try:
        return _run(comparison, columns, models, progress, began)
    finally:
        lock.release()


def _run(
    comparison: Comparison, columns: Sequence[Column], models: OpenedModels, progress: Progress, began: float
) -> ComparisonResult:
    folder = comparison.folder
    earlier = read_manifest(folder)
    described = {role: model.as_json(progress) for role, model in models.by_role.items()}
    identity = identity_of(described[SOURCE], described[TARGET])
    rows = {row["name"]: row for row in earlier.facts["columns"]} if earlier else {}
    filled = fill_columns(columns, models.making, rows, identity, progress)
    for note in (*models.notes, *filled.notes):
        progress.note(note)
    facts = _facts(models, filled, described, comparison)
    requests = _requests(filled.columns, models, facts)
    for role, model in models.by_role.items():
        model.prepare([column for column in filled.columns if column.model == role])
    manifest = _continued(folder, facts, earlier, requests, comparison.overwrite)
    wanted = {one.key for one in requests if not _is_there(manifest, one)}
    manifest.write()
    kept = folder / KEPT
    if wanted:
        _make(requests, wanted, models, manifest, progress)
    shutil.rmtree(kept, ignore_errors=True)
    dropped = [note for model in models.by_role.values() for note in model.dropped]
    for note in (*filled.lost, *dropped):
        progress.note(note)
    return ComparisonResult(
        folder, filled.columns, len(wanted), len(requests) - len(wanted), (*models.notes, *filled.notes),
        (*filled.lost, *dropped), time.perf_counter() - began, passes=_passes(requests, wanted, models),
        sampled=_in_words(models),
    )  # fmt: skip


def _make(
    requests: Sequence[Request], wanted: set[str], models: OpenedModels, manifest: Manifest, progress: Progress
) -> None:
    kept = manifest.folder / KEPT
    kept.mkdir(parents=True, exist_ok=True)

    def emit(request: Request, clip: Clip) -> None:
        shown = bool(models.by_role[request.column.model].noise_shape())  # else it is drawn in another way
        manifest.add(_write_clip(manifest.folder, request, clip, models.images) | ({} if shown else {"noise": None}))
        manifest.write()

    for number, (role, model) in enumerate(models.by_role.items(), 1):
        own = [request for request in requests if request.column.model == role]
        todo = {request.key for request in own} & wanted
        if todo:
            progress.step(f"{len(todo)} clips of the {role}: {_in_words(models)[role]}", number, 3)
            model.make(own, todo, kept, emit, progress)


def _in_words(models: OpenedModels) -> dict[str, str]:
    """Return how each model is sampled, for people."""
    words = {}
    for role, model in models.by_role.items():
        how = model.sampling()
        steps, guidance = how.get("steps"), how.get("guidance")
        words[role] = model.name
        if steps is not None and guidance is not None:
            words[role] += f", {steps} steps, " + (f"guidance {guidance:g}" if guidance > 1 else "no guidance")
    return words


def _write_clip(folder: Path, request: Request, clip: Clip, images: bool) -> dict[str, Any]:
    """Write both files of a clip, and return its row."""
    place = folder / "clips" / request.column.folder
    place.mkdir(parents=True, exist_ok=True)
    measure, look = (place / f"{request.name}{ending}" for ending in ((".png", ".jpg") if images else (".mkv", ".mp4")))
    write_for_viewing(look, clip)
    write_lossless(measure, clip)
    return {
        "column": request.column.name, "prompt": request.prompt.id, "seed": request.seed,
        "measure": measure.relative_to(folder).as_posix(), "look": look.relative_to(folder).as_posix(),
        "sha256": file_digest(measure), "frames": len(clip.frames), "fps": None if images else clip.fps,
        "width": clip.width, "height": clip.height, "seconds": None if images else clip.seconds,
        "noise": request.noise, "key": request.key, **({"notes": list(clip.notes)} if clip.notes else {}),
    }  # fmt: skip


def _facts(
    models: OpenedModels, filled: FilledColumns, described: dict[str, Any], comparison: Comparison
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "loraport": __version__,
        "models": described,
        "lora": {"name": _short_name(comparison.lora), "sha256": models.lora_sha256, "trigger": models.trigger},
        "columns": columns_json(filled),
        "prompts": [{"id": prompt.id, "text": prompt.text} for prompt in models.prompts],
        "seeds": list(range(comparison.seeds)),
        "sampling": {role: model.sampling() for role, model in models.by_role.items()}
        | {"same_noise": models.same_noise, "offload": comparison.course.offload},
        "versions": {name: _version(name) for name in _LIBRARIES},
    }


def _short_name(lora: str) -> str:
    """Return what people call a LoRA: its file or folder without the path to it; a Hub id as it is."""
    path = expand_home(lora)
    if not path.exists():
        return lora
    return path.resolve().name if path.is_dir() else path.stem


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requests(columns: Sequence[Column], models: OpenedModels, facts: dict[str, Any]) -> list[Request]:
    """Return all clips of the grid, each with a hash of what it depends on."""
    found = []
    for column in columns:
        depends = json_text(
            {
                "model": {key: value for key, value in facts["models"][column.model].items() if key != "name"},
                "adapter": [column.sha256, column.strength, list(column.parts)],
                "sampling": facts["sampling"][column.model],
                "versions": {name: facts["versions"][name] for name in ("torch", "diffusers", "transformers", "peft")},
            },
            sort_keys=True,
        )
        for prompt in models.prompts:
            for seed in facts["seeds"]:
                one = Request(column, prompt, seed, "")
                found.append(replace(one, key=text_digest(depends, prompt.text, str(one.noise))[:32]))
    return found


def _continued(
    folder: Path, facts: dict[str, Any], earlier: Manifest | None, requests: Sequence[Request], overwrite: bool
) -> Manifest:
    """Return the manifest to go on with: what it has of this grid, and its other columns, if they are of the same pair.

    Raises OutputError for a folder that holds another comparison, unless that is to be replaced.
    """
    if earlier is None:
        strange = [path.name for path in folder.iterdir() if path.name not in (".lock", KEPT, "loras")]
        if strange and not overwrite:
            raise OutputError(f"{folder} holds {sorted(strange)[0]!r}, which no comparison wrote; name another folder")
        return Manifest(folder, facts)
    keys = {(one.column.name, one.prompt.id, one.seed): one.key for one in requests}
    differing = [key for key, row in earlier.clips.items() if key in keys and row.get("key") != keys[key]]
    same_pair = _pair_of(earlier.facts) == _pair_of(facts)
    if not overwrite and (differing or not same_pair):
        what = (
            "other models or another LoRA"
            if not same_pair
            else f"other settings, prompts or versions ({differing[0][0]}, for one)"
        )
        raise OutputError(f"{folder} holds a comparison with {what}; name another folder, or give --overwrite")
    if not same_pair or differing:
        return Manifest(folder, facts)
    names = {row["name"] for row in facts["columns"]}
    columns = [*facts["columns"], *(row for row in earlier.facts["columns"] if row["name"] not in names)]
    ids = {row["id"] for row in facts["prompts"]}
    prompts = [*facts["prompts"], *(row for row in earlier.facts["prompts"] if row["id"] not in ids)]
    seeds = sorted({*facts["seeds"], *earlier.facts["seeds"]})
    return Manifest(folder, {**facts, "columns": columns, "prompts": prompts, "seeds": seeds}, dict(earlier.clips))


def _pair_of(facts: dict[str, Any]) -> str:
    lora = facts.get("lora") or {}
    models = facts.get("models") or {}
    rows = [
        {key: value for key, value in (models.get(role) or {}).items() if key != "name"} for role in (SOURCE, TARGET)
    ]
    return json_text([rows, lora.get("sha256")], sort_keys=True)


def _is_there(manifest: Manifest, request: Request) -> bool:
    """Return whether a clip is there, unchanged."""
    row = manifest.clips.get((request.column.name, request.prompt.id, request.seed))
    if row is None or row["key"] != request.key:
        return False
    return (manifest.folder / row["look"]).is_file() and file_digest(manifest.folder / row["measure"]) == row["sha256"]


def _passes(requests: Sequence[Request], wanted: set[str], models: OpenedModels) -> int:
    return sum(models.by_role[one.column.model].cost for one in requests if one.key in wanted)


def _planned(comparison: Comparison, columns: Sequence[Column], models: OpenedModels, began: float) -> ComparisonResult:
    each = len(models.prompts) * comparison.seeds
    passes = sum(models.by_role[column.model].cost for column in columns) * each
    return ComparisonResult(
        comparison.folder, tuple(columns), len(columns) * each, 0, models.notes, (), time.perf_counter() - began, True,
        passes, _in_words(models),
    )  # fmt: skip
