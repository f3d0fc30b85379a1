"""Run a transfer: plan, then layer by layer with the next one read meanwhile, then one file, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import loraport
from loraport.errors import OutputError, SettingsError
from loraport.runs.accelerator import Accelerated, Target, open_target, split_target, target_places
from loraport.runs.config import RankRule, TransferConfig
from loraport.runs.given import as_factors
from loraport.runs.journal import Journal
from loraport.runs.layer import LayerTransfer, Weights, layer_generator, read_weights
from loraport.runs.plan import NO_DRIFT, LayerJob, Plan, make_plan
from loraport.runs.presets import open_model
from loraport.runs.results import LayerResult, Progress, Silent, TransferResult
from loraport.spectral.svd import LowRank
from loraport.weights.cache import BasisCache
from loraport.weights.checkpoint import Checkpoint
from loraport.weights.dialects import parse_key
from loraport.weights.lora import Lora, read_lora
from loraport.weights.lora_write import WrittenLora, output_dialect, write_diff, write_lora
from loraport.weights.saving import Pending
from loraport.weights.variants import LARGEST_AUTO_RANK, Dora

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STATUS = {"transfer": "transferred", "copy": "copied", "drop": "skipped"}


@dataclass(frozen=True)
class Prepared:
    """The opened inputs of a run and its plan; nothing is computed and nothing written yet."""

    lora: Lora
    source: Checkpoint
    target: Target
    plan: Plan


def prepare(config: TransferConfig) -> Prepared:
    """Read the LoRA, open both models (headers only), pair their layers. Raises InputError for whatever is wrong."""
    lora = read_lora(config.lora, diffs=config.transfer_diffs)
    layers = None if split_target(config.target) else touched(lora)
    source = open_model(config.source, part=config.source_part, layers=layers)
    target = open_target(config.target, source, part=config.target_part, layers=layers)
    lora = fitted(lora, target)
    plan = make_plan(lora, source, target, include=config.include, exclude=config.exclude)
    return Prepared(lora, source, target, plan)


def transfer(config: TransferConfig, *, progress: Progress | None = None) -> TransferResult:
    """Transfer a LoRA and write the result; started again after a kill it goes on where it was, to the same bytes."""
    start = time.perf_counter()
    watcher = progress or Silent()
    device, cache = find_device(config.device), BasisCache(config.cache)
    ready = prepare(config)
    check_output(config, ready.lora)
    journal = Journal(Path(config.output), _run_identity(config, ready, device), TORCH_DTYPES[config.dtype])
    for warning in ready.plan.warnings:
        watcher.note(warning)
    watcher.plan(ready.plan)
    worker = LayerTransfer(
        config.recipe,
        config.rank,
        common_rank(config, ready.plan),
        config.as_diff,
        config.seed,
        cache,
        device,
        config.force_drift,
        config.dora,
    )
    with journal:
        results = {result.name: result for result in work(worker, ready, journal, watcher)}
        computed = time.perf_counter()
        layers = tuple(results.get(job.name) or _untouched(job) for job in ready.plan.jobs)
        check_something_left(layers)
        written = write(config, ready, journal, layers)
    notes = _afterthoughts(config, results.values(), worker.not_cached)
    notes = [note for note in notes if note not in ready.plan.warnings]
    for note in notes:
        watcher.note(note)
    end = time.perf_counter()
    return TransferResult(
        output=config.output,
        method=config.method,
        settings=config.settings(),
        layers=layers,
        keys=account(ready, written, layers),
        warnings=(*ready.plan.warnings, *notes),
        seconds={"total": end - start, "layers": sum(layer.seconds for layer in layers), "write": end - computed},
        peak_rss_bytes=peak_rss_bytes(),
    )


def touched(lora: Lora) -> set[str] | None:
    """The layers that a LoRA or its extras belong to; None where some have names that only the models can tell."""
    parsed = [parse_key(key) for key in lora.extras]
    if lora.unresolved or any(one.unresolved for one in parsed):
        return None
    return {*lora.layers, *(one.layer for one in parsed if not one.text_encoder)}


def fitted(lora: Lora, target: Target) -> Lora:
    """The LoRA without the extras (biases, norms) of layers that the target lacks; they are listed as dropped.

    Kernels that its file does not tell (LoHa and LoKr store convolutions as matrices) are the target's.
    """
    layers = {name.rpartition(".")[0] for name in target}
    parsed = [parse_key(key) for key in lora.extras]
    alien = [one.key for one in parsed if not one.text_encoder and one.layer not in layers and one.part]
    extras = {key: tensor for key, tensor in lora.extras.items() if key not in alien}
    dropped = tuple((key, f"{target.where} has no such layer") for key in alien)
    known = {name: target.shape(f"{name}.weight") for name in lora.layers if f"{name}.weight" in target}
    kernels = {name: shape[2:] for name, shape in known.items() if len(shape) > 2 and name not in lora.kernels}
    return replace(lora, extras=extras, dropped=(*lora.dropped, *dropped), kernels={**kernels, **lora.kernels})


def work(worker: LayerTransfer, ready: Prepared, journal: Journal, watcher: Progress) -> Iterator[LayerResult]:
    """The results of the layers to transfer: those of an earlier start first, then the others as they are finished."""
    todo = []
    for job in ready.plan.of("transfer"):
        earlier = journal.recall(job.name)
        if earlier is None:
            todo.append(job)
            continue
        watcher.layer(earlier[1], True)
        yield earlier[1]
    keep_target = worker.recipe.needs_target
    read = partial(read_weights, source=ready.source, target=ready.target, keep_target=keep_target)
    for job, weights in read_ahead(todo, read):
        written, result = worker(job, ready.lora.layers[job.name], weights)
        journal.keep(written, result)
        watcher.layer(result, False)
        yield result


def read_ahead(jobs: Sequence[LayerJob], read: Callable[[LayerJob], Weights]) -> Iterator[tuple[LayerJob, Weights]]:
    """Each job with its weights; the next ones are read while these are worked on, and no more than that."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loraport-read") as reader:
        pending = [reader.submit(read, job) for job in jobs[:1]]
        for number, job in enumerate(jobs):
            weights = pending.pop().result()
            pending += [reader.submit(read, following) for following in jobs[number + 1 : number + 2]]
            yield job, weights


