"""Write pages: an HTML file each that opens offline, is readable on a phone and refers to nothing outside itself."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from loraport.files.disk.atomic import write_whole

Columns = Sequence[tuple[str, str, str]]
"""Of a table: the key of each column's values, its heading, and the format of a value."""
LAYER_COLUMNS: Columns = (  # key, heading, format
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
    # a line does not end between a number and its percent sign
    write_whole(path, html.replace(" %", "\N{NO-BREAK SPACE}%").encode())


def data_address(media: str, content: bytes) -> str:
    """Return a picture as an address that needs no file; the same bytes give the same text."""
    return f"data:image/{media};base64,{base64.b64encode(content).decode('ascii')}"


def csv_text(headings: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table as CSV; what is None stays empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([headings, *rows])
    return text.getvalue()


def in_words(settings: Mapping[str, Any]) -> str:
    """Return settings as a phrase: what is on or off by name, all else with its value."""
    return ", ".join(
        (name if value else f"no {name}") if isinstance(value, bool) else f"{name} {value}"
        for name, value in settings.items()
    )


def percent(share: float, digits: int = 0) -> str:
    """Return a share in percent, as all pages and the terminal write it: `6.5 %`."""
    return f"{100 * share:.{digits}f} %"


def cell(value: Any, form: str) -> str:
    """Return a value as a table shows it: a dash for what is not known, shapes with a cross."""
    if value is None:
        return "–"
    text = " × ".join(map(str, value)) if isinstance(value, tuple | list) else form.format(value)
    sign, number = ("−", text[1:]) if text.startswith("-") and not isinstance(value, str) else ("", text)
    return sign + number.replace("%", " %")


def layer_table(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the values of the template's per-layer part: a row a layer, and the reasons of those that were left.

    A column without any value is left out; what all of several layers share is said once.
    """
    shown = {key: [cell(layer.get(key), form) for layer in layers] for key, _, form in LAYER_COLUMNS}
    known = [column for column in LAYER_COLUMNS if any(layer.get(column[0]) is not None for layer in layers)]
    shared = [key for key, *_ in known if (len(layers) > 2 or key == "status") and len(set(shown[key])) == 1]
    columns = [column for column in known if column[0] not in shared]
    return {
        "headings": [heading for _, heading, _ in columns],
        "layers": [[shown[key][number] for key, *_ in columns] for number in range(len(layers))],
        "same": ", ".join(f"{heading.lower()} {shown[key][0]}" for key, heading, _ in known if key in shared),
        "skipped": [(str(layer["name"]), str(layer["reason"])) for layer in layers if layer.get("reason")],
    }
