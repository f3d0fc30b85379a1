"""The results of many transfers: a short row for each, the same in the terminal, on the page and as CSV."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from loraport.inputs.config import TransferConfig
from loraport.transfers.results import NotWritten, TransferResult

JobStatus = Literal["made", "there already", "failed"]


@dataclass(frozen=True)
class JobRow:
    """What became of one job. Shares are medians over the layers that were transferred; None where there are none."""

    lora: str
    method: str
    output: str
    status: JobStatus
    reason: str = ""
    """Why it failed."""
    source: str = ""
    target: str = ""
    layers: int | None = None
    transferred: int | None = None
    rank: str = ""
    size: float | None = None
    """‖D'‖ / ‖D_lora‖"""
    cosine: float | None = None
    kept_energy: float | None = None
    kept_correction: float | None = None
    dropped: int | None = None
    """How many keys of the LoRA have no place in the output."""
    seconds: float | None = None
    advice: str = ""
    """What the weights of the pair speak for."""
    lost_keys: tuple[tuple[str, str], ...] = ()
    """These keys, each with the reason."""

    @classmethod
    def of(cls, result: TransferResult) -> JobRow:
        """Return the row of a finished transfer."""
        done = [layer for layer in result.layers if layer.status == "transferred"]
        ranks = sorted({layer.rank_out for layer in done if layer.rank_out is not None})
        return cls(
            result.lora, result.method, result.output, "made", "", result.source, result.target,
            len(result.layers), len(done),
            "–".join(str(rank) for rank in dict.fromkeys((ranks[0], ranks[-1]))) if ranks else "full",
            _median([layer.update / layer.lora if layer.update is not None and layer.lora else None for layer in done]),
            _median([layer.cosine for layer in done]), result.kept_energy, result.kept_correction,
            len(result.keys.dropped), result.seconds["total"],
            "" if result.advice is None else result.advice.line(), result.keys.dropped,
        )  # fmt: skip

    @classmethod
    def failed(cls, one: NotWritten) -> JobRow:
        """Return the row of a job that could not be done."""
        return cls(one.lora, one.method, one.output, "failed", one.reason, one.source, one.target)

    @classmethod
    def finished(cls, job: TransferConfig) -> JobRow:
        """Return the row of a job that an earlier start has done."""
        return cls(job.lora, job.method, job.output, "there already", "", job.source, job.target)

    def as_json(self) -> dict[str, Any]:
        """Return the row with the names of its columns."""
        return asdict(self)


def failure_line(lora: str, reason: str) -> str:
    """Return which LoRA failed and why, in one line."""
    text = " ".join(reason.split("\n"))
    return text if lora and lora in text else f"{lora}: {text}"


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


@dataclass(frozen=True)
class ManyResult:
    """The end of many transfers."""

    rows: tuple[JobRow, ...]
    """Of all jobs: made now, there already, failed."""
    runs: tuple[TransferResult, ...] = ()
    """The whole results of those that were made now, as many as were asked for."""
    lost: bool = False
    """Whether something of an input is gone without the user having asked for it."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_rss_bytes: int = 0

    def of(self, status: JobStatus) -> tuple[JobRow, ...]:
        """Return the rows of one kind."""
        return tuple(row for row in self.rows if row.status == status)

    def as_json(self) -> dict[str, Any]:
        """Return the one object that `--json` prints; `runs` and `not_written` are as for a few transfers."""
        return {
            "runs": [{"lora": run.lora, **run.as_json()} for run in self.runs],
            "not_written": [[row.output, row.reason] for row in self.of("failed")],
            "failures": [
                {"lora": row.lora, "method": row.method, "output": row.output, "reason": row.reason}
                for row in self.of("failed")
            ],
            "already": [row.output for row in self.of("there already")],
            "seconds": dict(self.seconds),
            "peak_rss_bytes": self.peak_rss_bytes,
        }
