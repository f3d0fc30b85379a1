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
from diffusers import WanPipeline, WanTransformer3DModel
from torch import Tensor

from loraport.errors import FileFormatError, InputError, MismatchError
from loraport.files.models.checkpoint import Checkpoint, open_checkpoint
from loraport.files.names.families import WAN
from loraport.files.names.lookup import parameter_in
from loraport.sampling.pipeline_files import GATE, opening, read_json

TEXT_ENCODER = "UMT5EncoderModel"


def open_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """Return the pipeline of a folder without its VAE: only latents are measured.

    Raises InputError for anything missing or damaged in the folder.
    """
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()  # ours shows the progress of the whole run
    network, encoder = open_network(folder / "transformer", dtype), open_text_encoder(folder, dtype)
    with opening("pipeline", folder):
        pipe = WanPipeline.from_pretrained(folder, vae=None, transformer=network, text_encoder=encoder, dtype=dtype)
    if pipe.tokenizer is None:
        raise InputError(f"{folder} has no tokenizer; download the folder whole")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def open_text_encoder(folder: Path, dtype: torch.dtype) -> Any:
    """Return Wan's text encoder, complete: transformers fills missing parameters with random values and a warning.

    Raises InputError where it is missing, of another class, or incomplete.
    """
    index = read_json(folder / "model_index.json").get("text_encoder")
    if index != ["transformers", TEXT_ENCODER]:
        raise InputError(f"{folder}: its text encoder is {index!r:.80}, not a {TEXT_ENCODER} of transformers")
    place = folder / "text_encoder"
    with opening("text encoder", folder):
        loaded: Any = transformers.UMT5EncoderModel.from_pretrained(place, dtype=dtype, output_loading_info=True)
    encoder, loading_info = loaded
    missing = sorted(loading_info["missing_keys"])
    if missing:
        raise InputError(f"{place} lacks {len(missing)} parameters, {missing[0]!r} for one; download it again")
    return encoder.eval()


def open_network(folder: Path, dtype: torch.dtype) -> WanTransformer3DModel:
    """Return a Wan transformer with its weights, ready for sampling.

    Raises FileFormatError for missing or unexpected parameters and for values that are not finite, MismatchError where
    shapes differ from the configuration.
    """
    checkpoint = open_checkpoint(folder)
    network = empty_network(read_json(folder / "config.json"), folder)
    wanted = network.state_dict()
    names = _spelled(checkpoint)
    _check(names, wanted, checkpoint, folder)
    state = {name: _value(checkpoint, own, _dtype_of(name, network, dtype)) for name, own in names.items()}
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def empty_network(config: dict[str, Any], folder: Path) -> WanTransformer3DModel:
    """Return the network of a configuration, without values. Raises FileFormatError for a wrong configuration."""
    try:
        with init_empty_weights(include_buffers=False):
            return WanTransformer3DModel.from_config(config)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise FileFormatError(
            f"{folder / 'config.json'} does not describe a WanTransformer3DModel: {error}; download it again"
        ) from error


def _spelled(checkpoint: Checkpoint) -> dict[str, str]:
    """Return {diffusers' name of each parameter: its name in the checkpoint}.

    Left out are FastVideo's gates, and what diffusers' own loading leaves out of published files.
    """
    names = {parameter_in(own, "diffusers", WAN) or own: own for own in checkpoint.names()}
    unused = (GATE, *(WanTransformer3DModel._keys_to_ignore_on_load_unexpected or ()))
    return {name: own for name, own in names.items() if not any(f".{part}." in f".{name}." for part in unused)}


def _check(names: dict[str, str], wanted: dict[str, Tensor], checkpoint: Checkpoint, folder: Path) -> None:
    missing = [name for name in wanted if name not in names]
    unexpected = [name for name in names if name not in wanted]
    if missing or unexpected:
        what = " and ".join(
            f"{verb} {len(keys)} parameters ({', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''})"
            for verb, keys in (("lacks", missing), ("has beside it", unexpected))
            if keys
        )
        raise FileFormatError(
            f"{folder} {what}, by its config.json: another network would be sampled; download the folder whole"
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


def _dtype_of(name: str, network: WanTransformer3DModel, dtype: torch.dtype) -> torch.dtype:
    """Return float32 for norms, time embedding and modulation, as diffusers' own loading has them, else `dtype`."""
    kept = network._keep_in_fp32_modules or ()
    return torch.float32 if any(part in name.split(".") for part in kept) else dtype
