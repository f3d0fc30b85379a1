"""The page of a comparison, beside its manifest: a row for every prompt and seed, a clip for every column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport.compare.manifest import Manifest
from loraport.digests import text_digest
from loraport.plain_json import json_text
from loraport.reports.rendering import in_words, render

PAGE = "index.html"
REFERENCE = "source+lora"
"""The column that the others are held against: it keeps its name where the others' are hidden."""


@dataclass(frozen=True)
class ShownClip:
    """A clip as the page shows it; without an address where it was not made."""

    address: str | None
    frames: int = 1
    fps: float | None = None
    """None: a still image."""


@dataclass(frozen=True)
class ShownRow:
    """All columns' clips of one prompt and seed."""

    name: str
    """Of its files, such as 03-0: votes are told by it."""
    prompt: str
    seed: int
    clips: tuple[ShownClip, ...]


def write_comparison_page(manifest: Manifest) -> Path:
    """Write `index.html` into the comparison's folder; return it. Raises OutputError."""
    facts, page = manifest.facts, manifest.folder / PAGE
    rows = tuple(row for row in _rows(manifest) if any(clip.address for clip in row.clips))
    made = list(manifest.clips.values())
    moving = [row for row in made if row["fps"] is not None]
    columns = facts["columns"]
    render(
        "comparison.html.jinja",
        page,
        package="loraport.reports.comparison",
        lora=_short(facts["lora"]["name"]),
        models={role: _short(model["name"]) for role, model in facts["models"].items()},
        columns=columns,
        reference=REFERENCE if any(column["name"] == REFERENCE for column in columns) else "",
        rows=rows,
        seeds=len(facts["seeds"]),
        video=bool(moving),
        clips=len(made),
        missing=len(rows) * len(columns) - len(made),
        ratio=f"{made[0]['width']} / {made[0]['height']}" if made else "1 / 1",
        sizes=sorted({(row["width"], row["height"]) for row in made}),
        noise=_noise_in_words(facts),
        facts=_facts(facts),
        about=_about(columns, made),
    )
    return page


def _about(columns: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the page's program has to know; votes are for the columns on the target that have a LoRA."""
    return {
        "columns": [column["name"] for column in columns],
        "reference": REFERENCE,
        "candidates": [i for i, column in enumerate(columns) if column["model"] == "target" and column["lora"]],
        # votes are kept by the browser under the clips' hashes: clips made anew begin with none
        "key": text_digest(json_text(sorted(str(row["sha256"]) for row in made)))[:16],
    }


def _rows(manifest: Manifest) -> list[ShownRow]:
    facts = manifest.facts
    return [
        ShownRow(
            f"{prompt['id']}-{seed}",
            prompt["text"],
            seed,
            tuple(_clip(manifest.clips.get((column["name"], prompt["id"], seed))) for column in facts["columns"]),
        )
        for prompt in facts["prompts"]
        for seed in facts["seeds"]
    ]


def _clip(row: Mapping[str, Any] | None) -> ShownClip:
    return ShownClip(None) if row is None else ShownClip(row["look"], row["frames"], row["fps"])


def _short(name: str) -> str:
    """Return a place without the folders before its last part; a Hub id whole."""
    return Path(name).name if "/" in name and (name.startswith(("/", "~", ".")) or "\\" in name) else name


def _noise_in_words(facts: Mapping[str, Any]) -> str:
    if facts["sampling"].get("same_noise") is False:
        return "The two models' latents differ in shape: columns of one model share their noise, the models do not."
    return "All columns of a row start from the same noise."


def _facts(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the lines under the clips: what was loaded, how it was sampled."""
    lines = {"LoRA": f"{facts['lora']['name']}, sha256 {facts['lora']['sha256']}"}
    if facts["lora"].get("trigger"):
        lines["Trigger word"] = str(facts["lora"]["trigger"])
    for role, model in facts["models"].items():
        extra = "".join(f" + {_short(str(one))}" for one in model.get("accelerators") or ())
        lines[role.capitalize()] = f"{model['name']}{extra}, weights {model.get('weights') or model.get('revision')}"
    for role in facts["models"]:
        lines[f"Sampling of the {role}"] = in_words(
            {name: value for name, value in facts["sampling"].get(role, {}).items() if value is not None}
        )
    known = {name: version for name, version in facts["versions"].items() if version}
    lines["Versions"] = ", ".join(
        f"{name} {version}" for name, version in {"loraport": facts["loraport"], **known}.items()
    )
    return lines
