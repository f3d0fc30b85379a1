"""Prompts as embeddings: made before anything is sampled, so that the text encoder leaves the memory for good."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
from torch import Tensor, nn

from loraport.compare.grid.requests import Course, Request
from loraport.compare.pipelines.column_adapters import ColumnAdapters
from loraport.compare.pipelines.kinds import Kind, Texts
from loraport.errors import InputError, MismatchError
from loraport.sampling.hooks import added, scale_updates
from loraport.sampling.network import open_part
from loraport.sampling.pipeline_files import opening, read_json
from loraport.spectral.low_rank import LowRank


class Asked(Protocol):
    """What is to be known of a model to embed its prompts."""

    @property
    def guided(self) -> bool:
        """Whether what a prompt is to avoid counts, too."""

    course: Course
    device: torch.device
    dtype: torch.dtype


def embed_prompts(
    folder: Path, kind: Kind, vae: Any, requests: Sequence[Request], adapters: ColumnAdapters, model: Asked
) -> dict[tuple[str, str], Texts]:
    """Return the embeddings by (prompt, column whose text encoders have an adapter, or "").

    Raises InputError for a text encoder that is missing or damaged.
    """
    wanted = dict.fromkeys((one.prompt.text, adapters.encoded_with(one.column)) for one in requests)
    strengths = {one.column.name: one.column.strength for one in requests}
    encoders = {name: open_part(folder, name, "text encoder", model.dtype) for name in kind.encoders}
    index = read_json(folder / "model_index.json")
    left_out: dict[str, Any] = {name: None for name in kind.networks if name in index}
    with opening("pipeline", folder):
        pipe = getattr(diffusers, kind.pipeline).from_pretrained(folder, vae=vae, **encoders, **left_out)
    if pipe.tokenizer is None:
        raise InputError(f"{folder} has no tokenizer; download the folder whole")
    pipe.vae = None  # it stays where it is
    for encoder in encoders.values():
        encoder.to(model.device)
    found: dict[tuple[str, str], Texts] = {}
    with torch.no_grad():
        for text, column in wanted:
            with ExitStack() as stack:
                for encoder, updates in adapters.of_encoders.get(column, {}).items():
                    scaled = scale_updates(updates, strengths[column])
                    stack.enter_context(added(_modules(encoders[encoder], scaled, column)))
                texts = kind.encode(pipe, text, model.course.negative, model.guided, model.device)
            found[text, column] = {name: value.cpu() for name, value in texts.items()}
    del pipe, encoders
    gc.collect()
    return found


def _modules(encoder: nn.Module, updates: Mapping[str, LowRank], column: str) -> list[tuple[nn.Module, LowRank]]:
    """Return the layers of a text encoder with their updates. Raises MismatchError for one that is not there."""
    modules = dict(encoder.named_modules())
    found = []
    for name, update in updates.items():
        module = modules.get(name) or modules.get(name.removeprefix("text_model."))
        weight: Any = getattr(module, "weight", None)
        if module is None or not isinstance(weight, Tensor) or tuple(weight.shape) != update.shape:
            raise MismatchError(
                f"{column}: the text encoder has no layer {name} of this size; was the LoRA made for it?"
            )
        found.append((module, update))
    return found
