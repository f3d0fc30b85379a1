"""Run an analysis: plan, survey of all drifts, then layer by layer, each kept as soon as it is finished."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from loraport._version import __version__
from loraport.analysis.inputs import AnalysisInputs, AnalyzeConfig, choose_layers
from loraport.analysis.layer_statistics import AnalyzedLayer, layer_statistics
from loraport.analysis.results import Analysis, LayerView
from loraport.analysis.survey import LayerDrift, Survey, layer_drift, shared_layers
from loraport.analysis.sweep import Grid, run_sweeps
from loraport.compute import peak_rss_bytes
from loraport.errors import SettingsError
from loraport.estimates.layer_cost import layer_weight
from loraport.files.names.blocks import layer_depth, layer_kind
from loraport.inputs.layer_sample import sample_layers
from loraport.inputs.open import TransferInputs
from loraport.inputs.plan import LayerJob
from loraport.methods.settings import CasaSettings
from loraport.progress import NO_PROGRESS, Progress, counter, observer
from loraport.spectral.basis import decompose
from loraport.transfers.journal import PartialFolder
from loraport.transfers.layer_source import LayerWeights

NO_SPECTRUM = "its weight is all zero in one of the models: it has no singular directions to look at"
SURVEY, LAYERS = "comparing the models", "analysing"


def analyze(config: AnalyzeConfig, grids: Sequence[Grid] = (), *, progress: Progress = NO_PROGRESS) -> Analysis:
    """Look at every chosen layer of a LoRA, its source and its target; an interrupted analysis resumes.

    With grids, CASA is swept over its settings as well, as `sweep` does.
    Raises InputError for whatever is wrong with the inputs, OutputError where nothing can be kept at the output.
    """
    start, progress = time.perf_counter(), observer(progress)
    inputs = AnalysisInputs.open(config)
    jobs, left_out = choose_layers(inputs.prepared, config)
    detailed = sample_layers([job.name for job in jobs], config.detail)
    with PartialFolder(Path(config.output), inputs.identity(config)) as partial:
        for note in inputs.prepared.plan.warnings:
            progress.note(note)
        survey = _survey(inputs, partial, progress)
        layers, curves, empty = _views(inputs, config, jobs, detailed, partial, progress)
        jobs = tuple(job for job in jobs if job.name not in empty)
        sweeps = run_sweeps(inputs, config, jobs, grids, partial, progress)
    notes = (*inputs.prepared.plan.warnings, *_copied(layers), *inputs.bases.cache.notes)
    return Analysis(
        _facts(config, inputs.prepared), layers, survey, curves, (*left_out, *empty.items()), notes,
        time.perf_counter() - start, peak_rss_bytes(), sweeps,
        str(inputs.bases.device),
    )  # fmt: skip


def _survey(inputs: AnalysisInputs, partial: PartialFolder, progress: Progress) -> Survey:
    """Return the drift of every layer that both models have, read back where an earlier start kept it."""
    source, target = inputs.whole
    names, empty = shared_layers(source, target)
    drifts = []
    progress.advance(SURVEY, 0, len(names))
    for number, name in enumerate(names, 1):
        earlier = partial.get(f"survey {name}")
        if earlier is None:
            drift = layer_drift(name, source, target)
            partial.put(f"survey {name}", {}, asdict(drift))
        else:
            drift = LayerDrift(**earlier.facts)
        drifts.append(drift)
        progress.advance(SURVEY, number, len(names))
    return replace(empty, layers=tuple(drifts))


def _views(
    inputs: AnalysisInputs,
    config: AnalyzeConfig,
    jobs: Sequence[LayerJob],
    detailed: Sequence[str],
    partial: PartialFolder,
    progress: Progress,
) -> tuple[tuple[LayerView, ...], dict[str, Mapping[str, Tensor]], dict[str, str]]:
    """Return the layers' rows in the jobs' order, curves of the detailed ones, and which have nothing to show."""
    rows: dict[str, LayerView] = {}
    curves: dict[str, Mapping[str, Tensor]] = {}
    empty: dict[str, str] = {}
    weights_of_bar = {job.name: layer_weight(job, inputs.prepared.config.recipe) for job in jobs}

    def keep(job: LayerJob, view: LayerView, tensors: Mapping[str, Tensor]) -> None:
        rows[job.name] = view
        if job.name in detailed:
            curves[job.name] = tensors

    todo = []
    for job in jobs:
        earlier = partial.get(job.name)
        if earlier is None or (job.name in detailed and not earlier.tensors):
            todo.append(job)
        else:
            keep(job, LayerView(**{**earlier.facts, "shape": tuple(earlier.facts["shape"])}), earlier.tensors)
    done = sum(weights_of_bar[name] for name in rows)
    report = counter(progress, LAYERS, sum(weights_of_bar.values()), done)
    for job, weights in inputs.weights(todo):
        if not weights.W_s.any() or (weights.W_t is not None and not weights.W_t.any()):
            empty[job.name] = NO_SPECTRUM
            report(weights_of_bar[job.name])
            continue
        view, tensors = _view(inputs, job, weights, config.casa, job.name in detailed)
        partial.put(job.name, tensors, asdict(view))
        keep(job, view, tensors)
        report(weights_of_bar[job.name])
    if not rows:
        raise SettingsError(f"no layer is left to look at: {NO_SPECTRUM} ({', '.join(empty)})")
    return tuple(rows[job.name] for job in jobs if job.name in rows), curves, empty


def _view(
    inputs: AnalysisInputs, job: LayerJob, weights: LayerWeights, settings: CasaSettings, detail: bool
) -> tuple[LayerView, Mapping[str, Tensor]]:
    start = time.perf_counter()
    layer = inputs.layer(job, weights)
    D_lora = layer.lora.dense()
    with_lora = decompose(weights.W_s.to(inputs.device) + D_lora)
    both = None
    if detail and weights.W_t is not None:
        both = decompose(weights.W_t.to(inputs.device) + D_lora)
    del D_lora
    shown = layer_statistics(AnalyzedLayer(layer, with_lora, both), settings, detail=detail)
    name, size = job.name, shown.numbers["weight_norm"]
    measured = weights.facts.drift / size if size else None
    numbers = {**shown.numbers, "drift": measured, "copied": weights.is_rounding}
    seconds = time.perf_counter() - start
    return LayerView(name, layer_kind(name), layer_depth(name), job.shape, job.rank, numbers, seconds), shown.curves


def _copied(layers: Sequence[LayerView]) -> list[str]:
    """Say in how many layers a transfer would change nothing."""
    count = sum(bool(layer.numbers["copied"]) for layer in layers)
    if not count:
        return []
    return [
        f"in {count} of {len(layers)} layers the drift is within what rounding the files makes; it counts as none, and "
        "a transfer copies the LoRA there; --force-drift lets it count"
    ]


def _facts(config: AnalyzeConfig, ready: TransferInputs) -> dict[str, Any]:
    return {
        "lora": ready.lora.path.name,
        "source": Path(config.source).name,
        "target": ready.target.where.rstrip("/").rpartition("/")[2],
        "settings": asdict(config.casa),
        "layers_of_lora": len(ready.plan.jobs),
        "version": __version__,
    }