def write(config: TransferConfig, ready: Prepared, journal: Journal, layers: Iterable[LayerResult]) -> WrittenLora:
    """Assemble the output from the journal and from what is copied."""
    lora, dtype = ready.lora, TORCH_DTYPES[config.dtype]
    names = [layer.name for layer in layers if layer.status != "skipped"]
    provenance = _provenance(config, ready, layers)

    def update(name: str) -> LowRank | Tensor:
        finished = journal.recall(name)
        return copied(config, ready, name) if finished is None or finished[1].status == "copied" else finished[0]

    def dense(name: str) -> Tensor:
        value = update(name)
        return value.dense() if isinstance(value, LowRank) else value

    if config.as_diff:
        pending = {name: Pending(dtype, lora.layers[name].shape, lambda name=name: dense(name)) for name in names}  # type: ignore[misc]
        return write_diff(config.output, pending, lora, dtype=dtype, provenance=provenance)
    updates = {name: value for name in names if isinstance(value := update(name), LowRank)}
    return write_lora(
        config.output, updates, lora,
        format=config.format, dtype=dtype, provenance=provenance, uniform_rank=not config.rank.varies,
    )  # fmt: skip


def copied(config: TransferConfig, ready: Prepared, name: str) -> LowRank:
    """A layer that is not transferred, as factors; DoRA as what it adds to the source's weight, else the target's."""
    update = ready.lora.layers[name]
    W = None
    if isinstance(update, Dora):
        model = ready.source if f"{name}.weight" in ready.source else ready.target
        W = (model.model if isinstance(model, Accelerated) else model).read(name).matrix
    rule = RankRule("full") if config.as_diff else config.rank
    return as_factors(update, W, rule, common_rank(config, ready.plan), layer_generator(config.seed, name))


def account(ready: Prepared, written: WrittenLora, layers: Iterable[LayerResult]) -> dict[str, object]:
    """Where each key of the input went: transferred, copied, or dropped with the reason, the plan's or the method's."""
    keys = ready.lora.keys
    dropped = [*ready.lora.dropped, *written.dropped]
    dropped += [(key, row.reason or "") for row in layers if row.status == "skipped" for key in keys[row.name]]
    gone = {key for key, _ in dropped}
    count = Counter({status: 0 for status in STATUS.values()})
    for row in layers:
        count[row.status] += sum(key not in gone for key in keys[row.name])
    copied = count["copied"] + len(written.copied)
    return {
        "in": count["transferred"] + copied + len(gone),
        "transferred": count["transferred"],
        "copied": copied,
        "dropped": [list(pair) for pair in sorted(set(dropped))],
    }


def check_something_left(layers: Iterable[LayerResult]) -> None:
    """Refuse to write a file without a single layer. Raises SettingsError: the method's own filter took them all."""
    layers = list(layers)
    if layers and all(layer.status == "skipped" for layer in layers):
        raise SettingsError(f"the method gives no layer an adapter; {layers[0].name}, for one: {layers[0].reason}")


def common_rank(config: TransferConfig, plan: Plan) -> int:
    """The rank that all layers aim at: the user's, or from the largest of the LoRA's own (twice that for CASA)."""
    if config.rank.kind == "fixed":
        return int(config.rank.value)
    own = max((job.aim for job in plan.jobs), default=0) or LARGEST_AUTO_RANK
    return own if config.rank.kind == "source" or config.recipe.method.low_rank else 2 * own


