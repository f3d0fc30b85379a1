"""Templates turned into one HTML file each: opens offline, readable on a phone, refers to nothing outside itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from loraport.files.disk.atomic import write_whole

LAYER_COLUMNS: tuple[tuple[str, str, str], ...] = (  # key, heading, format
    ("name", "Layer", "{}"),
    ("status", "Status", "{}"),
    ("shape", "Shape", "{}"),
    ("rank_in", "Rank in", "{}"),
    ("rank_out", "Rank out", "{}"),
    ("drift", "Drift", "{:.3f}"),
    ("floor", "Rounding", "{:.1e}"),
    ("lora", "LoRA", "{:.3f}"),
    ("update", "Update", "{:.3f}"),
    ("cosine", "Cosine", "{:.3f}"),
    ("kept_energy", "Kept energy", "{:.1%}"),
    ("kept_correction", "Kept correction", "{:.1%}"),
    ("k", "k", "{}"),
    ("clusters", "Clusters", "{}"),
    ("largest_cluster", "Largest cluster", "{:.1%}"),
    ("restored", "Restored", "{:.1%}"),
    ("arbitrated", "Arbitrated", "{}"),
    ("amount", "Amount", "{:.3f}"),
    ("k_target", "k target", "{}"),
    ("overlap", "Overlap", "{:.3f}"),
    ("overlap_random", "Overlap if unrelated", "{:.3f}"),
    ("seconds", "Seconds", "{:.2f}"),
)


def render(template: str, path: Path, *, package: str = "loraport.reports", **values: Any) -> None:
    """Write a page from a template of the package, whole or not at all; the layout it extends may be of this package.

    Raises OutputError where the page cannot be written.
    """
    packages = dict.fromkeys((package, "loraport.reports"))
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(template).render(**values)
    write_whole(path, html.encode())


def data_address(media: str, content: bytes) -> str:
    """A picture as an address that needs no file; the same bytes give the same text."""
    return f"data:image/{media};base64,{base64.b64encode(content).decode('ascii')}"


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings as a phrase: what is on or off by name, all else with its value."""
    return ", ".join(
        (name if value else f"no {name}") if isinstance(value, bool) else f"{name} {value}"
        for name, value in settings.items()
    )


def layer_table(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of the template's per-layer part: a row a layer (missing values as a dash), reasons apart."""
    return {
        "headings": [heading for _, heading, _ in LAYER_COLUMNS],
        "layers": [[_cell(layer, key, form) for key, _, form in LAYER_COLUMNS] for layer in layers],
        "skipped": [(str(layer["name"]), str(layer["reason"])) for layer in layers if layer.get("reason")],
    }


def _cell(layer: Mapping[str, Any], key: str, form: str) -> str:
    value = layer.get(key)
    if value is None:
        return "–"
    return " × ".join(map(str, value)) if key == "shape" else form.format(value)
