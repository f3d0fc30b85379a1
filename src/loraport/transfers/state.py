"""Transfer a LoRA without files: tensors in, tensors out, by the same steps as from file to file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from loraport.compute import TORCH_DTYPES
from loraport.errors import SettingsError, unknown_name
from loraport.files.formats.in_memory import InMemory
from loraport.files.formats.safetensors_write import Pending
from loraport.files.lora.write import LoraContents
from loraport.inputs.accelerator import AcceleratedPlace
from loraport.inputs.config import TransferConfig
from loraport.inputs.open import check_names, prepare_many
from loraport.progress import NO_PROGRESS, Progress, observer
from loraport.transfers.journal import MemoryJournal
from loraport.transfers.layer_source import LayerSource
from loraport.transfers.results import TransferResult
from loraport.transfers.run import finished_result, new_run, report_notes, transfer_layers

Place = str | os.PathLike[str] | Mapping[str, Tensor]
"""A file, a folder, a preset or a Hub id, or tensors by their keys."""

_PLACES = ("lora", "source", "target", "output")
SETTINGS = tuple(field.name for field in fields(TransferConfig) if field.name not in _PLACES)
"""What `transfer_state` takes beside the places: every other field of TransferConfig."""


@dataclass(frozen=True)
class LoraState:
    """A transferred LoRA in memory: what a transfer would have written, and the transfer's result."""

    tensors: Mapping[str, Tensor]
    """By the keys of the format that was asked for, in its dtype; the scale is in the factors."""
    metadata: Mapping[str, str]
    """What stands in the header of a file: how it was made, and what of the LoRA's own header stays true."""
    config: Mapping[str, Any] | None
    """PEFT's configuration, where its format was asked for."""
    result: TransferResult
    """Layer by layer what was done, what was dropped, what to know; its `output` is empty."""
    contents: LoraContents

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as `transfer` does: the same bytes. Raises OutputError."""
        place = Path(path).expanduser()
        self.contents.save(place)
        return place


def transfer_state(
    lora: Place,
    source: Place,
    target: Place,
    *,
    lora_config: Mapping[str, Any] | None = None,
    lora_metadata: Mapping[str, str] | None = None,
    progress: Progress = NO_PROGRESS,
    **settings: Any,
) -> LoraState:
    """Transfer a LoRA in memory. Each of the three is a mapping of tensors by their keys, or a place as for `transfer`.

    Keys are spelled as in files: any dialect, any prefix, fused layers, several parts. What is checked, refused,
    rounded and noted is the same, and so are the tensors, bit for bit. Nothing is written but bases, where `cache`
    names a folder; an interrupted call begins anew. Tensors may lie on a card: they are copied layer by layer, and not
    changed.

    `settings` are the fields of TransferConfig behind its places: method, settings, rank, format, dtype, include,
    lora_part, cache and so on. Two experts are two calls. `lora_config` is PEFT's configuration of a LoRA in memory
    (`model.peft_config["default"].to_dict()`), which has its alpha; `lora_metadata` a file's header.

        from safetensors.torch import load_file

        import loraport

        lora = load_file("style.safetensors")
        moved = loraport.transfer_state(lora, "wan/", "fastwan/", method="undo:0.25", format="diffusers")
        print(len(moved.tensors), moved.result.warnings)

    Raises InputError as `transfer` does.
    """
    config = state_config(
        place_of(lora, "the LoRA in memory", lora_metadata, lora_config),
        place_of(source, "the source in memory"),
        place_of(target, "the target in memory"),
        settings,
    )
    return transfer_in_memory(config, observer(progress))


def state_config(lora: str, source: str, target: str, settings: Mapping[str, Any]) -> TransferConfig:
    """Return the configuration of a transfer without an output. Raises SettingsError for an unknown setting."""
    for name in settings:
        if name not in SETTINGS:
            raise unknown_name("setting", name, SETTINGS)
    return TransferConfig(lora, source, target, output="", **settings)


def transfer_in_memory(config: TransferConfig, progress: Progress) -> LoraState:
    """Run one transfer whose result stays in memory."""
    inputs = prepare_many([config], progress)[0]
    check_names(inputs)
    layers = LayerSource.open(inputs)
    run = new_run(inputs, MemoryJournal(TORCH_DTYPES[config.dtype]))
    report_notes(progress, [("", inputs.plan.warnings)])
    transfer_layers([run], layers, progress)
    kept: list[LoraContents] = []
    result = finished_result(run, layers.bases, kept.append)
    report_notes(progress, [("", result.warnings)], already=[inputs])
    contents = kept[0]
    tensors = {key: pending.make().detach().to("cpu", copy=True) for key, pending in sorted(contents.tensors.items())}
    again = replace(contents, tensors={key: Pending.of(tensor) for key, tensor in tensors.items()})
    return LoraState(tensors, contents.metadata, contents.config, result, again)


def place_of(
    given: Place, name: str, metadata: Mapping[str, str] | None = None, config: Mapping[str, Any] | None = None
) -> str:
    """Return a place as a text, or tensors under a name. Raises SettingsError for what has a header of its own."""
    if isinstance(given, InMemory | AcceleratedPlace):
        return given
    if isinstance(given, Mapping):
        return InMemory(name, given, metadata, config)
    if metadata is not None or config is not None:
        raise SettingsError("lora_metadata and lora_config belong to a LoRA in memory; a file has its own")
    return os.fspath(given)
