"""Say what transfers would do, take and fetch, and do nothing: plans and estimates from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loraport.compute import weights_device
from loraport.estimates.estimate import Estimate, estimate
from loraport.files.disk.sizes import size_words
from loraport.files.models.headers import HeadersUnknownError, HubHeaders
from loraport.files.models.hub import Download
from loraport.inputs.accelerator import SOURCE, split_target
from loraport.inputs.open import TransferInputs
from loraport.inputs.plan import LayerJob
from loraport.transfers.passes import Pass, prepare_passes

FILES_SHOWN = 4
"""Files of a download that are named with their sizes where not all are."""


@dataclass(frozen=True)
class DryRun:
    """What transfers would do."""

    runs: tuple[TransferInputs, ...]
    downloads: tuple[Download, ...]
    estimate: Estimate | None
    unknown: str | None = None
    """Why there is no plan: what only fetching would tell."""

    def as_json(self, *, several: bool = False) -> dict[str, Any]:
        """Return the plan of one run, or of `several` by their outputs, with downloads and the estimate."""
        plans = [_plan_rows(inputs) for inputs in self.runs]
        outputs = [inputs.config.output for inputs in self.runs]
        by_output = {"runs": [{"output": output, **plan} for output, plan in zip(outputs, plans, strict=True)]}
        rows = [
            {"model": one.where, "bytes": one.bytes, "files": [{"name": n, "bytes": s} for n, s in one.sizes.items()]}
            for one in self.downloads
        ]
        return {
            **(plans[0] if len(plans) == 1 and not several else by_output),
            "downloads": rows,
            "bytes": sum(one.bytes for one in self.downloads),
            "estimate": None if self.estimate is None else self.estimate.as_json(),
            **({"unknown": self.unknown} if self.unknown else {}),
        }

    def in_words(self, *, verbose: bool = False) -> dict[str, str]:
        """Return the same in a few lines; `verbose` names all files that would be fetched."""
        words = _moved(self.runs) if self.runs else {"plan": f"none yet: {self.unknown}"}
        if self.downloads:
            words["download"] = "\n".join(_download(one, verbose=verbose) for one in self.downloads)
        if self.estimate is not None:
            words |= _cost(self.runs, self.estimate)
        return words

    def layer_lines(self) -> Iterator[str]:
        """Yield a line for each layer, under its output's name where there are several."""
        for inputs in self.runs:
            if len(self.runs) > 1:
                yield f"{inputs.config.output}:"
            for job in inputs.plan.jobs:
                reason = f"  ({job.reason})" if job.reason else ""
                yield f"{job.action:<8}  {job.name}  {job.shape[0]} × {job.shape[1]}, rank {job.rank}{reason}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, each note once."""
        return tuple(dict.fromkeys(note for inputs in self.runs for note in inputs.plan.warnings))


def dry_run(passes: Sequence[Pass]) -> DryRun:
    """Return what transfers would do. Nothing is fetched: of models on the Hub the headers are read where they lie.

    Raises InputError for whatever is wrong with inputs, as far as headers tell.
    """
    opener = HubHeaders()
    try:
        for one in passes:
            for config in one.configs:
                opener.look_at_lora(config.lora)
        prepared = prepare_passes(passes, open_model=opener)
    except HeadersUnknownError as error:
        for one in passes:
            pair = split_target(one.configs[0].target)
            for model in (one.configs[0].source, pair[0] if pair else one.configs[0].target):
                if model != SOURCE:
                    opener.look_at_model(model)
        return DryRun((), opener.downloads, None, str(error))
    costs = [estimate(batch) for batch in prepared]
    whole = costs[0]
    for cost in costs[1:]:
        whole = whole + cost
    whole = whole.with_downloads(opener.downloads)
    return DryRun(tuple(inputs for batch in prepared for inputs in batch), opener.downloads, whole)


def _plan_rows(inputs: TransferInputs) -> dict[str, Any]:
    rows = [
        {"name": j.name, "action": j.action, "shape": j.shape, "rank": j.rank, "reason": j.reason}
        for j in inputs.plan.jobs
    ]
    return {"layers": rows, "warnings": list(inputs.plan.warnings)}


def _moved(runs: Sequence[TransferInputs]) -> dict[str, str]:
    jobs = [job for inputs in runs for job in inputs.plan.jobs]
    methods = ", ".join(dict.fromkeys(inputs.config.method for inputs in runs))
    files = f" of {len(runs)} runs" if len(runs) > 1 else ""
    moved = sum(job.action == "transfer" for job in jobs)
    words = {"would move": f"{moved} of {len(jobs)} layers{files}, by {methods}"}
    for action, label in (("copy", "would copy"), ("drop", "would drop")):
        if some := [job for job in jobs if job.action == action]:
            words[label] = f"{len(some)} layers: {_reasons(some)}"
    return words


def _reasons(jobs: Sequence[LayerJob]) -> str:
    """Return the most frequent reason, with how many others there are."""
    counts = Counter(job.reason or "as asked" for job in jobs)
    reason, _ = counts.most_common(1)[0]
    return reason + (f"; and {len(counts) - 1} other reasons (-v)" if len(counts) > 1 else "")


def _download(one: Download, *, verbose: bool) -> str:
    files = [f"{name} {size_words(size)}" for name, size in sorted(one.sizes.items(), key=lambda item: -item[1])]
    shown = files if verbose or len(files) <= FILES_SHOWN + 1 else [*files[:FILES_SHOWN], f"{len(files) - 4} more (-v)"]
    return f"{size_words(one.bytes)} from {one.where}: {', '.join(shown)}"


def _cost(runs: Sequence[TransferInputs], cost: Estimate) -> dict[str, str]:
    config = runs[0].config
    device = weights_device(config.device)
    threads = torch.get_num_threads()
    where = f"this processor, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else f"{device}"
    how = "layers measured elsewhere and a product timed here" if device.type == "cpu" else "layers measured on an H100"
    again = f"; {duration(cost.seconds_again)} once the cache has the bases" if cost.cache_bytes else ""
    outputs = runs[0].config.output if len(runs) == 1 else f"{len(runs)} files"
    bound = "at most " if config.rank.varies and not config.as_diff else ""
    of_card = f", and {size_words(cost.card_bytes)} of the card's" if cost.card_bytes else ""
    words = {
        "time": f"{duration(cost.seconds)} on {where} (by {how}){again}",
        "memory": f"about {size_words(cost.memory_bytes)} at most{of_card}",
        "would write": f"{outputs}, {bound}{size_words(cost.output_bytes)}",
    }
    if cost.cache_bytes and config.cache is not None:
        words["cache"] = f"{size_words(cost.cache_bytes)} of bases in {Path(config.cache)}"
    return words


def duration(seconds: float) -> str:
    """Return an estimated time for people: under a second, about 20 s, about 3 min, about 2 h 10 min."""
    if seconds < 1:
        return "under a second"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"about {hours} h {minutes} min" if hours < 10 and minutes else f"about {hours} h"
