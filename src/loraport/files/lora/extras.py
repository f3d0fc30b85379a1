"""Respell the keys of a LoRA that are not factors for another dialect, or say why one has no place there."""

from __future__ import annotations

from collections.abc import Container

from loraport.files.lora.encoders import encoder_spelling, refusal
from loraport.files.lora.layer_reader import BIASES_OF_B
from loraport.files.lora.read import Lora
from loraport.files.names.dialects import NO_NAME, WHOLE, Dialect, LoraKey, no_name
from loraport.files.names.families import FAMILIES
from loraport.files.names.lookup import is_known


def respell_extras(
    like: Lora, dialect: Dialect, layers: Container[str]
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return (key -> key in the output, [(key, reason)]) of the extras; `layers` are those written with factors.

    Everything keeps its key where the dialect is the input's own, whole weights wherever a loader bears them.
    Factors of text encoders are not here, but in `encoders`.
    """
    kept: dict[str, str] = {}
    lost: list[tuple[str, str]] = []
    elsewhere = like.encoder_keys
    for key in like.extras:
        if key in elsewhere:
            continue
        parsed = like.parse(key)
        reason = refusal(parsed, like, dialect) if parsed.text_encoder else ""
        own = dialect is like.dialect or (dialect == like.dialect and not parsed.bare)
        whole = parsed.part in WHOLE and not parsed.text_encoder
        reason = reason or (_REFUSED_WHOLE if whole and not own and dialect.prefix in _STRICT else "")
        if reason or own or whole or (parsed.text_encoder and not parsed.clip):
            new = key
        elif parsed.clip:
            suffix, reason = _suffix(parsed, dialect, layers)
            spelling, name = encoder_spelling(parsed.layer, like, dialect)
            new = spelling.key(name, suffix)
        else:
            suffix, reason = _suffix(parsed, dialect, layers)
            reason = reason or _misplaced(parsed, like.dialect, dialect)
            new = _by_name(parsed, dialect) or dialect.key(parsed.layer, suffix)
        if reason:
            lost.append((key, reason))
        else:
            kept[key] = new
    return kept, lost


_STRICT = ("transformer.", "unet.")
"""What stands before the keys that diffusers' pipelines read, which raise for a file with a key without `lora`."""
_REFUSED_WHOLE = "a whole weight, beside which diffusers refuses the file"


def _misplaced(key: LoraKey, was: Dialect, dialect: Dialect) -> str:
    """Return why a difference has no place in this dialect, whatever its ending; "" where it has one."""
    if not key.bare:
        for name, _ in key.pieces:
            if reason := no_name(name, was, dialect):
                return reason
    if not (key.whole and (key.bare or dialect.rows(key.layer).whole)):
        return "its rows stand elsewhere in this format, where only factors are moved"
    return ""


def _by_name(key: LoraKey, dialect: Dialect) -> str | None:
    """Return the key as ComfyUI reads it, where the parameter is not a layer's `.weight` there; else None."""
    if dialect.prefix != "diffusion_model." or key.part not in (".diff", ".w_norm"):
        return None
    parameter = key.layer if key.bare else f"{key.layer}.weight"
    family = FAMILIES.get(dialect.family or "")
    rows = family.parameter_rows(parameter, dialect.naming) if family and dialect.naming else None
    stored = parameter if rows is None else rows.name
    return None if stored.endswith(".weight") and not key.bare else f"{dialect.prefix}{stored}.diff"


def _suffix(key: LoraKey, dialect: Dialect, layers: Container[str]) -> tuple[str, str]:
    """Return (the ending in this dialect, "") or ("", the reason why there is none)."""
    if key.part == "":
        return "", "an unknown ending, which has no counterpart in another format"
    if key.unresolved and not dialect.flat:
        return "", NO_NAME
    is_bias = key.part == ".diff_b" or key.part in BIASES_OF_B
    if dialect.prefix != "diffusion_model." and not dialect.flat:
        if is_bias and key.layer in layers and dialect.pair[1].endswith(".weight"):
            return dialect.pair[1].removesuffix(".weight") + ".bias", ""
        return "", "the loaders of this format read factors only"
    if key.bare and dialect.flat:
        return "", "the loaders of this format know the names of layers only"
    if is_bias:
        return ".diff_b", ""
    if dialect.flat and not key.clip and not is_known(key.layer):
        return "", "the loaders of this format do not know the name"
    return key.part, ""
