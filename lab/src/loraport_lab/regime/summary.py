"""The map in short: a line for each student, the changes of its adapters put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from loraport.reports.rendering import csv_text
from loraport.sampling.statistics import Interval
from loraport_lab.regime.table import HERE, Line, as_a_file

_METHODS = ("casa", "arbitrate-only", "restore-only", "undo:0.25", "undo-orthogonal:0.25")
_COLUMNS = (
    *("width", "student", "drift, %", "ρ₂, %", "LoRAs"),
    *(f"{name}, dB (better / worse)" for name in _METHODS),
    *("core, dB", "prolora, dB", "casa, effect", "oracle, dB", "casa, gap closed", "undo:0.25, gap closed"),
)
_BINS = (0.4, 1.0, float("inf"))
"""Ends of the ranges of ρ₂ that the short table tells apart, in percent: the paper's models lie below 0.3."""
_OF_A_KIND = ("casa", "undo-orthogonal:0.25", "undo:0.25")
_OF_LORAS = ("casa", "restore-only", "arbitrate-only", "undo-orthogonal:0.25", "undo:0.25", "oracle")
MOTION = "swing"
"""The adapter that moves things; the others are styles."""
MINUS = "\N{MINUS SIGN}"


def summary_csv(lines: Sequence[Line]) -> bytes:
    """Return a line for each student, by width, place and drift; LoRAs that are not as usual are left out."""
    students: dict[tuple[object, ...], list[Line]] = {}
    for line in lines:
        if line.usual:
            students.setdefault(line.distilled, []).append(line)
    found = sorted(
        students.values(),
        key=lambda group: (group[0].width, group[0].where, *group[0].base[1:], _statistic(group, "drift")),
    )
    return csv_text(_COLUMNS, map(_summary, found)).encode()


def regimes_csv(lines: Sequence[Line]) -> bytes:
    """Return a line for each width and range of ρ₂: what some methods gain there, for styles and for the motion.

    LoRAs that are not as usual are left out, and accelerators, which are no distillation of all weights.
    """
    shown = [line for line in lines if line.usual and line.student != "accelerator"]
    groups: dict[tuple[str, ...], list[Line]] = {}
    for width in sorted({line.width for line in shown}):
        for low, high in pairwise((0.0, *_BINS)):
            size = f"{low:g} to {high:g}" if high < _BINS[-1] else f"over {low:g}"
            groups[str(width), size] = [line for line in shown if line.width == width and _within(line, low, high)]
    return _by_kind(("width", "ρ₂, %"), groups)


def paradigms_csv(lines: Sequence[Line]) -> bytes:
    """Return the same with a line for each paradigm, accelerators too."""
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        if line.usual:
            groups.setdefault((line.student,), []).append(line)
    return _by_kind(("paradigm",), dict(sorted(groups.items())))


def _by_kind(names: Sequence[str], groups: Mapping[tuple[str, ...], Sequence[Line]]) -> bytes:
    methods = [f"{kind}: {name}" for kind in ("style", "motion") for name in _OF_A_KIND]
    rows = []
    for place, group in groups.items():
        kinds = [[line for line in group if (line.adapter == MOTION) is moves] for moves in (False, True)]
        count, students = len(as_a_file(group, "direct")), len({line.distilled for line in group})
        gains = [_with_counts(as_a_file(kind, name)) for kind in kinds for name in _OF_A_KIND]
        rows += [[*place, str(students), str(count), *gains]] if count else []
    return csv_text([*names, "students", "LoRAs", *methods], rows).encode()


def _within(line: Line, low: float, high: float) -> bool:
    return low < 100 * line.statistics["rho2"] <= high


def base_words(line: Line) -> str:
    """Return the width of a base, and what else tells it apart."""
    made = f"{line.base_steps} steps" if line.where == HERE else line.where
    return f"{line.width} ({made}{f', seed {line.seed}' if line.seed else ''})"


def loras_csv(lines: Sequence[Line]) -> bytes:
    """Return the LoRAs of several strengths and lengths of training on the same student, side by side."""
    unusual = {(line.distilled, line.adapter) for line in lines if not line.usual}
    shown = [line for line in lines if (line.distilled, line.adapter) in unusual]
    methods = [f"{name}, dB" for name in _OF_LORAS]
    head = ("base", "student", "drift, %", "LoRA", "strength", "training", "size, %", *methods, "casa, effect")
    rows = {name: {line.cell: line for line in as_a_file(shown, name)} for name in _OF_LORAS}
    table = []
    for line in sorted(as_a_file(shown, "direct"), key=_order):
        own = [rows[name].get(line.cell) for name in _OF_LORAS]
        casa = rows["casa"].get(line.cell)
        table.append(
            [
                base_words(line), line.student, f"{100 * line.statistics['drift']:.2g}", line.adapter,
                f"{line.strength:g}", f"× {line.lora_length}", f"{100 * line.statistics['lora']:.2g}",
                *(_change(one.fidelity if one else None, 2) for one in own), _change(casa.effect if casa else None, 1),
            ]
        )  # fmt: skip
    return csv_text(head, table).encode()


def _order(line: Line) -> tuple[object, ...]:
    return (
        line.where != HERE,
        line.base,
        line.student,
        line.statistics["drift"],
        line.adapter,
        line.lora_length,
        line.strength,
    )


def _change(interval: Interval | None, digits: int) -> str:
    """Return a change with a star where its interval excludes zero."""
    if interval is None:
        return "–"
    return f"{interval.value:+.{digits}f}{'*' if interval.sign else ''}".replace("-", MINUS)


def _summary(group: Sequence[Line]) -> list[str]:
    first, direct = group[0], as_a_file(group, "direct")
    return [
        base_words(first),
        first.student,
        f"{100 * _statistic(group, 'drift'):.2g}",
        f"{100 * _statistic(group, 'rho2'):.2g}",
        str(len(direct)),
        *(_with_counts(as_a_file(group, name)) for name in _METHODS),
        *(_mean(as_a_file(group, name), lambda line: line.fidelity, "+.2f") for name in ("core", "prolora")),
        _mean(as_a_file(group, "casa"), lambda line: line.effect, "+.1f"),
        _mean(as_a_file(group, "oracle"), lambda line: line.fidelity, "+.2f"),
        *(_mean(as_a_file(group, name), lambda line: line.closed, "+.0%") for name in ("casa", "undo:0.25")),
    ]


def _statistic(group: Sequence[Line], name: str) -> float:
    return sum(line.statistics.get(name, 0.0) for line in group) / len(group)


def _with_counts(lines: Sequence[Line]) -> str:
    known = [line.fidelity for line in lines if line.fidelity is not None]
    better, worse = (sum(one.sign == sign for one in known) for sign in (1, -1))
    mean = _mean(lines, lambda line: line.fidelity, "+.2f")
    return f"{mean} ({better} / {worse})" if known else mean


def _mean(lines: Sequence[Line], value: Callable[[Line], Interval | None], form: str) -> str:
    known = [interval.value for interval in map(value, lines) if interval is not None]
    return format(sum(known) / len(known), form).replace("-", MINUS).replace("%", " %") if known else "–"
