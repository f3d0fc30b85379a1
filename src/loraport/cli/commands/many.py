"""`transfer` with many LoRAs: what its words stand for, the run, and its results in the terminal."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraport.cli.options import MessageOptions, ResultOptions
from loraport.cli.options.many import ManyOptions
from loraport.errors import OutputError

if TYPE_CHECKING:
    from loraport.batches.jobs import JobPlan, Request
    from loraport.batches.results import JobRow, ManyResult
    from loraport.cli.options.transfers import MethodOptions, OutputOptions
    from loraport.inputs.config import TransferConfig

SECTIONS = 20
"""Transfers that have a section of their own on a page about many."""
ADVICE = 3
"""Verdicts that are printed of many transfers, the commonest first; the table of --table has every one."""
SHOWN = 60
"""Rows of a table in the terminal; -v shows all."""


def are_many(words: Sequence[str], methods: str, output: str, many: ManyOptions, result: ResultOptions) -> bool:
    """Return whether results go into a folder: of several LoRAs or methods, or where OUT is a folder."""
    from loraport.batches.find import becomes_folder_itself, find_loras, stands_for_several
    from loraport.batches.manifest import is_manifest

    if many.typed or len(words) > 1 or "," in methods or is_manifest(words[0]):
        return True
    if stands_for_several(words[0]):
        return not output.endswith(".safetensors") or len(find_loras(words)) > 1
    return (output.endswith(("/", os.sep)) or os.path.isdir(output)) and not becomes_folder_itself(
        words[0], result.format
    )


def request_of(template: TransferConfig, method: MethodOptions, many: ManyOptions, result: OutputOptions) -> Request:
    """Return what the options say of every job. Raises SettingsError."""
    from loraport.batches.jobs import Request
    from loraport.batches.names import NameTemplate
    from loraport.inputs.recipes import method_list

    return Request(
        template, method_list(method.method), method.settings.preset, method.settings.changes, result.rank_rule(),
        NameTemplate() if many.name is None else NameTemplate(many.name), result.split,
    )  # fmt: skip


def plan(words: Sequence[str], request: Request, messages: MessageOptions) -> JobPlan:
    """Return the jobs. Raises OutputError where the folder of the results is a file."""
    from loraport.batches.jobs import plan_jobs

    output = request.template.output
    with messages.terminal() as terminal:
        jobs = plan_jobs(words, request, progress=terminal)
    if os.path.exists(output) and not os.path.isdir(output):
        raise OutputError(f"{output} is a file, but several LoRAs or methods need a folder; name one")
    if output.endswith(".safetensors"):
        raise OutputError(f"{output} is the name of a file, but several LoRAs or methods need a folder; name one")
    return jobs


def say_what_would_be_done(jobs: JobPlan, many: ManyOptions, result: ResultOptions, messages: MessageOptions) -> None:
    """Print what a run would do, take and fetch, and what is refused or finished. Raises as the run would."""
    from loraport.batches.checks import CheckedPlan, Portion, check_plan
    from loraport.batches.results import JobRow, ManyResult, failure_line
    from loraport.batches.run import stop_or_note
    from loraport.console import print_dry_run, print_facts
    from loraport.files.models.headers import HeadersUnknownError, HubHeaders
    from loraport.transfers.dry_run import dry_run
    from loraport.transfers.passes import Pass

    with messages.terminal() as terminal:
        try:
            opener = HubHeaders()
            for place in dict.fromkeys(job.lora for job in jobs.jobs):
                opener.look_at_lora(place)
            checked = check_plan(jobs, overwrite=result.overwrite, headers=opener, keep_going=many.keep_going)
        except HeadersUnknownError:  # said with the plan
            checked = CheckedPlan((Portion(jobs.jobs),), (), jobs.refused, ())
        stop_or_note(jobs, checked, many.keep_going, terminal)
        for one in checked.refused:
            terminal.say(f"refused: {failure_line(one.lora, one.reason)}")
        if checked.finished:
            terminal.note(
                f"{len(checked.finished)} of {len(jobs.jobs)} are there already, and stay as they are unless a model "
                "has changed"
            )
    left = {job.output for job in checked.jobs}
    passes = [Pass(own) for one in jobs.passes if (own := tuple(job for job in one if job.output in left))]
    plan = dry_run(passes) if passes else None
    if not messages.json:
        if plan is not None:
            print_dry_run(plan, json=False, verbose=messages.verbose)
        return
    rest = ManyResult((*map(JobRow.finished, checked.finished), *map(JobRow.failed, checked.refused))).as_json()
    facts = {"runs": []} if plan is None else plan.as_json(several=True)
    print_facts({**facts, "already": rest["already"], "failures": rest["failures"]}, json=True)


def run_and_tell(
    jobs: JobPlan, folder: str, many: ManyOptions, result: ResultOptions, page: Path | None, messages: MessageOptions
) -> ManyResult:
    """Do the jobs, write the page and the table, and print what became of them."""
    from loraport.batches.events import EventLog
    from loraport.batches.run import run_many
    from loraport.cli.commands.choose import input_places
    from loraport.cli.options.existing import keep_existing

    table = None if many.table is None else Path(os.path.expanduser(many.table))
    inputs = input_places(jobs.jobs)
    keep_existing([page, table], inputs, result.overwrite)
    log = EventLog(many.events, inputs)
    keep = None if messages.json else SECTIONS if page is not None else 0
    try:
        with messages.terminal() as terminal:
            done = run_many(
                jobs, folder, keep_going=many.keep_going, overwrite=result.overwrite, keep=keep, events=log,
                progress=terminal,
            )  # fmt: skip
    finally:
        log.close()
    tell_many(done, folder, page, table, messages)
    return done


def tell_many(done: ManyResult, folder: str, page: Path | None, table: Path | None, messages: MessageOptions) -> None:
    """Write the page and the table of many transfers, and print what became of them."""
    from loraport.console import print_facts

    _write(done, page, table, messages)
    if messages.json:
        print_facts(done.as_json(), json=True)
    else:
        _print(done, folder, quiet=messages.quiet, verbose=messages.verbose)


def _write(done: ManyResult, page: Path | None, table: Path | None, messages: MessageOptions) -> None:
    from loraport.reports.many_page import write_many_page, write_many_table

    try:
        if page is not None:
            for sentence in write_many_page(done, page):
                messages.terminal().note(sentence)
        if table is not None:
            write_many_table(done, table)
    except (OutputError, OSError) as error:
        raise OutputError(f"the transfers are done and whole, but not what is said about them: {error}") from error


def _print(done: ManyResult, folder: str, *, quiet: bool, verbose: bool) -> None:
    """Print a table of what was made, a line with the numbers, and the failures on stderr."""
    from loraport.batches.results import failure_line
    from loraport.console import print_dropped, say_aside, say_line, say_table

    made, failed = done.of("made"), done.of("failed")
    if not quiet:
        shown = made if verbose else made[:SHOWN]
        if shown:
            say_table([_HEADINGS, *(_cells(row, folder) for row in shown)])
        if len(shown) < len(made):
            say_line(f"… and {len(made) - len(shown)} more; -v shows all, --table OUT.csv writes them")
        say_line(_numbers(done))
        for advice, count in Counter(row.advice for row in made if row.advice).most_common(ADVICE):
            say_line(f"advice for {'all' if count == len(made) else count}: {advice}")
    for row in made:
        print_dropped(row.lost_keys, verbose=verbose, where=f"{row.output}: ")
    for row in failed:
        text = f"{row.output} was not written: {row.reason}" if row.output else failure_line(row.lora, row.reason)
        say_aside(f"loraport: {text}")


_HEADINGS = ["wrote", "layers", "rank", "size", "cosine", "kept", "dropped", "seconds"]


def _cells(row: JobRow, folder: str) -> list[str]:
    def percent(share: float | None) -> str:
        return "–" if share is None else f"{100 * share:.1f} %"

    inside = os.path.relpath(row.output, os.path.expanduser(folder))
    return [
        inside,
        f"{row.transferred} of {row.layers}",
        row.rank,
        percent(row.size),
        percent(row.cosine),
        percent(row.kept_correction),
        str(row.dropped),
        f"{row.seconds:.1f}",
    ]


def _numbers(done: ManyResult) -> str:
    """Return how many were made, were there already and failed, and what that took."""
    count, there, failed = len(done.of("made")), len(done.of("there already")), len(done.of("failed"))
    took = f"{done.seconds['total']:.1f} s together, at most {done.peak_rss_bytes / 1e9:.2f} GB of memory"
    if not count and there:
        text = f"nothing was left to do: {there} of {len(done.rows)} were there already"
    else:
        text = f"{count} file{'' if count == 1 else 's'} took {took}" + (
            f"; {there} were there already" if there else ""
        )
    return text + (f"; {failed} failed" if failed else "")
