"""CLIP as OpenAI trained it: how near a picture is to another (CLIP-I) and to a text (CLIP-T)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import normalize

from loraport.evaluation.networks.folders import read_folder
from loraport.evaluation.networks.pictures import CLIP_MEAN, CLIP_SPREAD, in_batches, normalized, square
from loraport.evaluation.networks.texts import clip_tokens


def load_clip(folder: Path, device: torch.device) -> Any:
    """Return the CLIPModel of a folder."""
    return read_folder("CLIPModel", folder, device)


def picture_vectors(network: Any, frames: UInt8[ndarray, "n h w 3"]) -> Float[Tensor, "n joint"]:
    """Return a vector of length one for each frame."""
    side = network.config.vision_config.image_size

    def look(batch: UInt8[ndarray, "n h w 3"]) -> Tensor:
        pictures = normalized(square(batch, side, side, floor=True), CLIP_MEAN, CLIP_SPREAD)
        pooled = network.vision_model(pixel_values=pictures.to(network.device)).pooler_output
        return normalize(network.visual_projection(pooled), dim=-1)

    return in_batches(frames, look, network.device)


@torch.inference_mode()
def text_vector(network: Any, tokenizer: Tokenizer, text: str) -> Float[Tensor, " joint"]:
    """Return the vector of a text, of length one."""
    tokens = clip_tokens(tokenizer, text).to(network.device)
    pooled = network.text_model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).pooler_output
    return normalize(network.text_projection(pooled), dim=-1)[0].float().cpu()
