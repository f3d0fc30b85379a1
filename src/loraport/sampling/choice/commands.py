"""The runs behind `loraport score` and `loraport calibrate`: inputs read, passes planned, results as one object."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport.compute import TORCH_DTYPES, peak_rss_bytes
from loraport.errors import unknown_name
from loraport.progress import NO_PROGRESS, Progress
from loraport.sampling.calibration.gains import GROUPINGS
from loraport.sampling.calibration.run import CalibrationSettings, calibrate, calibration_passes, solve_bytes
from loraport.sampling.choice.candidates import (
    NONE,
    check_place,
    read_adapter,
    read_candidate,
    write_calibrated,
)
from loraport.sampling.choice.guard import DIRECT, Verdict, decide
from loraport.sampling.end_error import EndEffect
from loraport.sampling.pair import Pair
from loraport.sampling.pass_counter import PassCounter
from loraport.sampling.samples import SampleStore
from loraport.sampling.score import Score, judged_clips, score, score_passes

Table = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate, how, and where the result goes."""

    lora: str
    output: str
    start: str | None
    gains: str
    readout: bool
    rank: str
    budget: int | None
    clips: int
    seed: int
    cache: str | None
    format: str
    dtype: str
    lora_part: str | None = None

    def settings(self) -> CalibrationSettings:
        """Return the settings of the calibration. Raises SettingsError for unknown names."""
        if self.gains not in (*GROUPINGS, NONE):
            raise unknown_name("grouping of gains", self.gains, (*GROUPINGS, NONE))
        if self.rank not in ("auto", "source"):
            raise unknown_name("rank of a calibration", self.rank, ("auto", "source"))
        return CalibrationSettings(self.clips, self.gains, self.readout, rank=self.rank, seed=self.seed)  # type: ignore[arg-type]


@dataclass(frozen=True)
class CommandResult:
    """The result of a command: facts for JSON, and a table of words for people."""

    facts: Mapping[str, Any]
    rows: Table

    def as_json(self) -> dict[str, Any]:
        """Return the one object that `--json` prints."""
        return dict(self.facts)

    def table(self) -> Table:
        """Return the lines for people."""
        return self.rows


def run_score(
    pair: Pair,
    lora: str,
    candidates: Sequence[str],
    *,
    clips: int,
    seed: int,
    cache: str | None,
    lora_part: str | None = None,
    progress: Progress = NO_PROGRESS,
    dry_run: bool = False,
) -> CommandResult:
    """Score the candidates on clips drawn for judging; samples are kept in the folder `cache`."""
    began = time.perf_counter()
    _, direct, notes = read_adapter(lora, pair, part=lora_part)
    read = {text: read_candidate(text, direct, pair) for text in dict.fromkeys((DIRECT, *candidates))}
    planned = score_passes(pair, clips, len(read))
    if dry_run:
        words = (("would take", f"{planned} passes for {clips} clips"), NOTHING_WRITTEN)
        return CommandResult(_planned(pair, {"passes": planned, "clips": clips}), (_sampled(pair), *words))
    counter = PassCounter(planned, progress)
    store = SampleStore(cache)
    effect = EndEffect(pair, direct, judged_clips(clips, seed), store, counter)
    rows = score(effect, direct, {text: updates for text, (updates, _) in read.items()})
    facts = {
        "clips": clips,
        "prompts": len(set(pair.prompts(effect.clips))),
        "scores": [row.as_json() for row in rows],
        "target_sampler": pair.sampler.as_json(),
        "notes": [*pair.notes, *notes, *(note for _, more in read.values() for note in more)],
        **_spent(counter, began),
    }
    counted = f"{clips}, of {facts['prompts']} prompts"
    return CommandResult(facts, (("clips", counted), _sampled(pair), *score_table(rows)))


