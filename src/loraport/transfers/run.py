"""Run transfers: layer by layer, each layer for every LoRA and method before the next, then write one file each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from loraport.compute import TORCH_DTYPES, is_out_of_memory, peak_rss_bytes
from loraport.errors import InputError, LoraportError, OutputError, SettingsError, UnreadableError
from loraport.estimates.estimate import at_a_time, output_bytes
from loraport.estimates.layer_cost import bar_weights
from loraport.files.adapters.updates import needs_weight
from loraport.files.lora.write import LoraContents
from loraport.inputs.config import TransferConfig
from loraport.inputs.identity import run_identity
from loraport.inputs.layer_sample import affordable_layers
from loraport.inputs.open import TransferInputs, check_outputs, fitting_outputs, prepare_each, prepare_many
from loraport.inputs.plan import LayerJob
from loraport.inputs.rank import common_rank
from loraport.parallel.at_once import in_parallel
from loraport.progress import NO_PROGRESS, Progress, counter, observer
from loraport.store.basis_source import BasisSource
from loraport.transfers.advice import pair_advice
from loraport.transfers.journal import Journal, LayerStore
from loraport.transfers.layer import LayerTransfer
from loraport.transfers.layer_source import LayerSource, LayerWeights, StoredLayer
from loraport.transfers.output import closing_notes, key_account, output_contents, rows_of_all_layers
from loraport.transfers.precision import precision_notes, with_rounding
from loraport.transfers.results import BatchResult, LayerResult, NotWritten, TransferResult

TRANSFERRING = "transferring"


J = TypeVar("J", bound=LayerStore)


@dataclass(frozen=True)
class Run(Generic[J]):
    """One LoRA by one method, with what is finished of it."""

    inputs: TransferInputs
    transfer_layer: LayerTransfer
    journal: J
    label: str
    """How messages name it where there are several: the file name of its output."""
    results: dict[str, LayerResult] = field(default_factory=dict)
    """Finished layers."""
    refused: dict[str, InputError] = field(default_factory=dict)
    """Layers that cannot be used, with the reason."""


def transfer(config: TransferConfig, *, progress: Progress = NO_PROGRESS) -> TransferResult:
    """Transfer a LoRA and write the result; an interrupted run resumes with the layers that are missing.

        config = loraport.TransferConfig("style.safetensors", "wan/", "fastwan/", "moved.safetensors", rank=32)
        result = loraport.transfer(config)
        print(result.kept_correction, [layer.name for layer in result.layers if layer.status == "copied"])

    Raises InputError for whatever is wrong with the inputs, OutputError where nothing can be written.
    """
    return transfer_many([config], progress=progress).runs[0]


def transfer_many(
    configs: Sequence[TransferConfig], *, keep_going: bool = False, progress: Progress = NO_PROGRESS
) -> BatchResult:
    """Transfer several LoRAs, or one by several methods, between the same models in one pass over the layers.

    Weights, bases and the routing of the drift are read or made once a layer; memory does not grow with the number of
    LoRAs. Every output has the bytes that it has alone. Started again after a kill or a failure, the same configs
    resume with the layers that are missing. Nothing begins if any input or output is refused; what one run cannot write
    at the end is in `not_written`, and raised only if no run has written anything. A layer that cannot be used (not
    finite, for one) is reported when all others are finished.

    `keep_going`: what is wrong with one of them, at its input, a layer or its output, ends that one alone, and is in
    `not_written` with the reason; what is wrong with the models is raised all the same.

        style = loraport.TransferConfig("style.safetensors", "wan/", "fastwan/", "style-many.safetensors")
        broken = loraport.TransferConfig("wan/", "wan/", "fastwan/", "broken.safetensors")
        batch = loraport.transfer_many([style, broken], keep_going=True)
        for one in batch.not_written:
            print(one.lora, one.reason)
    """
    progress = observer(progress)
    if not keep_going:
        batch = prepare_many(configs, progress)
        check_outputs(batch)
        return transfer_prepared(batch, progress=progress)
    ready, refused = prepare_each(configs, progress)
    fitting, unfit = fitting_outputs(ready)
    not_written = [NotWritten.of(one.config, one.error) for one in (*refused, *unfit)]
    done = BatchResult(()) if not fitting else transfer_prepared(fitting, progress=progress, keep_going=True)
    return replace(done, not_written=(*not_written, *done.not_written))


def transfer_prepared(
    batch: Sequence[TransferInputs],
    *,
    progress: Progress = NO_PROGRESS,
    keep_going: bool = False,
    each: Callable[[TransferResult | NotWritten], None] | None = None,
) -> BatchResult:
    """Transfer what `prepare_many` has opened and `check_outputs` has passed, all between the same models.

    `keep_going`: what is wrong with one run (a layer, an output that another process is making) ends that run alone,
    which is in `not_written` then, and nothing is raised for it. `each` gets the end of every run when it comes.
    """
    start = time.perf_counter()
    layers = LayerSource.open(batch[0])
    bases = layers.bases
    refused: list[NotWritten] = []
    with ExitStack() as stack:
        runs = []
        for inputs in batch:
            try:
                run = _resumable_run(inputs, bases, several=len(batch) > 1)
                stack.enter_context(run.journal)
                runs.append(run)
            except OutputError as error:
                if not keep_going:
                    raise
                refused.append(NotWritten.of(inputs.config, error))
        report_notes(progress, [(run.label, run.inputs.plan.warnings) for run in runs])
        transfer_layers(runs, layers, progress, keep_going=keep_going)
        computed = time.perf_counter()
        if each is not None:
            for one in refused:
                each(one)
        written = _write_all(runs, bases, refused, keep_going=keep_going, each=each)
    report_notes(progress, [(run.label, result.warnings) for run, result in written], already=batch)
    end = time.perf_counter()
    in_layers = sum(row.seconds for run in runs for row in run.results.values())
    seconds = {"total": end - start, "layers": in_layers, **bases.stopwatch.seconds, "write": end - computed}
    results = [result if len(batch) > 1 else replace(result, seconds=seconds) for _, result in written]
    return BatchResult(tuple(results), tuple(refused), seconds, peak_rss_bytes())


def transfer_layers(
    runs: Sequence[Run[Any]], layers: LayerSource, progress: Progress, *, keep_going: bool = False
) -> None:
    """Transfer what earlier starts have not finished: each layer once, for all runs that lack it, into their journals.

    Raises InputError for layers that cannot be used when all others are done, unless `keep_going`, and at once for an
    unreadable file of a model, or where the memory does not suffice for one layer.
    """
    todo: dict[str, list[tuple[Run[Any], LayerJob]]] = {}
    earlier_lines, done = [], 0
    weights = _weights_of_bar(runs)
    for run in runs:
        for job in run.inputs.plan.of("transfer"):
            earlier = run.journal.recall(job.name)
            if earlier is None:
                todo.setdefault(job.name, []).append((run, job))
                continue
            run.results[job.name] = earlier[1]
            done += weights[run.inputs.config.output, job.name]
            earlier_lines.append(f"{_progress_line(run, earlier[1])} in an earlier start")
    report = counter(progress, TRANSFERRING, sum(weights.values()), done, "\n".join(earlier_lines))

    work = _Work(todo, layers, keep_going)
    device = layers.bases.device
    together = at_a_time([run.inputs for run in runs], device)
    try:
        for results in in_parallel(list(todo), work.read, work.transfer, device, together):
            for run, result in results:
                run.results[result.name] = result
                report(weights[run.inputs.config.output, result.name], _progress_line(run, result))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _too_little_memory(device, error) from error
    if not keep_going and (refused := {name: error for run in runs for name, error in run.refused.items()}):
        raise _refusal({name: refused[name] for name in todo if name in refused})


@dataclass(frozen=True)
class _Work:
    """What is to be done of each layer."""

    todo: Mapping[str, Sequence[tuple[Run[Any], LayerJob]]]
    layers: LayerSource
    keep_going: bool

    def read(self, name: str) -> StoredLayer | InputError:
        """Read a layer, perhaps on a thread beside the work. Raises UnreadableError; what else is wrong is returned."""
        try:
            recipes = [run.transfer_layer.recipe for run, _ in self.todo[name]]
            basis = any(recipe.needs_basis for recipe in recipes)
            return self.layers.load(name, basis=basis, routing=any(recipe.needs_routing for recipe in recipes))
        except UnreadableError:
            raise
        except InputError as error:
            return error

    def transfer(self, name: str, read: Callable[[], StoredLayer | InputError]) -> list[tuple[Run[Any], LayerResult]]:
        """Transfer a layer for all runs that lack it; what was read goes when there are numbers of it."""
        try:
            weights = self._weights(name, read())
        except UnreadableError:
            raise
        except InputError as error:
            for run, _ in self.todo[name]:
                run.refused[name] = error
            return []
        results = []
        for run, job in self.todo[name]:
            try:
                with self.layers.bases.stopwatch.stage("transfer"):
                    written, result = run.transfer_layer(job, run.inputs.lora.updates[name], weights)
            except InputError as error:
                run.refused[name] = error
                continue
            run.journal.keep(written, result)
            results.append((run, result))
        return results

    def _weights(self, name: str, stored: StoredLayer | InputError) -> LayerWeights:
        if isinstance(stored, InputError):
            raise stored
        kept = any(self._keeps_weights(run, name) for run, _ in self.todo[name])
        with_target = any(run.transfer_layer.recipe.needs_target for run, _ in self.todo[name])
        return self.layers.weights(stored, keep_weights=kept, with_target=with_target)

    def _keeps_weights(self, run: Run[Any], name: str) -> bool:
        try:
            return needs_weight(run.inputs.lora.updates[name]) or run.transfer_layer.looks_itself(name)
        except InputError as error:  # its file has changed since it was opened
            if not self.keep_going:
                raise
            run.refused[name] = error
            return False


def _weights_of_bar(runs: Sequence[Run[Any]]) -> dict[tuple[str, str], int]:
    """Return (output, layer) -> its share of the bar: what it takes, by the table of measured layers."""
    shares = bar_weights([run.inputs for run in runs])
    return {
        (run.inputs.config.output, name): share
        for run, own in zip(runs, shares, strict=True)
        for name, share in own.items()
    }


def _progress_line(run: Run[Any], result: LayerResult) -> str:
    return f"{run.label}: " * bool(run.label) + f"{result.name}: {result.seconds:.2f} s"


def _too_little_memory(device: torch.device, error: Exception) -> InputError:
    """Return the sentence for a layer that does not fit into memory even alone."""
    if device.type == "cpu":
        remedy = (
            "the memory of this machine does not suffice for a layer; close other programs, or take another machine"
        )
    else:
        remedy = f"the memory of {device} does not suffice for a layer; close what else uses it, or give --device cpu"
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return SettingsError(f"{remedy} ({first:.160})")


def _refusal(refused: dict[str, InputError]) -> InputError:
    """Return the first layer's error, with how many others there are, and how to go on without them."""
    first = next(iter(refused.values()))
    text = str(first) if len(refused) == 1 else f"{first} (and {len(refused) - 1} more layers cannot be used)"
    exclude = " ".join(f"--exclude {layer}" for layer in list(refused)[:3]) + (" …" if len(refused) > 3 else "")
    return type(first)(f"{text}; or copy what cannot be used as it is in the LoRA: {exclude}")