def find_device(name: str) -> torch.device:
    """The device to compute on; `auto` takes a CUDA card where there is one. Raises SettingsError for what is not."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"device {name!r} is not there: PyTorch sees {torch.cuda.device_count()} CUDA cards")
    return device


def check_output(config: TransferConfig, lora: Lora) -> None:
    """Refuse, before hours of work, an output that could not be written afterwards."""
    output = Path(config.output)
    folder = not config.as_diff and output_dialect(lora, config.format).folder
    if output.is_dir() and not folder:
        raise OutputError(f"{output} is a folder, but this output is a file; name a .safetensors file in it")
    if not folder and output.suffix != ".safetensors":
        raise OutputError(f"{output} has no .safetensors ending, by which loaders know the format; add it")
    if output.is_file() and folder:
        raise OutputError(f"{output} is a file, but PEFT's format is a folder; name a folder")
    for model in (config.lora, config.source, *target_places(config.target)):
        if output.exists() and Path(model).exists() and output.samefile(model):
            raise OutputError(f"{output} is an input of this run; give the result another name")


def peak_rss_bytes() -> int:
    """The most memory that this process has held, mapped file pages included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _untouched(job: LayerJob) -> LayerResult:
    rank_out = job.rank if job.action == "copy" and job.kind == "LoRA" else None
    status: Any = STATUS[job.action]
    return LayerResult(job.name, status, job.reason, job.shape, job.rank, rank_out, kind=job.kind)


def _afterthoughts(config: TransferConfig, results: Iterable[LayerResult], not_cached: Iterable[str]) -> list[str]:
    """What the user should know and only the finished layers tell."""
    results = list(results)
    notes = [f"bases were not kept in the cache: {why}" for why in sorted(not_cached)]
    drifts = [result.drift for result in results if result.drift is not None]
    if drifts and not any(drifts):
        notes.append(NO_DRIFT)
    alone = [result for result in results if result.status == "copied"]
    if alone:
        notes.append(
            f"{len(alone)} of {len(results)} layers were copied: their drift cannot be told from rounding "
            f"({alone[0].name}, for one: {_percent(alone[0].drift)} of the weight, where rounding alone "
            f"should make {_percent(alone[0].floor)}); --force-drift transfers them all the same"
        )
    ranked = results if config.rank.varies else [row for row in results if row.status == "transferred"]
    if len({row.rank_out for row in ranked} - {None}) > 1:
        notes.append("ranks vary from layer to layer, which diffusers before 0.40 scales wrongly")
    blind = sum(row.overlap_random is not None and row.overlap_random >= config.prolora.phi_min for row in results)
    if blind and config.prolora.phi_min:
        notes.append(
            f"the layer filter says nothing in {blind} of {len(results)} layers: subspaces this large would overlap by "
            f"phi_min {config.prolora.phi_min:g} even if they were unrelated (full ones by 1, always)"
        )
    return notes


def _percent(share: float | None) -> str:
    return f"{100 * (share or 0):.2g} %"


def _run_identity(config: TransferConfig, ready: Prepared, device: torch.device) -> str:
    """What makes an unfinished run the same work: settings, program, inputs as they lie on the disk."""
    beside = ready.target.accelerator.sha256 if isinstance(ready.target, Accelerated) else None
    files = sorted({*ready.source.paths, *ready.target.paths})
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return json.dumps(
        [config.fingerprint(), loraport.__version__, torch.__version__, str(device), ready.lora.sha256, beside, stats]
    )


def _provenance(config: TransferConfig, ready: Prepared, layers: Iterable[LayerResult]) -> dict[str, str]:
    """What the written file says about itself; names without their folders, contents by hash."""
    layers = list(layers)
    values = {
        "version": loraport.__version__,
        "method": config.method,
        "settings": json.dumps(config.settings(), sort_keys=True),
        "lora": ready.lora.path.name,
        "lora_sha256": ready.lora.sha256,
        "source": Path(config.source).name,
        "source_hash": _combined((layer.name, layer.source_hash) for layer in layers),
        "target": Path(config.target).name,
        "target_hash": _combined((layer.name, layer.target_hash) for layer in layers),
    }
    if isinstance(ready.target, Accelerated):
        values |= ready.target.provenance()
    if any(layer.correction for layer in layers) or config.method == "core":
        values["note"] = "this update also takes back a part of the target's drift; a strength slider scales both"
    return values


def _combined(hashes: Iterable[tuple[str, str | None]]) -> str:
    """One hash over the contents of the weights that were read, the same in whatever files they lie."""
    lines = sorted(f"{name} {digest}" for name, digest in hashes if digest is not None)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