def run_calibration(
    pair: Pair, request: CalibrationRequest, *, progress: Progress = NO_PROGRESS, dry_run: bool = False
) -> CommandResult:
    """Calibrate, judge the result on clips of its own, and write it, or direct reuse unless it is surely better."""
    began = time.perf_counter()
    settings = request.settings()
    lora, adapter, notes = read_adapter(request.lora, pair, part=request.lora_part)
    start, more = (adapter, ()) if request.start is None else read_candidate(request.start, adapter, pair)
    if request.dtype not in TORCH_DTYPES:
        raise unknown_name("dtype", request.dtype, TORCH_DTYPES)
    check_place(request.output, lora, request.format, (request.start, request.cache))
    planned = calibration_passes(pair, start, settings)
    planned["judging"] = score_passes(pair, request.clips, 2 if request.start is None else 3)
    if dry_run:
        return _estimate(pair, planned, solve_bytes(pair, settings))
    counter, store = PassCounter(sum(planned.values()), progress, request.budget), SampleStore(request.cache)
    done = calibrate(pair, adapter, start, settings, store=store, counter=counter)
    effect = EndEffect(pair, adapter, judged_clips(request.clips, request.seed), store, counter)
    candidates = {DIRECT: adapter, **({request.start: start} if request.start else {}), "calibrated": done.updates}
    rows = score(effect, adapter, candidates)
    verdict = decide(rows, request.clips)
    kept = candidates[verdict.kept]
    told = {"settings": settings.as_json(), "calibration": done.as_json(), "guard": verdict.as_json()}
    written = write_calibrated(request.output, kept, lora, told, dtype=request.dtype, format=request.format)
    facts = {
        "output": request.output,
        "kept": verdict.kept,
        **told,
        "rank": written.rank,
        "target_sampler": pair.sampler.as_json(),
        "notes": [*pair.notes, *notes, *more],
        **_spent(counter, began),
    }
    kept_as = ("kept", _sentence(verdict))
    return CommandResult(facts, (("wrote", request.output), kept_as, _sampled(pair), *score_table(rows)))


def _sentence(verdict: Verdict) -> str:
    return f"{verdict.kept}: {verdict.reason}"


HEADINGS = ("end error", "missed", "of direct", "95 %", "lower in", "p")
COLUMNS = """missed: of the adapter's effect, what is missing or wrong
of direct: the end error as a share of direct reuse's, and its interval
lower in: so many clips; p: of the sign test"""
WIDEST_LABEL = 20
"""Of a candidate in the table; a longer path is shown by its last part."""


def score_table(rows: tuple[Score, ...]) -> Table:
    """Return a line for each score below a heading, in columns that fit into 80 letters, and what the columns mean."""
    lines = [HEADINGS, *map(_cells, rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEADINGS))]
    texts = ("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    labels = ("candidate", *_labels([row.label for row in rows]))
    return (*zip(labels, texts, strict=True), ("columns", COLUMNS))


def _cells(row: Score) -> tuple[str, ...]:
    missed = "–" if row.left is None else f"{100 * row.left.value:.0f} %"
    error = f"{row.error.value:.3g}"
    if row.label == DIRECT or row.of_direct is None:
        return error, missed, "–", "–", "–", "–"
    share, clips = row.of_direct, row.better + row.worse
    # of one clip alone the interval is open
    interval = f"{100 * share.low:.0f}–{100 * share.high:.0f} %" if math.isfinite(share.high) else "open"
    return error, missed, f"{100 * share.value:.0f} %", interval, f"{row.better} of {clips}", f"{row.p:.2g}"


def _labels(candidates: list[str]) -> list[str]:
    short = [label if len(label) <= WIDEST_LABEL else Path(label).name for label in candidates]
    return short if len({*short}) == len(short) else candidates


NOTHING_WRITTEN = ("written", "nothing")


def _sampled(pair: Pair) -> tuple[str, str]:
    return ("target", pair.sampler.in_words())


def _planned(pair: Pair, facts: dict[str, Any]) -> dict[str, Any]:
    return {**facts, "target_sampler": pair.sampler.as_json(), "notes": list(pair.notes), "dry_run": True}


def _estimate(pair: Pair, planned: Mapping[str, int], solving: int) -> CommandResult:
    facts = _planned(pair, {"passes": dict(planned), "solve_bytes": solving})
    passes = (
        f"at most {sum(planned.values())} passes: {planned['source']} of the source and {planned['target']} of the "
        f"target to fit and accept, {planned['judging']} of both to judge"
    )
    memory = f"{solving / 1e6:.3g} MB beside the networks for the largest solve"
    return CommandResult(facts, (_sampled(pair), ("would take", passes), ("memory", memory), NOTHING_WRITTEN))


def _spent(counter: PassCounter, began: float) -> dict[str, Any]:
    return {
        "passes": counter.as_json(),
        "seconds": time.perf_counter() - began,
        "peak_rss_bytes": peak_rss_bytes(),
    }
