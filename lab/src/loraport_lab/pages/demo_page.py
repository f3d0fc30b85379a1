"""The demo as a page: the clips side by side, the numbers with how to read them, the layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport.files.disk.atomic import write_whole
from loraport.plain_json import json_text
from loraport.reports.rendering import in_words, layer_table, render
from loraport.sampling.statistics import Interval, standard_error
from loraport.transfers.results import TransferResult
from loraport_lab.bench.statistics import rank_correlation
from loraport_lab.demo import ColumnResult, DemoResult, Role
from loraport_lab.family.family import STUDENTS
from loraport_lab.pages.hero import write_moving, write_still
from loraport_lab.pages.pictures import FILM_SIDE, FRAME_MILLISECONDS, GUTTER, LAST_MILLISECONDS, film
from loraport_lab.pages.verdict import column_of, compare, mean, signed, verdict
from loraport_lab.pages.whiskers import draw_chart

DEMO_FILES = ("demo.json", "hero.png", "hero.webp")
"""What a demo leaves beside its page; the first of them before the others."""
DIGITS = {"psnr": 2}
NOTES: dict[Role, str] = {
    "reference": "many steps, with guidance: what the others should match",
    "student": "no LoRA",
    "direct": "on the student, unchanged",
    "transfer": "on the student, moved by weights alone",
    "beside": "on the student, moved by weights alone",
    "oracle": "with data and time: what is possible",
}


@dataclass(frozen=True)
class _Number:
    """A cell of the table: a mean, and its change against the LoRA as it is."""

    value: str
    change: str = ""
    sure: bool = False


def write_page(
    demo: DemoResult,
    path: Path,
    *,
    layers: Sequence[Mapping[str, Any]],
    facts: Mapping[str, str] | None = None,
    shown: int = 8,
) -> None:
    """Write the page of a demo.

    `layers` is the transfer's per-layer table (its JSON form; missing and null values show as a dash), `facts` are
    further lines such as method and settings, `shown` is how many clips appear (all are measured).
    """
    count, frames, height, width, _ = demo.columns[0].frames.shape
    student, order = STUDENTS.get(demo.student), demo.order[:shown]
    render(
        "demo.html.jinja",
        path,
        package="loraport_lab.pages",
        style=demo.style,
        student=demo.student,
        paradigm=student.paradigm if student else "",
        seed=demo.seed,
        count=count,
        size=f"{width} × {height}",
        facts=dict(facts or {}),
        verdict=verdict(demo),
        chart=draw_chart(demo),
        columns=[_head(demo, column) for column in demo.columns],
        metrics=[(metric, [_number(demo, column, metric.key) for column in demo.columns]) for metric in demo.metrics],
        rows=[(demo.prompts[clip], [film(column.frames[clip]) for column in demo.columns]) for clip in order],
        chosen=_chosen(demo, order),
        evaluated=_evaluated(demo),
        film=_film_sizes(frames, height, width),
        **layer_table(layers),
    )


def _chosen(demo: DemoResult, shown: Sequence[int]) -> str:
    """Say how the clips shown were chosen, and how they compare with all: a choice that flatters would be seen."""
    sentence = (
        f"{len(shown)} of the {len(demo.prompts)} clips, chosen by {demo.columns[0].label} alone: those in which the "
        "judge, a small network, is surest of what the prompt asks for."
    )
    direct, transfer = column_of(demo, "direct"), column_of(demo, "transfer")
    if direct is None or transfer is None:
        return sentence
    change = transfer.values["psnr"] - direct.values["psnr"]
    few, whole = (f"{mean(values):+.2f} dB".replace("-", "−") for values in (change[list(shown)], change))
    return f"{sentence} In these {transfer.label} changes fidelity by {few} on the mean, in all by {whole}."


def _evaluated(demo: DemoResult) -> dict[str, Any] | None:
    """Return the styles that `loraport evaluate` gives beside what the family's own judge says of the same clips."""
    columns = [column for column in demo.columns if column.label in demo.styles and "likeness" in column.values]
    if not columns:
        return None
    count = len(demo.styles[columns[0].label])
    same = list(demo.order[:count])
    judged = [mean(column.values["likeness"][same]) for column in columns]
    styles = [mean(demo.styles[column.label]) for column in columns]
    rows = [
        (column.label, column.role, f"{mean(column.values['effect'][same]):.1f}", f"{own:.1f}", f"{style:.1f}")
        for column, own, style in zip(columns, judged, styles, strict=True)
    ]
    alike = f"{rank_correlation(judged, styles):.2f}".replace("-", "−") if len(columns) > 2 else ""
    return {"count": count, "rows": rows, "alike": alike}


