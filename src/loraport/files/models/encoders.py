"""The text encoders beside a network: in the same single file, or in folders of the same pipeline."""

from __future__ import annotations

from pathlib import Path

from loraport.files.models.checkpoint import Checkpoint
from loraport.files.names.clip import FIRST, SECOND, encoder_of, encoder_parameters, own_parameters
from loraport.files.names.families import Piece

ENCODERS = (FIRST, SECOND)


def with_encoders(model: Checkpoint) -> Checkpoint:
    """Return the model with its text encoders' parameters under canonical names, as far as they are CLIP's."""
    alone = _alone(model)
    parts: dict[str, tuple[Piece, ...]] = {}
    for key, (tensor, [(name, rows), *others]) in model.stored.items():
        if others or not rows.whole:
            continue
        pieces = own_parameters(name, alone) if alone else encoder_parameters(name)
        if pieces and all(where.fits(tensor.shape) for _, where in pieces):
            parts[key] = pieces
    return model.divided(parts)


def held_encoders(model: Checkpoint) -> tuple[str, ...]:
    """Return which encoders such a model holds."""
    held = {encoder_of(name) for name in model}
    return tuple(encoder for encoder in ENCODERS if encoder in held)


def pipeline_folder(model: Checkpoint, encoder: str) -> Path | None:
    """Return the folder of an encoder in the pipeline whose network this is; None where there is none."""
    folder = model.paths[0].parent.parent / encoder
    return folder if folder.is_dir() and (folder.parent / "model_index.json").is_file() else None


def _alone(model: Checkpoint) -> str:
    """Return which encoder a file of transformers is, by its folder's name or its own; empty where it is a network."""
    if model.family is not None or not any(own_parameters(name, FIRST) for name in model if ".self_attn." in name):
        return ""
    path = model.paths[0]
    return SECOND if path.parent.name == SECOND or SECOND in path.name or "clip_g" in path.name.lower() else FIRST
