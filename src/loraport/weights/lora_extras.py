"""Keys of a LoRA that are no factors, in the spelling of another dialect: where each goes, or why it cannot."""

from __future__ import annotations

from collections.abc import Container

from loraport.weights.dialects import WHOLE, Dialect, LoraKey
from loraport.weights.lora import BIASES_OF_B, Lora
from loraport.weights.lora_encoders import encoder_spelling, why_not
from loraport.weights.names import is_known


def respelled(like: Lora, dialect: Dialect, layers: Container[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """(key -> key in the output, [(key, reason)]) of a LoRA's extras; `layers` are those written with factors.

    Everything keeps its key where the dialect is the input's own, whole weights everywhere. Factors of text encoders
    are not here, but in `lora_encoders`.
    """
    kept: dict[str, str] = {}
    lost: list[tuple[str, str]] = []
    elsewhere = {key for keys in like.encoder_keys.values() for key in keys}
    for key in like.extras:
        if key in elsewhere:
            continue
        parsed = like.parse(key)
        reason = why_not(parsed, like, dialect) if parsed.text_encoder else ""
        if reason or (parsed.text_encoder and not parsed.clip):
            new = key
        elif dialect == like.dialect or (parsed.part in WHOLE and not parsed.text_encoder):
            new = key
        else:
            suffix, reason = _suffix(parsed, dialect, layers)
            if not reason and not (parsed.whole and dialect.place(parsed.layer).whole):
                reason = "its rows stand elsewhere in this format, where only factors are moved"
            spelling, name = encoder_spelling(parsed.layer, like, dialect) if parsed.clip else (dialect, parsed.layer)
            new = spelling.key(name, suffix)
        if reason:
            lost.append((key, reason))
        else:
            kept[key] = new
    return kept, lost


def _suffix(key: LoraKey, dialect: Dialect, layers: Container[str]) -> tuple[str, str]:
    """(the ending in this dialect, "") or ("", the reason why there is none)."""
    if key.part == "":
        return "", "an unknown ending, which has no counterpart in another format"
    if key.unresolved and not dialect.flat:
        return "", "its layer is known by a flattened name only, which this format cannot hold"
    is_bias = key.part == ".diff_b" or key.part in BIASES_OF_B
    if dialect.prefix != "diffusion_model." and not dialect.flat:
        if is_bias and key.layer in layers and dialect.pair[1].endswith(".weight"):
            return dialect.pair[1].removesuffix(".weight") + ".bias", ""
        return "", "the loaders of this format read factors only"
    if is_bias:
        return ".diff_b", ""
    if dialect.flat and not key.clip and not is_known(key.layer):
        return "", "the loaders of this format do not know the name"
    return key.part, ""
