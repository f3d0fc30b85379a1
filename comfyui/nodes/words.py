"""What a node says: a few plain lines about a transfer, a diagnosis, a conversion, or a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loraport.conversion import Conversion
from loraport.diagnosis.result import Diagnosis
from loraport.reports.diagnosis_words import diagnosis_words
from loraport.transfers.results import TransferResult

_OF_THE_SHELL = "took"
_AS_DIFF = re.compile(r"; --as diff [^;.]*(?:\.\d[^;.]*)?")
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*)")


def transfer_words(result: TransferResult, advice: str, notes: Iterable[str], where: str) -> str:
    """Return what a transfer did. `advice` is the verdict that chose its method, `where` how to load the result."""
    done = [layer for layer in result.layers if layer.status == "transferred"]
    others = len(result.layers) - len(done)
    first = f"{os.path.basename(result.lora)} by {result.method}: {len(done)} layers transferred"
    first += f", {others} copied or left out" if others else ""
    kept = result.kept_correction
    lines = [first, where]
    if advice:
        lines.append(f"Why this method: {advice}")
    elif result.advice is not None:
        lines.append(f"Advice: {result.advice.line()}")
    if kept is not None:
        lines.append(f"The written rank keeps {100 * kept:.0f} % of what the method changed.")
    lines += _noted([*_dropped(result.keys.dropped), *notes, *result.warnings])
    return "\n".join(line for line in lines if line)


def diagnosis_text(told: Diagnosis) -> str:
    """Return a diagnosis: the verdict, and what it rests on."""
    rows = [f"{name}: {text}" for name, text in diagnosis_words(told).items() if name != _OF_THE_SHELL]
    return "\n".join([f"Verdict: {told.line()}", *rows, *_noted(told.notes)])


def conversion_text(done: Conversion, name: str) -> str:
    """Return what a conversion did."""
    first = f"Wrote {name}: {done.format}, {done.dtype}, {done.layers} layers, rank {done.rank}."
    return "\n".join([first, *_noted([*_dropped(done.keys.dropped), *done.notes])])


def facts_text(facts: Mapping[str, Any]) -> str:
    """Return what `inspect` found, a line each; loaders by what they take."""
    lines = [f"{name}: {_plain(value)}" for name, value in facts.items() if name != "loaders" and _is_said(value)]
    rows: Sequence[Mapping[str, Any]] = facts.get("loaders") or ()
    takes: dict[str, list[str]] = {}
    for row in rows:
        takes.setdefault(str(row["takes"]), []).append(str(row["loader"]))
    lines += [f"loads in ({how}): {', '.join(dict.fromkeys(names))}" for how, names in takes.items()]
    return "\n".join(lines)


def _dropped(dropped: Iterable[Sequence[str]]) -> list[str]:
    """Return a line for each reason for which keys were left out, with the first of them."""
    reasons: dict[str, list[str]] = {}
    for key, reason in dropped:
        reasons.setdefault(reason, []).append(key)
    return [
        f"dropped {keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}: {reason}"
        for reason, keys in reasons.items()
    ]


def _noted(notes: Iterable[str]) -> list[str]:
    return [f"Note: {as_inputs(note)}" for note in dict.fromkeys(notes)]


def as_inputs(text: str) -> str:
    """Return a message that speaks of the command's options with the names of the nodes' inputs.

    What no node has is left out: dense differences.
    """
    return _OPTION.sub(lambda option: option[1].replace("-", "_"), _AS_DIFF.sub("", text))


def _is_said(value: object) -> bool:
    return value is not None and value != [] and value != {} and value != ""


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        shown = [_plain(one) for one in value[:12]]
        return ", ".join(shown) + (f" and {len(value) - 12} more" if len(value) > 12 else "")
    return str(value)
