"""Print what a person sees in the terminal: progress and messages on stderr, results on stdout."""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import progress as rich_progress
from rich.console import Console
from rich.text import Text

from loraport.layout import facts_lines, styled, table_lines, width_of, wrapped
from loraport.plain_json import json_text
from loraport.printable import printable, raw_stream
from loraport.progress import Pace

if TYPE_CHECKING:
    from loraport.analysis.probe_model import ProbeResult
    from loraport.conversion import Conversion
    from loraport.merging import Merge
    from loraport.transfers.dry_run import DryRun
    from loraport.transfers.results import BatchResult, TransferResult

OPENING = "reading"
"""What the bar says before the first report."""
_NUMBER = re.compile(r"\d+(\.\d+)?")


class Terminal:
    """Shows the progress of a run: messages and a bar on stderr. The bar needs a terminal; `quiet` silences both."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.console = Console(file=raw_stream(sys.stderr), highlight=False, soft_wrap=True, markup=False)
        self.quiet, self.verbose = quiet, verbose
        self.bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.TaskProgressColumn(),
            _TimeLeft(self),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.task: rich_progress.TaskID | None = None
        self.doing = ""
        self.pace = Pace(0)
        self.total = 0

    def __enter__(self) -> Terminal:
        if not self.bar.disable:  # something moves while files are opened
            self.task, self.doing = self.bar.add_task(OPENING, total=None), OPENING
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, text: str, done: int, total: int) -> None:
        """Print which of several longer steps begins."""
        self.say(f"[{done + 1}/{total}] {text}")

    def advance(self, text: str, done: int, total: int, part: str = "") -> None:
        """Move the bar, and print a line where `verbose` is set."""
        if self.task is None or self.doing != text:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task, self.doing = self.bar.add_task(printable(text), total=total), text
            self.pace = Pace(done)
            self.bar.start()
        self.pace.report(done)
        self.total = total
        self.bar.update(self.task, completed=done)
        if part or done:
            for line in (part or f"{text}: {done} of {total}").splitlines():
                self.detail(line)

    def detail(self, text: str) -> None:
        """Print a line where `verbose` is set."""
        if self.verbose:
            self.say(text)

    def note(self, text: str) -> None:
        """Print something worth reading."""
        self.say(f"note: {text}")

    def say(self, text: str) -> None:
        """Print a line on stderr, unless quiet."""
        if not self.quiet:
            for line in message_lines(printable(text), self.console.file):
                self.console.out(line, highlight=False)


class _TimeLeft(rich_progress.ProgressColumn):
    """How long the rest takes, by the terminal's pace."""

    max_refresh = 0.5

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def render(self, task: rich_progress.Task) -> Text:
        """Return it as `1:02:03 left`."""
        seconds = self._terminal.pace.seconds_left(self._terminal.total)
        if seconds is None:
            return Text("")
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02d}:{rest:02d} left" if hours else f"{minutes}:{rest:02d} left")


def print_facts(facts: Mapping[str, Any], *, json: bool) -> None:
    """Print names and values: one JSON object, or two columns."""
    if json:
        sys.stdout.write(json_text(facts, indent=2, ensure_ascii=False) + "\n")
        return
    say_facts({name: _plain(value) for name, value in facts.items()})


def say_facts(facts: Mapping[str, str]) -> None:
    """Print names and values on stdout, wrapped to the terminal, the names in colour where it has colours."""
    raw = raw_stream(sys.stdout)
    for label, text in facts_lines({name: printable(text) for name, text in facts.items()}, width_of(raw)):
        raw.write(f"{styled(label, 'label', raw)}{text}".rstrip() + "\n")