def report_notes(
    progress: Progress, notes: Iterable[tuple[str, Sequence[str]]], already: Sequence[TransferInputs] = ()
) -> None:
    """Report each note once: as it is if all runs have it, else behind the names of those that have it."""
    notes = list(notes)
    known = {note for inputs in already for note in inputs.plan.warnings}
    labels: dict[str, list[str]] = {}
    for label, own in notes:
        for note in own:
            if note not in known:
                labels.setdefault(note, []).append(label)
    for note, of in labels.items():
        progress.note(note if len(of) == len(notes) else f"{', '.join(of)}: {note}")


def _resumable_run(inputs: TransferInputs, bases: BasisSource, *, several: bool) -> Run[Journal]:
    """Return a run whose finished layers wait beside its output."""
    config = inputs.config
    identity = run_identity(inputs, bases.device, config.fingerprint())
    journal = Journal(Path(config.output), identity, TORCH_DTYPES[config.dtype])
    return new_run(inputs, journal, Path(config.output).name if several else "")


def new_run(inputs: TransferInputs, journal: J, label: str = "") -> Run[J]:
    """Return a run of which nothing is done yet."""
    config = inputs.config
    return Run(
        inputs,
        LayerTransfer(
            config.recipe,
            config.rank,
            common_rank(config, inputs.plan),
            config.as_diff,
            config.seed,
            inputs.lora.sha256,
            config.part,
            config.dora,
            TORCH_DTYPES[config.dtype],
            frozenset(affordable_layers({job.name: job.shape for job in inputs.plan.of("transfer")})),
        ),
        journal,
        label,
    )


