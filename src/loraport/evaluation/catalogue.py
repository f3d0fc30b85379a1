"""All metrics, by name, and which of them a run measures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from loraport.errors import SettingsError, unknown_name
from loraport.evaluation.metrics.metric import Metric, Need
from loraport.evaluation.metrics.own import OWN_METRICS
from loraport.evaluation.networks.table import NETWORK_METRICS

METRICS: dict[str, Metric] = {metric.name: metric for metric in (*OWN_METRICS, *NETWORK_METRICS)}
"""Every metric by its name."""
GROUPS: dict[str, str] = {
    "free": "those that need no weights to be fetched",
    "casa": "those of the tables of CASA's paper",
    "prolora": "those of the tables of ProLoRA's paper",
    "all": "all of them",
}
"""Names for several metrics at once."""
INSTALL = "pip install 'loraport[evaluate]'"


@dataclass(frozen=True)
class Choice:
    """The metrics of a run: those that were named, or those that can be had without asking."""

    metrics: tuple[Metric, ...]
    named: bool
    """Whether the user asked for them: then one that cannot be measured is something to fetch, and not skipped."""


def choose_metrics(names: Sequence[str]) -> Choice:
    """Return the metrics by names and groups, in the table's order; without names, all of them, unasked.

    Raises SettingsError for an unknown name.
    """
    if not names:
        return Choice(tuple(METRICS.values()), named=False)
    wanted: set[str] = set()
    for name in names:
        if name not in METRICS and name not in GROUPS:
            raise unknown_name("metric", name, (*GROUPS, *METRICS))
        wanted |= set(_in_group(name)) if name in GROUPS else {name}
    return Choice(tuple(metric for metric in METRICS.values() if metric.name in wanted), named=True)


def _in_group(group: str) -> Iterable[str]:
    for metric in METRICS.values():
        papers = {paper.lower() for paper in metric.papers}
        if group == "all" or group in papers or (group == "free" and not metric.instrument.weights):
            yield metric.name


def missing_modules(metric: Metric) -> list[str]:
    """Return the packages that a metric needs and that are not installed."""
    return [name for name in metric.instrument.modules if find_spec(name) is None]


def check_needs(
    choice: Choice, has: dict[Need, bool], lacking: dict[Need, str]
) -> tuple[tuple[Metric, ...], list[str]]:
    """Return the metrics whose needs are met, and a sentence for each need that is not; `lacking`: what to do about it.

    Raises SettingsError where none is left.
    """
    kept = tuple(metric for metric in choice.metrics if all(has[need] for need in metric.needs))
    sentences = []
    for need, met in has.items():
        without = [metric.name for metric in choice.metrics if need in metric.needs]
        if not met and without:
            sentences.append(f"without a {need} not measured: {', '.join(without)}; {lacking[need]}")
    if not kept:
        raise SettingsError("; ".join(sentences))
    return kept, sentences


def metric_rows() -> list[dict[str, Any]]:
    """Return what is known of every metric, for `--list --json` and the page of the reference."""
    return [
        {
            "name": metric.name,
            "title": metric.title,
            "words": metric.words,
            "better": metric.better,
            "ideal": metric.ideal,
            "unit": metric.unit,
            "needs": sorted(metric.needs),
            "papers": list(metric.papers),
            "style": metric.style,
            "per": "clip" if metric.score else "column",
            "least_frames": metric.least_frames,
            "instrument": metric.instrument.name,
            "version": metric.instrument.version,
            "modules": list(metric.instrument.modules),
            "weights": [
                {
                    "repo": weights.repo,
                    "revision": weights.revision,
                    "files": [{"path": file.path, "bytes": file.bytes} for file in weights.files],
                    "bytes": weights.bytes,
                    "licence": weights.licence,
                    "note": weights.note,
                    "command": weights.command,
                }
                for weights in metric.instrument.weights
            ],
        }
        for metric in METRICS.values()
    ]