def _film_sizes(frames: int, height: int, width: int) -> dict[str, Any]:
    """Return what the page has to know of a film to show one of its frames, and for how long."""
    each = round(width * FILM_SIDE / max(height, width))
    pauses = [FRAME_MILLISECONDS] * (frames - 1) + [LAST_MILLISECONDS]
    starts = [100 * sum(pauses[:index]) / sum(pauses) for index in range(frames)]
    return {
        "frames": frames,
        "ratio": f"{width} / {height}",
        "width": each,
        "gutter": GUTTER,
        "tile": each + 2 * GUTTER,
        "pause": FRAME_MILLISECONDS,
        "last_pause": LAST_MILLISECONDS,
        "loop": sum(pauses),
        "starts": [f"{start:.3f}" for start in starts],
    }


def _head(demo: DemoResult, column: ColumnResult) -> dict[str, Any]:
    numbers = [f"effect {mean(column.values['effect']):.0f} %"]
    if "psnr" in column.values:
        numbers.insert(0, f"fidelity {mean(column.values['psnr']):.1f} dB")
    return {"label": column.label, "note": NOTES[column.role], "numbers": numbers, "role": column.role}


def _number(demo: DemoResult, column: ColumnResult, key: str) -> _Number:
    if key not in column.values:
        return _Number("reference" if column.role == "reference" else "–")
    digits = DIGITS.get(key, 1)
    value = f"{mean(column.values[key]):.{digits}f}"
    direct = column_of(demo, "direct")
    if direct is None or column.role in ("reference", "direct"):
        return _Number(value)
    change = compare(demo, column, direct, key)
    return _Number(value, signed(change, digits), change.sign != 0)


def write_demo(demo: DemoResult, results: Sequence[TransferResult], folder: Path) -> Path:
    """Write the demo's page, its pictures and its numbers into a folder; returns the page.

    `results` are the transfers, that of the method in question first.
    """
    page, (numbers, still, moving) = folder / "index.html", DEMO_FILES
    write_whole(folder / numbers, (json_text(demo_facts(demo, results, page), indent=2) + "\n").encode())
    facts = {
        "Files": ", ".join(result.output for result in results),
        **{f"Settings of {result.method}": in_words(result.settings) or "none" for result in results},
    }
    write_page(demo, page, layers=[layer.as_json() for layer in results[0].layers], facts=facts)
    write_still(demo, folder / still)
    write_moving(demo, folder / moving)
    return page


def demo_facts(demo: DemoResult, results: Sequence[TransferResult], page: Path) -> dict[str, Any]:
    """Return what the demo found, every number of it, for a program."""
    direct, found = column_of(demo, "direct"), verdict(demo)
    columns = []
    for column in demo.columns:
        numbers: dict[str, Any] = {}
        for key, values in column.values.items():
            numbers[key] = {"mean": mean(values), "standard_error": standard_error(values, demo.prompts)}
            if direct is not None and key in direct.values:
                change: Interval = compare(demo, column, direct, key)
                numbers[key]["change"] = change.as_json()
        if column.label in demo.styles:
            numbers["evaluate_style"] = {"mean": mean(demo.styles[column.label])}
        columns.append({"label": column.label, "role": column.role, **numbers})
    return {
        "page": str(page),
        "style": demo.style,
        "student": demo.student,
        "clips": len(demo.prompts),
        "seed": demo.seed,
        "found": [*found.first, *found.more],
        "columns": columns,
        "transfer": results[0].as_json(),
        "beside": results[1].as_json() if len(results) > 1 else None,
    }