def _write_all(
    runs: Sequence[Run[Journal]],
    bases: BasisSource,
    refused: list[NotWritten],
    *,
    keep_going: bool,
    each: Callable[[TransferResult | NotWritten], None] | None,
) -> list[tuple[Run[Journal], TransferResult]]:
    """Write every output; what cannot be is added to `refused` with the reason, raised if nothing could.

    The finished layers of what is written are removed at once, those of the others stay for the next start.
    """
    written: list[tuple[Run[Journal], TransferResult]] = []
    for run in runs:
        try:
            if run.refused:
                raise _refusal(run.refused)
            result = finished_result(run, bases, partial(_save, Path(run.inputs.config.output)))
            run.journal.remove()
        except LoraportError as error:
            if not keep_going and len(refused) == len(runs) - 1:
                raise
            run.journal.keep_after_success = True
            refused.append(NotWritten.of(run.inputs.config, error))
            if each is not None:
                each(refused[-1])
            continue
        written.append((run, result))
        if each is not None:
            each(result)
    return written


def _save(place: Path, contents: LoraContents) -> None:
    contents.save(place)


def finished_result(run: Run[Any], bases: BasisSource, save: Callable[[LoraContents], None]) -> TransferResult:
    """Assemble one output, give it to `save`, and return the result.

    Its seconds are those of its own work; what runs share counts for the first that needed it.
    """
    start = time.perf_counter()
    inputs, config = run.inputs, run.inputs.config
    layers = with_rounding(inputs, rows_of_all_layers(inputs, run.results), TORCH_DTYPES[config.dtype])
    contents = output_contents(inputs, run.journal, layers)
    save(contents)
    notes = [*bases.cache.notes]
    notes += closing_notes(config, run.results.values(), output_bytes(inputs))
    notes += precision_notes(layers, config.dtype)
    own, end = sum(row.seconds for row in run.results.values()), time.perf_counter() - start
    return TransferResult(
        output=config.output,
        method=config.method,
        settings=config.recorded_settings(),
        layers=layers,
        keys=key_account(inputs, contents, layers),
        warnings=(*inputs.plan.warnings, *(note for note in notes if note not in inputs.plan.warnings)),
        seconds={"total": own + end, "layers": own, "write": end},
        peak_rss_bytes=peak_rss_bytes(),
        lora=config.lora,
        source=config.source,
        target=config.target,
        pairing=None if inputs.pairing is None else inputs.pairing.as_json(),
        device=str(bases.device),
        advice=pair_advice(inputs, layers),
    )
