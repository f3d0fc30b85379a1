"""Write LoRA files for the loaders that will read them: the scale inside the factors, one rank, nothing stale.

Written metadata is `format: pt`, what the trainer wrote and stays true (`header_words`: title, author, licence, trigger
words; no hashes, sizes and scales), and the caller's provenance under `loraport.`. Tencent's format has PEFT's
configuration beside them where its fused refiners have another rank: its loader, diffusers before 0.40, scales mixed
ranks wrongly without.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from loraport.errors import OutputError, SettingsError, unknown_name
from loraport.files.adapters.casting import cast
from loraport.files.adapters.factor_tensors import factor_tensors
from loraport.files.adapters.fused import join_dense, join_layers
from loraport.files.adapters.peft_fields import CONFIG_NAME, WEIGHTS_NAME
from loraport.files.formats.safetensors_write import (
    OWN_PREFIX,
    Pending,
    save_folder,
    save_safetensors,
    write_safetensors,
)
from loraport.files.lora.alpha import BASE_MODEL, HEADER_FIELD
from loraport.files.lora.encoders import encoder_tensors
from loraport.files.lora.extras import respell_extras
from loraport.files.lora.header import lasting_fields
from loraport.files.lora.kernels import Kernel
from loraport.files.lora.kohya import with_missing_layers
from loraport.files.lora.read import Lora
from loraport.files.names.dialects import (
    KOHYA_PAIR,
    NO_NAME,
    PEFT_PREFIX,
    VARIANTS,
    Dialect,
    no_name,
    parse_key,
)
from loraport.files.names.families import FAMILIES
from loraport.files.names.majority import majority_dialect
from loraport.plain_json import json_text
from loraport.spectral.low_rank import LowRank

Value = TypeVar("Value")
Format = Literal["same", "comfy", "diffusers", "peft", "kohya", "tencent"]

FORMATS: Mapping[str, Dialect] = {
    "comfy": Dialect("diffusion_model.", None),
    "diffusers": Dialect("transformer.", None),
    "peft": Dialect(PEFT_PREFIX, None),
    "kohya": Dialect("lora_unet_", None, KOHYA_PAIR, flat=True),
    "tencent": Dialect("", None),
}
"""How each format writes keys; the names between prefix and ending are the family's own (`Family.written`)."""


@dataclass(frozen=True)
class WrittenLora:
    """The written keys, the extras (key -> key in the output), and what has no spelling there, with the reason."""

    path: Path
    dialect: Dialect
    keys: tuple[str, ...]
    copied: Mapping[str, str]
    dropped: tuple[tuple[str, str], ...]
    rank: int
    encoders: Mapping[str, str] = field(default_factory=dict)
    """Of the factors of text encoders: key -> the key in the output that it went into."""


@dataclass(frozen=True)
class LoraContents:
    """What a LoRA's file will hold, or PEFT's folder: tensors that are made when their turn comes, and the rest."""

    dialect: Dialect
    tensors: Mapping[str, Pending]
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None
    """PEFT's configuration, where its format is written."""
    copied: Mapping[str, str]
    dropped: tuple[tuple[str, str], ...]
    rank: int
    encoders: Mapping[str, str]

    def save(self, path: Path) -> WrittenLora:
        """Write it, whole or not at all. Raises OutputError."""
        if self.config is None:
            save_safetensors(path, self.tensors, self.metadata)
        else:
            _save_peft(path, self.tensors, self.metadata, self.config)
        keys = tuple(sorted(self.tensors))
        return WrittenLora(path, self.dialect, keys, self.copied, self.dropped, self.rank, self.encoders)


def output_dialect(like: Lora, format: str) -> Dialect:
    """Return the dialect that a format means for this LoRA.

    Raises SettingsError for an unknown format, and for `tencent` (names without prefix, which generate.py of
    HunyuanVideo-1.5 loads) where the LoRA is of another family.
    """
    if format == "same":
        return like.dialect
    dialect = format_dialect(format)
    if like.dialect.family is None:
        of_component = format == "diffusers" and like.dialect.prefix in ("unet.", "transformer.")
        return replace(dialect, prefix=like.dialect.prefix) if of_component else dialect
    family = FAMILIES[like.dialect.family]
    if format not in family.written:
        raise SettingsError(
            f"{format} is the format of HunyuanVideo-1.5's own code, but this LoRA is of {family.name}; use one of: "
            f"{', '.join(family.written)}"
        )
    own = like.dialect.prefix.removesuffix(".")
    component = own if own in family.partitions else family.component
    prefix = f"{component}." if format == "diffusers" else dialect.prefix
    return replace(dialect, prefix=prefix, naming=family.written[format], family=family.name)


