"""`batch`, `status` and `gather`: many transfers by many workers, on one machine or on many."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from loraport.cli.commands.choose import input_places
from loraport.cli.commands.many import request_of, tell_many
from loraport.cli.commands.passes import refuse_unseen
from loraport.cli.options import (
    FILES,
    OUTPUT,
    LayerOptions,
    Loras,
    MessageOptions,
    RunOptions,
    page_path,
    refuse_idle,
    transfer_config,
)
from loraport.cli.options.existing import keep_existing
from loraport.cli.options.expansion import with_options
from loraport.cli.options.help import GroupedCommand
from loraport.cli.options.many import ManyOptions
from loraport.cli.options.transfers import ManyModels, MethodOptions, OutputOptions, idle_options
from loraport.errors import LOST, SettingsError
from loraport.sampling.providers import known_place

if TYPE_CHECKING:
    from loraport.batches.jobs import JobPlan
    from loraport.batches.results import ManyResult
    from loraport.objects.store import ObjectStore
    from loraport.workers.local.batch import Crew
    from loraport.workers.summary import RunStatus

app = typer.Typer()
FAILURES_SHOWN = 20
"""Failures that `status` prints; -v prints all."""

Place = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="Where a batch writes: a folder, or a store such as s3://bucket/night.",
        rich_help_panel=FILES,
    ),
]  # fmt: skip


@dataclass(frozen=True)
class CrewOptions:
    """Who does the work."""

    heading: ClassVar[str] = "Workers"
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Processes on this machine, each with layers of its own.",
            show_default="one a card, or one a core",
        ),
    ] = None  # fmt: skip
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="i/N",
            help="Do one of N shares, numbered from 0: for arrays of jobs, on as many machines. All shares are given "
            "the same options; whoever is last gathers the results.",
        ),
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Let the cards of a Ray cluster do the work (extra `ray`), an actor each: `local` for one of this "
            "machine, `auto` for the one that it belongs to, or HOST:PORT. Models have to be at the same place on all "
            "of its machines.",
        ),
    ] = None
    threads: Annotated[
        int,
        typer.Option(
            metavar="INT", min=1,
            help="Threads that one worker computes with on a processor: results of other numbers differ in their last "
            "digits.",
        ),
    ] = 1  # fmt: skip
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Forget what was begun in URL, by whatever settings or version; results stay."),
    ] = False

    def crew(self, run: RunOptions) -> Crew:
        """Return the workers that were asked for. Raises SettingsError."""
        from loraport.workers.local.batch import Crew
        from loraport.workers.share import Share

        if self.ray is not None and (self.workers is not None or self.shard is not None):
            raise SettingsError("--ray has a worker on every card of its cluster; leave out --workers and --shard")
        share = None if self.shard is None else Share.parse(self.shard)
        return Crew(self.workers, share, run.device, run.folder, ray=self.ray)


@app.command(
    cls=GroupedCommand,
    epilog="Example: loraport batch loras/ --source wan2.1-t2v-1.3b --target fastwan2.1-t2v-1.3b -o moved --workers 4",
)
@with_options
def batch(
    context: typer.Context,
    loras: Loras,
    models: ManyModels,
    method: MethodOptions,
    layers: LayerOptions,
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", metavar="URL", rich_help_panel=OUTPUT,
            help="Where the results go, and where the workers meet: a folder, or a store such as s3://bucket/night.",
        ),
    ],
    result: OutputOptions,
    run: RunOptions,
    many: ManyOptions,
    crew: CrewOptions,
    messages: MessageOptions,
) -> None:  # fmt: skip
    """Transfer many LoRAs with many workers: processes, shares of an array of jobs, or machines that know one place.

    LORA is as for `transfer`: files, folders, patterns, a manifest. The results are the same, byte for byte, however
    many workers there are and whichever of them die: what a dead one had in work another one makes, and the same
    command goes on where it was left. A LoRA on which the work fails is put aside with the reason, and the others go
    on; --keep-going also leaves out those that are refused at the start. Commands that are given the same URL share
    the work; `loraport status URL` says how far they are.
    """
    from loraport.objects.open import open_objects

    loras = [known_place(lora) for lora in loras]
    models = replace(models, source=known_place(models.source), target=known_place(models.target))
    refuse_idle(context, idle_options(models, layers, result))
    refuse_unseen(method.method, result)
    method.recipes()  # refused before anything is read
    page = None if result.report is None else page_path(result.report)
    table = None if many.table is None else Path(os.path.expanduser(many.table))
    store = open_objects(output)
    root = output if store.folder is None else str(store.folder)
    template = transfer_config(loras[0], root, models, layers, result, run, lora_part=models.lora_part, form=result.as_)
    with messages.terminal() as terminal:
        from loraport.batches.jobs import plan_jobs

        jobs = plan_jobs(loras, request_of(template, method, many, result), progress=terminal)
    if result.dry_run:
        _say_plan(jobs, crew.crew(run), crew.threads, messages)
        return
    inputs = input_places(jobs.jobs)
    keep_existing([page, table], inputs, result.overwrite)
    done = _run(store, jobs, template.output, crew, run, result.overwrite, many, inputs, messages)
    tell_many(done, store.url, page, table, messages)
    raise typer.Exit(LOST if done.lost else 0)


def _run(
    store: ObjectStore, jobs: JobPlan, root: str, crew: CrewOptions, run: RunOptions, overwrite: bool,
    many: ManyOptions, inputs: Sequence[str], messages: MessageOptions,
) -> ManyResult:  # fmt: skip
    """Do the jobs, or this share of them."""
    from loraport.batches.events import EventLog
    from loraport.workers.local.batch import run_batch
    from loraport.workers.machine import Machine
    from loraport.workers.on_ray.cluster import open_cluster
    from loraport.workers.plan import make_plan_of_run

    own = crew.crew(run)
    log = EventLog(many.events, inputs)
    try:
        with messages.terminal() as terminal, nullcontext() if own.ray is None else open_cluster(own.ray) as cluster:
            machine = Machine if cluster is None else cluster
            plan = make_plan_of_run(jobs, root, machine.here(run.device, crew.threads))
            done, over = run_batch(
                store, plan, own, keep_going=many.keep_going, overwrite=overwrite, fresh=crew.fresh,
                events=log, progress=terminal,
            )  # fmt: skip
            if not over:
                terminal.note(
                    f"this share is done, and others are not: {len(done.rows)} of {len(plan.jobs)} results are there; "
                    f"the last share gathers them (loraport status {store.url})"
                )
    finally:
        log.close()
    return done


def _say_plan(jobs: JobPlan, crew: Crew, threads: int, messages: MessageOptions) -> None:
    """Print what a batch would do and take."""
    from loraport.batches.results import failure_line
    from loraport.console import print_dry_run
    from loraport.transfers.dry_run import dry_run
    from loraport.transfers.passes import Pass

    terminal = messages.terminal()
    for one in jobs.refused:
        terminal.note(f"refused: {failure_line(one.lora, one.reason)}")
    if not jobs.jobs:
        raise SettingsError("there is nothing to do: no LoRA can be used")
    terminal.note(f"{len(jobs.jobs)} transfers for {len(crew.devices(threads))} workers; times are those of one")
    print_dry_run(dry_run([Pass(own) for own in jobs.passes]), json=messages.json, verbose=messages.verbose)


@app.command(cls=GroupedCommand, epilog="Example: loraport status moved")
@with_options
def status(place: Place, messages: MessageOptions) -> None:
    """Say how far a batch is: results, failures with their reasons, rate, time that is left, workers."""
    from loraport.console import print_facts, say_aside
    from loraport.objects.open import open_objects
    from loraport.workers.summary import run_status

    told = run_status(open_objects(known_place(place)))
    if messages.json:
        print_facts(told.as_json(), json=True)
        return
    print_facts(_words(told), json=False)
    shown = told.failures if messages.verbose else told.failures[:FAILURES_SHOWN]
    for row in shown:
        say_aside(f"failed: {row.lora}: {row.reason}")
    if len(shown) < len(told.failures):
        say_aside(f"… and {len(told.failures) - len(shown)} more (-v)")


def _words(told: RunStatus) -> dict[str, str]:
    from loraport.transfers.dry_run import duration

    words = {
        "run": f"{told.run}, {told.state}; on {told.machine}",
        "results": f"{told.made} of {told.jobs}, {told.failed} failed, {told.left} left ({100 * told.progress:.0f} %)",
    }
    if told.jobs_per_hour and told.state == "running":
        words["rate"] = f"{told.jobs_per_hour:.3g} LoRAs an hour"
    if told.seconds_left and told.state == "running":
        words["left"] = duration(told.seconds_left)
    if told.workers:
        words["workers"] = "\n".join(
            f"{one.host} {one.process}{f', shard {one.share}' * bool(one.share)}: {one.parts} parts, "
            f"{one.jobs} results, {one.state}"
            for one in told.workers
        )
    return words


@app.command(cls=GroupedCommand, epilog="Example: loraport gather moved")
@with_options
def gather(
    place: Place,
    messages: MessageOptions,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FOLDER", help="Also copy all results into a folder.", rich_help_panel=OUTPUT
        ),
    ] = None,
) -> None:
    """Write those results of a batch of which all parts are there; a batch does so by itself at its end."""
    from loraport.console import print_facts, say_aside, say_line
    from loraport.objects.open import open_objects
    from loraport.workers.collect import collect

    store = open_objects(known_place(place))
    with messages.terminal() as terminal:
        told = collect(store, None if output is None else Path(os.path.expanduser(output)), terminal)
    if messages.json:
        print_facts(told.as_json(), json=True)
    else:
        if not messages.quiet:
            say_line(told.line())
        for name, reason in told.missing.items():
            say_aside(f"loraport: {name}: {reason}")
    raise typer.Exit(LOST if told.missing else 0)
