"""Write the layers of text encoders in a dialect: CLIP's by the table in `names.clip`, others not at all.

PEFT's folder is the adapter of one model, so it has none: the text encoder would be a folder of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from loraport.files.adapters.factor_tensors import factor_tensors
from loraport.files.adapters.updates import needs_weight
from loraport.files.formats.safetensors_write import Pending
from loraport.files.lora.read import Lora
from loraport.files.names.clip import FIRST, encoder_of, spelled_encoder
from loraport.files.names.dialects import Dialect, LoraKey, Pair
from loraport.files.names.families import SD15
from loraport.spectral.low_rank import LowRank

COMFY = "diffusion_model."
LINEAR_PAIR: Pair = (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
"""What diffusers of before PEFT reads on text encoders, whatever it reads on the network."""
IN_PEFT = "it belongs to a text encoder, and PEFT's folder is the adapter of one model; --to diffusers writes both"
NO_FACTORS = "it belongs to a text encoder, and is not a pair of factors that could be written again"
NO_WEIGHT = (
    "its update depends on the text encoder's weight, which the source does not hold; give a file or "
    "a pipeline that does"
)
UNKNOWN = (
    "it belongs to a text encoder other than CLIP, or stands behind a name that does not tell which encoder, so it "
    "cannot be respelled"
)


def encoder_spelling(layer: str, like: Lora, dialect: Dialect) -> tuple[Dialect, str]:
    """Return (the dialect in which a canonical layer's keys are written, its module there)."""
    prefix, module = spelled_encoder(layer, dialect.flat, _numbered(like), dialect.prefix == COMFY)
    old = dialect.pair[0].endswith(".down.weight") and not dialect.flat
    return replace(
        dialect, prefix=prefix, naming=None, family=None, processor=False, pair=LINEAR_PAIR if old else dialect.pair
    ), module  # fmt: skip


def _numbered(like: Lora) -> bool:
    """Return whether kohya's prefixes number the encoders: all but Stable Diffusion 1.5's and 2's, which have one."""
    if any(encoder_of(layer) != FIRST for layer in like.encoders) or any(
        key.startswith("lora_te1_") for key in like.extras
    ):
        return True
    return bool(like.layers) and like.dialect.family != SD15.name


def prefix_is_guessed(like: Lora, dialect: Dialect) -> bool:
    """Return whether kohya's prefix is a guess: of a first encoder alone, nothing tells which model it is of."""
    return dialect.flat and not like.dialect.flat and bool(like.encoders) and not (like.layers or _numbered(like))


def refusal(key: LoraKey, like: Lora, dialect: Dialect) -> str:
    """Return why a key of a text encoder has no place in a dialect; empty where it has."""
    if dialect.folder:
        return IN_PEFT
    same = (dialect.prefix, dialect.naming) == (like.dialect.prefix, like.dialect.naming)
    stays = same or (key.prefix.endswith("_") and (dialect.flat or dialect.prefix == COMFY))  # ComfyUI reads both
    return "" if key.clip or stays else UNKNOWN


def keeps_keys(layer: str, like: Lora, dialect: Dialect) -> bool:
    """Return whether plain factors have the keys already that this dialect gives them, and a scale that it reads."""
    spelling, module = encoder_spelling(layer, like, dialect)
    keys = [like.parse(key) for key in like.encoders[layer].keys]
    wanted = {"A": spelling.pair[0], "B": spelling.pair[1]} | ({".alpha": ".alpha"} if dialect.flat else {})
    return all(key.part in wanted and key.key == spelling.key(module, wanted[key.part]) for key in keys)


@dataclass(frozen=True)
class EncoderTensors:
    """The layers of text encoders in a file: the tensors, where each input key went, and what has no place."""

    pending: dict[str, Pending] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    lost: list[tuple[str, str]] = field(default_factory=list)
    rank: int = 0


def encoder_tensors(
    like: Lora, encoders: Mapping[str, LowRank], dialect: Dialect, dtype: torch.dtype, uniform_rank: bool = True
) -> EncoderTensors:
    """Return tensors of the given layers, and of the plain ones of `like`: bit by bit where their keys stay, else anew.

    Ranks are padded with zeros to the largest of the same encoder.
    """
    written = EncoderTensors()
    anew: dict[str, LowRank] = {}
    for layer, given in like.encoders.items():
        keys, update = given.keys, encoders.get(layer) or given.update
        if dialect.folder or not isinstance(update, LowRank):
            reason = IN_PEFT if dialect.folder else NO_WEIGHT if needs_weight(update) else NO_FACTORS
            written.lost.extend((key, reason) for key in keys)
        elif layer not in encoders and keeps_keys(layer, like, dialect):
            written.keys.update({key: key for key in keys})
            written.pending.update({key: Pending.copy_of(like.extras[key]) for key in keys})
        else:
            anew[layer] = update
    ranks: dict[str, int] = {}
    for layer, update in anew.items():
        ranks[encoder_of(layer)] = max(update.rank, ranks.get(encoder_of(layer), 0))
    for layer, update in anew.items():
        rank = ranks[encoder_of(layer)]
        update = update.padded(rank) if uniform_rank else update
        spelling, module = encoder_spelling(layer, like, dialect)
        tensors = factor_tensors(module, update, spelling, (), dtype, rank)
        written.pending.update({key: Pending.of(tensor) for key, tensor in tensors.items()})
        down, up = (spelling.key(module, ending) for ending in spelling.pair)
        written.keys.update({key: down if like.parse(key).part == "A" else up for key in like.encoders[layer].keys})
    return replace(written, rank=max(ranks.values(), default=0))