def format_dialect(format: str) -> Dialect:
    """Return the dialect of a format by name. Raises SettingsError for an unknown one."""
    if format not in FORMATS:
        raise unknown_name("format", format, get_args(Format))
    return FORMATS[format]


def written_as_folder(keys: Iterable[str], format: str) -> bool:
    """Return whether a LoRA with these keys becomes a folder. Raises SettingsError for an unknown format."""
    if format != "same":
        return format_dialect(format).folder
    parsed = [parse_key(key) for key in keys]
    return majority_dialect([key for key in parsed if key.part in ("A", "B", *VARIANTS)] or parsed).folder


def check_form(output: Path, folder: bool) -> None:
    """Refuse a place that does not fit what will be written there, a file or PEFT's folder. Raises OutputError."""
    if folder and output.is_file():
        raise OutputError(f"{output} is a file, but PEFT's format is a folder; name a folder")
    if folder and output.suffix == ".safetensors":
        raise OutputError(
            f"{output} is named like a file, but PEFT's format is a folder; name a folder, or take --format comfy, "
            "diffusers or kohya for one file"
        )
    if not folder and output.is_dir():
        raise OutputError(f"{output} is a folder, but this output is a file; name a .safetensors file in it")
    if not folder and output.suffix != ".safetensors":
        raise OutputError(f"{output} has no .safetensors ending, by which loaders know the format; add it")


def write_lora(
    path: Path | str,
    layers: Mapping[str, LowRank],
    like: Lora,
    *,
    format: str = "same",
    dtype: torch.dtype = torch.bfloat16,
    provenance: Mapping[str, str] | None = None,
    uniform_rank: bool = True,
    encoders: Mapping[str, LowRank] | None = None,
) -> WrittenLora:
    """Write updates under the names of a format, with the extras of the LoRA that they come from.

    `encoders` are layers of its text encoders as factors; without, plain ones are carried through, others dropped.
    Ranks are padded with zeros to the largest, unless `uniform_rank` is off. PEFT's format makes a folder.
    Raises OutputError where nothing can be written, SettingsError where a value does not fit `dtype`.
    """
    contents = lora_contents(
        layers, like, format=format, dtype=dtype, provenance=provenance, uniform_rank=uniform_rank, encoders=encoders
    )
    return contents.save(Path(path))


def lora_contents(
    layers: Mapping[str, LowRank],
    like: Lora,
    *,
    format: str,
    dtype: torch.dtype,
    provenance: Mapping[str, str] | None,
    uniform_rank: bool,
    encoders: Mapping[str, LowRank] | None,
) -> LoraContents:
    """Return what `write_lora` writes."""
    dialect = output_dialect(like, format)
    spelled, dropped = _spelled(layers, like, dialect)
    # before the padding: layers of zeros get the rank of the others, since old diffusers scales mixed ranks wrongly
    if format == "kohya":
        spelled = with_missing_layers(spelled)
    rank = max((update.rank for update in spelled.values()), default=0)
    if uniform_rank and not (dialect.family and FAMILIES[dialect.family].mixed_ranks):
        spelled = {layer: update.padded(rank) for layer, update in spelled.items()}
    modules = join_layers(spelled, dialect)
    tensors: dict[str, Tensor] = {}
    # diffusers applies an alpha of one layer of a U-Net to all (0.42), so there is one
    alpha = rank if dialect.family and FAMILIES[dialect.family].component == "unet" else None
    for layer, update in modules.items():
        tensors |= factor_tensors(layer, update, dialect, _kernel(layer, like), dtype, alpha)
    copied, lost = respell_extras(like, dialect, spelled)
    beside = encoder_tensors(like, encoders or {}, dialect, dtype, uniform_rank)
    metadata = _metadata(like, provenance)
    pending = {key: Pending.of(tensor) for key, tensor in tensors.items()} | beside.pending
    pending |= {new: Pending.copy_of(like.extras[old]) for old, new in copied.items()}
    ranks = {dialect.module(layer): update.rank for layer, update in modules.items()}
    config = None
    if dialect.folder:
        inner = dialect.prefix.removeprefix(PEFT_PREFIX)
        ranks = {inner + module: own for module, own in ranks.items()}
        base = None if "target" in (provenance or {}) else like.metadata.get(BASE_MODEL)
        config = peft_config(ranks, bias=any(key.endswith(".lora_B.bias") for key in pending), base=base)
    elif format == "tencent" and len(set(ranks.values())) > 1:
        metadata[HEADER_FIELD] = json_text(peft_config(ranks), sort_keys=True)
    gone = (*dropped, *lost, *beside.lost)
    return LoraContents(dialect, pending, metadata, config, copied, gone, rank or beside.rank, beside.keys)


