"""Open a pipeline with the network read by the same code as a transfer's: names, fp8 scales, parts and shards alike.

Diffusers' own loading drops what it does not know, such as the scales of fp8 weights, and then samples another network
without an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers import AnyFlowPipeline, WanPipeline
from torch import Tensor

from loraport.errors import FileFormatError, InputError, MismatchError
from loraport.files.models.checkpoint import Checkpoint, open_checkpoint
from loraport.files.names.families import WAN
from loraport.files.names.lookup import parameter_in
from loraport.sampling.pipeline_files import FLOW_MAP, GATE, opening, pipeline_class, read_json
from loraport.sampling.places import SampledModel

TEXT_ENCODER = "UMT5EncoderModel"


NETWORKS = (
    "WanTransformer3DModel",
    "AnyFlowTransformer3DModel",
    "HunyuanVideo15Transformer3DModel",
    "UNet2DConditionModel",
)
"""The classes of diffusers that are opened here."""


def open_pipeline(model: SampledModel, dtype: torch.dtype) -> Any:
    """Return a Wan pipeline, or AnyFlow's, without its VAE: only latents are measured.

    Raises InputError for anything missing or damaged in the folder.
    """
    quiet()
    folder = model.folder
    network = open_network(folder / "transformer", dtype, model.network)
    encoder = open_text_encoder(folder, dtype)
    kind = AnyFlowPipeline if pipeline_class(folder) == FLOW_MAP else WanPipeline
    with opening("pipeline", folder):
        pipe = kind.from_pretrained(folder, vae=None, transformer=network, text_encoder=encoder, dtype=dtype)
    if pipe.tokenizer is None:
        raise InputError(f"{folder} has no tokenizer; download the folder whole")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def quiet() -> None:
    """Switch the libraries' own progress bars off: ours shows the progress of the whole run."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


def open_text_encoder(folder: Path, dtype: torch.dtype) -> Any:
    """Return Wan's text encoder. Raises InputError where it is missing, of another class, or incomplete."""
    index = read_json(folder / "model_index.json").get("text_encoder")
    if index != ["transformers", TEXT_ENCODER]:
        raise InputError(f"{folder}: its text encoder is {index!r:.80}, not a {TEXT_ENCODER} of transformers")
    return open_part(folder, "text_encoder", "text encoder", dtype)


def open_part(folder: Path, part: str, what: str, dtype: torch.dtype) -> Any:
    """Return a part of a pipeline that has weights, complete: missing ones would be random, with a warning alone.

    Raises InputError where it is missing, of a class that its library does not have, or incomplete.
    """
    index = read_json(folder / "model_index.json").get(part)
    library = {"diffusers": diffusers, "transformers": transformers}.get(index[0] if isinstance(index, list) else "")
    kind: Any = getattr(library, str(index[1]), None) if library is not None and isinstance(index, list) else None
    if not hasattr(kind, "from_pretrained"):
        raise InputError(f"{folder}: its {what} is {index!r:.80}, which is no class of transformers or diffusers")
    with opening(what, folder):
        loaded: Any = kind.from_pretrained(folder / part, dtype=dtype, output_loading_info=True)
    module, loading_info = loaded
    missing = sorted(loading_info["missing_keys"])
    if missing:
        raise InputError(f"{folder / part} lacks {len(missing)} parameters, {missing[0]!r} for one; download it again")
    return aligned(module.eval().requires_grad_(False))


def aligned(module: Any) -> Any:
    """Return a module with every parameter at an address that products begin well at.

    On a processor the last bits of a product depend on it, and a tensor in a mapped file lies anywhere.
    """
    for value in (*module.parameters(), *module.buffers()):
        if value.data_ptr() % 64:
            value.data = value.data.clone()
    return module


def open_network(folder: Path, dtype: torch.dtype, weights: str | Checkpoint | None = None) -> Any:
    """Return the network that a folder's configuration describes, with its weights, ready for sampling.

    `weights`: others than the folder's, by their place (a single file, for one), or opened.
    Raises FileFormatError for missing or unexpected parameters and for values that are not finite, MismatchError where
    shapes differ from the configuration.
    """
    checkpoint = weights if isinstance(weights, Checkpoint) else open_checkpoint(weights or folder)
    network = empty_network(read_json(folder / "config.json"), folder)
    wanted = network.state_dict()
    names = _spelled(checkpoint, network)
    _check(names, wanted, checkpoint, folder)
    state = {name: _value(checkpoint, own, _dtype_of(name, network, dtype)) for name, own in names.items()}
    network.load_state_dict(state, assign=True)
    return aligned(network.eval().requires_grad_(False))


def empty_network(config: dict[str, Any], folder: Path) -> Any:
    """Return the network of a configuration, without values. Raises FileFormatError for a wrong configuration."""
    name = config.get("_class_name", NETWORKS[0])
    if name not in NETWORKS:
        raise FileFormatError(
            f"{folder / 'config.json'} describes a {name!r:.60}, and what can be sampled is {', '.join(NETWORKS)}; "
            "give the pipeline of one of these"
        )
    try:
        with init_empty_weights(include_buffers=False):
            return getattr(diffusers, name).from_config(config)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise FileFormatError(
            f"{folder / 'config.json'} does not describe a {name}: {error}; download it again"
        ) from error


def _spelled(checkpoint: Checkpoint, network: Any) -> dict[str, str]:
    """Return {diffusers' name of each parameter: its name in the checkpoint}.

    Left out are FastVideo's gates, and what diffusers' own loading leaves out of published files.
    """
    family = checkpoint.family or WAN
    names = {parameter_in(own, "diffusers", family) or own: own for own in checkpoint.own}
    unused = (GATE, *(network._keys_to_ignore_on_load_unexpected or ()))
    return {name: own for name, own in names.items() if not any(f".{part}." in f".{name}." for part in unused)}


def _check(names: dict[str, str], wanted: dict[str, Tensor], checkpoint: Checkpoint, folder: Path) -> None:
    place = folder if checkpoint.where == str(folder) else checkpoint.where
    missing = [name for name in wanted if name not in names]
    unexpected = [name for name in names if name not in wanted]
    if missing or unexpected:
        what = " and ".join(
            f"{verb} {len(keys)} parameters ({', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''})"
            for verb, keys in (("lacks", missing), ("has beside it", unexpected))
            if keys
        )
        by = "its config.json" if place == folder else f"{folder / 'config.json'}"
        raise FileFormatError(
            f"{place} {what}, by {by}: another network would be sampled; give weights and configuration that belong "
            "together"
        )
    for name, own in names.items():
        if tuple(wanted[name].shape) != checkpoint.shape(own):
            raise MismatchError(
                f"{checkpoint.path(own)}: {checkpoint.key(own)!r} is {tuple(checkpoint.shape(own))}, by "
                f"{folder / 'config.json'} {tuple(wanted[name].shape)}; give the folder whose files belong together"
            )


def _value(checkpoint: Checkpoint, own: str, dtype: torch.dtype) -> Tensor:
    value = checkpoint.tensor(own)
    if not torch.isfinite(value.float()).all():
        raise FileFormatError(
            f"{checkpoint.path(own)}: {checkpoint.key(own)!r} holds NaN or infinite values; use an undamaged file"
        )
    return value.to(dtype)


def _dtype_of(name: str, network: Any, dtype: torch.dtype) -> torch.dtype:
    """Return float32 for norms, time embedding and modulation, as diffusers' own loading has them, else `dtype`."""
    kept = network._keep_in_fp32_modules or ()
    return torch.float32 if any(part in name.split(".") for part in kept) else dtype
