"""Write the output: assemble the finished layers, account for every key, add provenance and closing notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from loraport.compute import TORCH_DTYPES, layer_generator
from loraport.digests import text_digest
from loraport.errors import SettingsError
from loraport.files.adapters.updates import needs_weight
from loraport.files.formats.safetensors_write import Pending
from loraport.files.lora.key_account import KeyAccount
from loraport.files.lora.provenance import made_from
from loraport.files.lora.write import LoraContents, diff_contents, lora_contents
from loraport.inputs.accelerator import AcceleratedModel
from loraport.inputs.config import RankRule, TransferConfig
from loraport.inputs.identity import work_digest
from loraport.inputs.open import TransferInputs
from loraport.inputs.plan import NO_DRIFT, LayerJob
from loraport.inputs.rank import common_rank
from loraport.methods.settings import ProloraSettings, UndoOrthogonalSettings
from loraport.plain_json import json_text
from loraport.spectral.low_rank import LowRank
from loraport.transfers.encoders import encoder_factors
from loraport.transfers.journal import LayerStore
from loraport.transfers.method_input import as_factors
from loraport.transfers.results import LayerResult, kept_correction

PART_NOTES = {
    "adapter": "what is left of the LoRA; the part that takes the target's drift back is in a file of its own",
    "counter-drift": "what is taken back of the target's drift; the LoRA itself is in a file of its own",
}
STATUS = {"transfer": "transferred", "copy": "copied", "drop": "skipped"}


def output_contents(inputs: TransferInputs, journal: LayerStore, layers: Iterable[LayerResult]) -> LoraContents:
    """Assemble the output from the journal and from what is copied."""
    config, lora, dtype = inputs.config, inputs.lora, TORCH_DTYPES[inputs.config.dtype]
    status = {layer.name: layer.status for layer in layers if layer.status != "skipped"}
    provenance = _provenance(inputs, layers)

    def update(name: str) -> LowRank | Tensor:
        return journal.finished(name) if status[name] == "transferred" else copied_factors(inputs, name)

    def dense(name: str) -> Tensor:
        value = update(name)
        return value.dense() if isinstance(value, LowRank) else value

    if config.as_diff:
        pending = {name: Pending(dtype, lora.updates[name].shape, lambda name=name: dense(name)) for name in status}  # type: ignore[misc]
        return diff_contents(pending, lora, dtype=dtype, provenance=provenance, encoders=_encoders(inputs))
    updates = {name: value for name in status if isinstance(value := update(name), LowRank)}
    return lora_contents(
        updates, lora,
        format=config.format, dtype=dtype, provenance=provenance, uniform_rank=not config.rank.varies,
        encoders=_encoders(inputs),
    )  # fmt: skip


def _encoders(inputs: TransferInputs) -> dict[str, LowRank]:
    """Return the layers of text encoders that are not factors yet; the others are carried through."""
    return encoder_factors(inputs.lora, inputs.config.rank, inputs.source, plain=False)


def copied_factors(inputs: TransferInputs, name: str) -> LowRank:
    """Return the factors of a layer that is not transferred; of a DoRA what it adds to W_s, else to W_t."""
    config, update, W = inputs.config, inputs.lora.updates[name], None
    if needs_weight(update):
        model = inputs.source if f"{name}.weight" in inputs.source else inputs.target
        W = (model.model if isinstance(model, AcceleratedModel) else model).read(name).matrix
    rule = RankRule("full") if config.as_diff else config.rank
    return as_factors(update, W, rule, common_rank(config, inputs.plan), layer_generator(config.seed, name))


def key_account(inputs: TransferInputs, written: LoraContents, layers: Iterable[LayerResult]) -> KeyAccount:
    """Return where each key of the input went; what is dropped has the plan's reason or the method's."""
    keys = {name: layer.keys for name, layer in inputs.lora.layers.items()}
    dropped = [*inputs.lora.dropped, *written.dropped]
    dropped += [(key, row.reason or "") for row in layers if row.status == "skipped" for key in keys[row.name]]
    used = {key for row in layers if row.status != "skipped" for key in keys[row.name]}
    dropped = [(key, reason) for key, reason in dropped if key not in used or (key, reason) in written.dropped]
    by_status: dict[str, list[str]] = {status: [] for status in STATUS.values()}
    for row in layers:
        by_status[row.status] += keys[row.name]
    copied = (*by_status["copied"], *written.copied, *written.encoders)
    return KeyAccount.of(dropped, transferred=by_status["transferred"], copied=copied)


def rows_of_all_layers(inputs: TransferInputs, results: dict[str, LayerResult]) -> tuple[LayerResult, ...]:
    """Return the rows of all layers in the LoRA's order.

    Raises SettingsError if the method's own filter took every layer: there would be nothing to write.
    """
    layers = tuple(results.get(job.name) or _row_of_job(job) for job in inputs.plan.jobs)
    if layers and all(layer.status == "skipped" for layer in layers):
        raise SettingsError(f"the method gives no layer an adapter; {layers[0].name}, for one: {layers[0].reason}")
    return layers


def _row_of_job(job: LayerJob) -> LayerResult:
    rank_out = job.rank if job.action == "copy" and job.kind == "LoRA" else None
    status: Any = STATUS[job.action]
    return LayerResult(job.name, status, job.reason, job.shape, job.rank, rank_out, kind=job.kind,
                       drift_unknown=job.drift_unknown)  # fmt: skip


def closing_notes(config: TransferConfig, results: Iterable[LayerResult], written_bytes: int) -> list[str]:
    """Return what the user should know and only the finished layers show; the file takes so many bytes."""
    results, notes = list(results), []
    drifts = [result.drift for result in results if result.drift is not None]
    if drifts and not any(drifts):
        notes.append(NO_DRIFT)
    kept = [result for result in results if result.status == "copied"]
    if kept:
        notes.append(
            f"{len(kept)} of {len(results)} layers were copied: drift within twice what rounding makes counts as none "
            f"({kept[0].name}, for one: {_percent(kept[0].drift)} of the weight, where rounding makes "
            f"{_percent(kept[0].floor)}); --force-drift transfers them all the same"
        )
    notes += [*_little_kept(config, results, written_bytes), *_overlap_by_chance(config, results)]
    ranked = results if config.rank.varies else [row for row in results if row.status == "transferred"]
    if len({row.rank_out for row in ranked} - {None}) > 1:
        notes.append("ranks vary from layer to layer, which diffusers before 0.40 scales wrongly")
    settings = config.recipe.settings
    phi_min = settings.phi_min if isinstance(settings, ProloraSettings) else 0.0
    blind = sum(row.overlap_random is not None and row.overlap_random >= phi_min for row in results)
    if blind and phi_min:
        notes.append(
            f"the layer filter says nothing in {blind} of {len(results)} layers: subspaces this large would overlap by "
            f"phi_min {phi_min:g} even if they were unrelated (full ones by 1, always)"
        )
    return notes


LARGE = 8
"""‖LoRA‖ / ‖drift‖ from which orthogonal and plain undo differ much: on the mean of 22 pairs, 96 and 128 wide, it was
behind by 0.5 dB, of 20 pairs, 256 wide, ahead by 0.14. What it takes for work against the drift grows with it."""


def _overlap_by_chance(config: TransferConfig, results: Sequence[LayerResult]) -> list[str]:
    """Return a warning where orthogonal undo is used with a LoRA that is far larger than the drift."""
    if not isinstance(config.recipe.settings, UndoOrthogonalSettings):
        return []
    sizes = [(row.lora, row.drift) for row in results if row.lora is not None and row.drift]
    ratio = sum(lora for lora, _ in sizes) / sum(drift for _, drift in sizes) if sizes else 0.0
    if ratio < LARGE:
        return []
    return [
        f"the LoRA is {ratio:.0f} times as large as the drift; from {LARGE} times on undo-orthogonal was worse than "
        "undo:0.25 on the narrower ones of the measured models and better on others: compare the two"
    ]


LITTLE = 0.3
"""Share of the correction below which the result is nearly the LoRA as it is."""


def _little_kept(config: TransferConfig, results: Sequence[LayerResult], written_bytes: int) -> list[str]:
    """Return a warning where the rank left little of what the method changed, with the price of more."""
    share = kept_correction(results)
    rank = max((row.rank_out or 0 for row in results), default=0)
    if share is None or share >= LITTLE or not rank:
        return []
    shapes = [row.shape for row in results if row.kept_correction is not None]
    dense = sum(out * inn for out, inn in shapes) * TORCH_DTYPES[config.dtype].itemsize
    more = min(4 * rank, max(min(shape) for shape in shapes))
    size = written_bytes * more / rank
    return [
        f"only {_percent(share)} of what {config.method} changed is kept at rank {rank}: the result is nearly the LoRA "
        f"as it is. --rank {more} keeps more, in a file of {_megabytes(size)} instead of {_megabytes(written_bytes)}; "
        f"--as diff keeps all, in {_megabytes(dense)}"
    ]


def _megabytes(count: float) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e6:.2g} MB"


def _percent(share: float | None) -> str:
    return f"{100 * (share or 0):.2g} %"


def _provenance(inputs: TransferInputs, layers: Iterable[LayerResult]) -> dict[str, str]:
    """Return what the written file says about itself; names without their folders, contents by hash."""
    layers, config = list(layers), inputs.config
    values = {
        **made_from(inputs.lora, config.method),
        "settings": json_text(config.recorded_settings(), sort_keys=True),
        "work": work_digest(config),
        "source": Path(config.source).name,
        "source_hash": combined_hash((layer.name, layer.source_hash) for layer in layers),
        "target": Path(config.target).name,
        "target_hash": combined_hash((layer.name, layer.target_hash) for layer in layers),
    }
    if inputs.pairing is not None:
        values["pairing"] = json_text({target: origin for target, (origin, _) in inputs.pairing.pairs.items()})
    if isinstance(inputs.target, AcceleratedModel):
        values |= inputs.target.provenance()
    if config.part != "whole":
        values |= {"part": config.part, "note": PART_NOTES[config.part]}
    elif any(layer.correction for layer in layers) or config.method == "core":
        values["note"] = "this update also takes back a part of the target's drift; a strength slider scales both"
    return values


def combined_hash(hashes: Iterable[tuple[str, str | None]]) -> str:
    """Return one hash over the contents of the weights that were read, the same in whatever files they lie."""
    lines = sorted(f"{name} {digest}" for name, digest in hashes if digest is not None)
    return text_digest(*lines)