def diff_contents(
    updates: Mapping[str, Pending],
    like: Lora,
    *,
    dtype: torch.dtype = torch.bfloat16,
    provenance: Mapping[str, str] | None = None,
    encoders: Mapping[str, LowRank] | None = None,
) -> LoraContents:
    """Return dense updates as ComfyUI's `diffusion_model.<layer>.diff`, each made when its turn comes.

    Extras and text encoders go as in format "comfy". A convolution's update may be given as a matrix.
    """
    dialect = output_dialect(like, "comfy")
    named, dropped = _spelled(updates, like, dialect)
    pending = {}
    for layer, update in join_dense(named, dialect).items():
        pending[dialect.key(layer, ".diff")] = _dense(layer, update, _kernel(layer, like), dtype)
    copied, lost = respell_extras(like, dialect, updates)
    for old, new in list(copied.items()):
        if new in pending:
            del copied[old]
            lost.append((old, f"the update of the same layer is written as {new!r}"))
    beside = encoder_tensors(like, encoders or {}, dialect, dtype)
    pending |= {new: Pending.copy_of(like.extras[old]) for old, new in copied.items()} | beside.pending
    metadata = _metadata(like, provenance)
    gone = (*dropped, *lost, *beside.lost)
    return LoraContents(dialect, pending, metadata, None, copied, gone, 0, beside.keys)


def peft_config(ranks: Mapping[str, int], bias: bool = False, base: str | None = None) -> dict[str, Any]:
    """Return PEFT's configuration of an adapter with the scale in its factors: alpha = rank, modules by exact name.

    `base`: the model that it was trained on and is still for; what was transferred is for another.
    """
    rank = max(ranks.values(), default=1)
    odd = {"^" + re.escape(module): r for module, r in sorted(ranks.items()) if r != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        BASE_MODEL: base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": odd,
        "alpha_pattern": odd,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": bias,
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _metadata(like: Lora, provenance: Mapping[str, str] | None) -> dict[str, str]:
    own = {f"{OWN_PREFIX}{key}": value for key, value in (provenance or {}).items()}
    return {**lasting_fields(like.metadata), "format": "pt", **own}


def nameless_layers(like: Lora, dialect: Dialect) -> dict[str, str]:
    """Return the layers of a LoRA that a dialect has no name for -> why."""
    reasons = {
        name: no_name(name, like.dialect, dialect) if layer.resolved or dialect.flat else NO_NAME
        for name, layer in like.layers.items()
    }
    return {layer: reason for layer, reason in reasons.items() if reason}


def _spelled(
    layers: Mapping[str, Value], like: Lora, dialect: Dialect
) -> tuple[dict[str, Value], list[tuple[str, str]]]:
    """Return the layers that the dialect has a name for, and the input keys of the others."""
    lost = nameless_layers(like, dialect)
    dropped = [(key, lost[layer]) for layer in sorted(lost) if layer in layers for key in like.layers[layer].keys]
    return {layer: layers[layer] for layer in sorted(layers) if layer not in lost}, dropped


def _kernel(layer: str, like: Lora) -> Kernel:
    """Return the kernel that a layer is written with; none for a layer that the LoRA does not have."""
    return (like.layers[layer].kernel if layer in like.layers else None) or ()


def _dense(layer: str, update: Pending, kernel: tuple[int, ...], dtype: torch.dtype) -> Pending:
    shape = update.shape
    if kernel and len(shape) == 2:
        shape = (shape[0], shape[1] // math.prod(kernel), *kernel)
    return Pending(dtype, shape, lambda: cast(layer, update.make(), dtype).reshape(shape))


def _save_peft(
    path: Path, tensors: Mapping[str, Pending], metadata: Mapping[str, str], config: Mapping[str, Any]
) -> None:
    def write(folder: Path) -> None:
        write_safetensors(folder / WEIGHTS_NAME, tensors, metadata)
        (folder / CONFIG_NAME).write_bytes((json_text(config, indent=2, sort_keys=True) + "\n").encode())

    save_folder(path, write, frozenset({WEIGHTS_NAME, CONFIG_NAME}))