def say_table(rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout, as wide as the terminal."""
    for line in table_lines(rows, width_of(raw_stream(sys.stdout))):
        print(line)


def message_lines(text: str, stream: Any) -> list[str]:
    """Return a message as the lines of a terminal, or as one; what warns is in colour."""
    lines = wrapped(text, width_of(stream))
    if lines and lines[0].startswith("note: "):
        lines[0] = styled("note:", "warning", stream) + lines[0].removeprefix("note:")
    return lines


def say_line(text: str) -> None:
    """Print a line on stdout, wrapped to the terminal."""
    raw = raw_stream(sys.stdout)
    for line in message_lines(printable(text), raw):
        raw.write(line + "\n")


def say_aside(text: str) -> None:
    """Print a message on stderr."""
    raw = raw_stream(sys.stderr)
    for line in message_lines(printable(text), raw):
        raw.write(line + "\n")
    raw.flush()


def print_scored(facts: Mapping[str, Any], table: Iterable[tuple[str, str]], *, json: bool, quiet: bool) -> None:
    """Print scores or a calibration: JSON, or a line each on stdout with the notes on stderr."""
    if json:
        print_facts(facts, json=True)
        return
    if not quiet:
        for note in facts["notes"]:
            say_aside(f"note: {note}")
        print_facts(dict(table), json=False)


def print_outcome(
    facts: Mapping[str, Any], words: Mapping[str, str], *, json: bool, quiet: bool, verbose: bool
) -> None:
    """Print what a command did: JSON, or words on stdout, with notes and what was dropped on stderr."""
    if json:
        print_facts(facts, json=True)
        return
    if not quiet:
        for note in facts["notes"]:
            say_aside(f"note: {note}")
        print_facts(words, json=False)
    print_dropped(facts["keys"]["dropped"], verbose=verbose)


def print_dropped(dropped: Iterable[Sequence[str]], *, verbose: bool, where: str = "") -> None:
    """Print the lost keys: a line on stderr for each reason, with two of its keys; `verbose` gives each key a line.

    Reasons that differ in their numbers alone count as one, printed as it is for the first key.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, reason in dropped:
        groups.setdefault(f"{key}: {reason}" if verbose else _NUMBER.sub("#", reason), []).append((key, reason))
    for group in groups.values():
        (first, reason), count = group[0], len(group)
        more = ", …; -v lists all" if count > 2 else ""
        keys = first if count == 1 else f"{count} keys ({first}, {group[1][0]}{more})"
        say_aside(f"loraport: {where}dropped {keys}: {reason}")


def conversion_words(result: Conversion) -> dict[str, str]:
    """Return what a conversion did, for people."""
    return {
        "wrote": result.output,
        "format": f"{result.format}, {result.dtype}, {result.layers} layers, rank {result.rank}",
        "keys": str(result.keys).replace("transferred", "converted"),
    }


def merge_words(result: Merge) -> dict[str, str]:
    """Return what a merge did, for people."""
    return {
        "wrote": result.output,
        "tensors": f"{result.changed} changed, {result.parameters - result.changed} copied bit by bit",
        "LoRAs": ", ".join(f"{one['lora']} at strength {one['strength']:g}" for one in result.loras),
        "keys": str(result.keys),
    }


def probe_words(result: ProbeResult) -> dict[str, str]:
    """Return what a probe did, for people."""
    share = "there is no drift" if result.changed is None else f"{result.changed:.1%} of the drift's energy"
    words = {
        "wrote": result.output,
        "layers": f"{result.layers} changed, {result.untouched} looked at and left, "
        f"{len(result.left_out)} not looked at",
        "change": share,
    }
    if result.unused:
        words["LoRA"] = f"{len(result.unused)} of its layers play no part, {result.unused[0]} for one"
    return words


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return "\n".join(_plain(one) for one in value) or "none"
    return "none" if value is None else str(value)


def print_dry_run(dry: DryRun, *, json: bool, verbose: bool) -> None:
    """Print what a run would do in at most ten lines, layers under `verbose`; or as JSON."""
    if json:
        print_facts(dry.as_json(), json=True)
        return
    if verbose:
        for line in dry.layer_lines():
            print(line)
    print_facts(dry.in_words(verbose=verbose), json=False)
    notes = dry.notes
    few = notes if verbose or len(notes) == 1 else notes[:1]
    for note in few:
        say_line(f"note: {note}" + (f" (and {len(notes) - 1} more notes: -v)" if len(few) < len(notes) else ""))
    say_line("nothing was downloaded or written" + ("" if verbose else "; -v lists the layers"))


def print_transfers(
    batch: BatchResult, *, json: bool, quiet: bool, verbose: bool, more: Mapping[str, str] | None = None
) -> None:
    """Print the results in a few lines each, with `more` lines about a single one, or as JSON."""
    if json:
        print_facts(batch.as_json(), json=True)
        return
    if not quiet and batch.several:
        say_table(_comparison(batch))
        seconds, memory = batch.seconds["total"], batch.peak_rss_bytes / 1e9
        files = "1 file" if len(batch.runs) == 1 else f"{len(batch.runs)} files"
        where = batch.runs[0].device if batch.runs else "cpu"
        say_line(f"{files} took {seconds:.1f} s together on {where}, at most {memory:.2f} GB of memory")
        for advice in dict.fromkeys(result.advice.line() for result in batch.runs if result.advice is not None):
            say_line(f"advice: {advice}")
    for result in batch.runs:
        if not quiet and not batch.several:
            print_facts({**_summary(result), **(more or {})}, json=False)
        where = f"{result.output}: " if batch.several else ""
        print_dropped(result.keys.dropped, verbose=verbose, where=where)
    for one in batch.not_written:
        say_aside(f"loraport: {one.output} was not written: {one.reason}")


def _comparison(batch: BatchResult) -> list[list[str]]:
    """Return a row for each file: what a reader compares, medians over layers."""
    rows = [["wrote", "layers", "rank", "size", "cosine", "kept", "seconds"]]
    for result in batch.runs:
        done = [layer for layer in result.layers if layer.status == "transferred"]
        sizes = [layer.update / layer.lora if layer.update is not None and layer.lora else None for layer in done]
        rows.append(
            [
                result.output,
                f"{len(done)} of {len(result.layers)}",
                _span(layer.rank_out for layer in done) if done else "–",
                _median(sizes),
                _median(layer.cosine for layer in done),
                _percent(result.kept_correction) if result.kept_correction is not None else "–",
                f"{result.seconds['total']:.1f}",
            ]
        )
    return rows


def _summary(result: TransferResult) -> dict[str, str]:
    done = [layer for layer in result.layers if layer.status == "transferred"]
    count = dict.fromkeys(("transferred", "copied", "skipped"), 0)
    for layer in result.layers:
        count[layer.status] += 1
    count["copied"] -= (unknown := sum(layer.drift_unknown for layer in result.layers))
    facts = {
        "wrote": result.output,
        "method": f"{result.method}, rank {_span(layer.rank_out for layer in done)}" if done else result.method,
        "layers": ", ".join(f"{number} {status}" for status, number in count.items())
        + (f", {unknown} not in the source, so copied untransferred" if unknown else ""),
        "keys": str(result.keys),
        "sizes": f"of the weights' norm, medians: drift {_median(layer.drift for layer in done)}, "
        f"LoRA {_median(layer.lora for layer in done)}, result {_median(layer.update for layer in done)}; "
        f"cosine of LoRA and result {_median(layer.cosine for layer in done)}",
        "kept": f"{_percent(result.kept_energy)} of the update's energy, "
        f"{_percent(result.kept_correction)} of what the method changed{_more_rank(result.kept_correction)}",
        "clusters": f"the largest holds {_median(layer.largest_cluster for layer in done)} of the leading directions",
        "decisions": f"of the routing entries, medians: drift taken back from {_median(x.restored for x in done)}, "
        f"left alone {_median(x.preserved for x in done)}",
        "subspaces": f"of source and target share {_median(layer.overlap for layer in result.layers)} in the median, "
        f"unrelated ones would share {_median(layer.overlap_random for layer in result.layers)}",
        "rounding": f"to the written dtype changes an update by {_median(x.rounding for x in done)} in the median",
        "took": f"{result.seconds['total']:.1f} s on {result.device}, at most "
        f"{result.peak_rss_bytes / 1e9:.2f} GB of memory",
        "advice": "" if result.advice is None else result.advice.line(),
    }
    absent = {
        "advice": result.advice is None,
        "kept": result.kept_correction is None,
        "rounding": not any(layer.rounding for layer in done),
        "clusters": all(layer.clusters is None for layer in done),
        "decisions": all(layer.restored is None for layer in done),
        "subspaces": all(layer.overlap is None for layer in result.layers),
    }
    return {name: text for name, text in facts.items() if not absent.get(name)}


def _more_rank(kept: float | None) -> str:
    """Return what to do if truncation threw most of the method's work away."""
    return "; a higher --rank, or --as diff, keeps more, in a larger file" if kept is not None and kept < 0.5 else ""


def _span(values: Iterable[int | None]) -> str:
    known = sorted({value for value in values if value is not None})
    if not known:
        return "full (dense)"
    return str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _median(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _percent(statistics.median(known)) if known else "unknown"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"
