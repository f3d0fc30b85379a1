"""Refuse files that are not LoRAs, and adapters that are not read, saying what they are instead.

Which adapters those are stands in `REFUSED` of `files.names.dialects`; which containers of codes, in
`files.formats.quantized`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from loraport.errors import FileFormatError
from loraport.files.names.dialects import ADDITIONS, WHOLE, LoraKey, refused_kind, says_lora


def refuse_unread(path: Path, keys: Iterable[LoraKey]) -> None:
    """Raise FileFormatError for the tensors of an adapter of a kind that is not read."""
    for key in keys:
        kind = None if key.text_encoder else refused_kind(key.key)
        if kind:
            raise FileFormatError(f"{path}: {key.key!r} holds {kind}, which this version does not read")


def refuse_without_layers(
    path: Path, keys: list[LoraKey], all_factors: list[LoraKey], dense: bool, diffs: bool
) -> None:
    """Raise FileFormatError where there is nothing to read, saying what the file is instead.

    `dense`: text encoders or full differences alone will do; `diffs`: full differences
    of matrices alone.
    """
    factors = any(not key.text_encoder for key in all_factors)
    if factors:
        return
    full = [key.key for key in keys if key.part in WHOLE and not key.text_encoder]
    if unread := [key.key for key in keys if key.part == "" and says_lora(key.key)]:
        raise FileFormatError(f"{path}: {unread[0]!r} looks like a LoRA's, but its spelling is not one that is read")
    if full and not all_factors:
        raise FileFormatError(f"{path} is a model checkpoint, not a LoRA: it holds whole weights such as {full[0]!r}")
    differences = [key.part for key in keys if key.part in ADDITIONS and not key.text_encoder]
    if (dense and (differences or all_factors)) or (diffs and differences):
        return
    if ".diff" in differences:
        raise FileFormatError(
            f"{path} holds full differences (.diff) and no LoRA factors: transfer --transfer-diffs moves those of "
            "matrices, convert --rank 64 makes factors of them, merge adds them as they are"
        )
    if all_factors:
        raise FileFormatError(
            f"{path} is a LoRA of text encoders alone (its first factor: {all_factors[0].key!r}); there is nothing to "
            "transfer: convert and merge take it"
        )
    if differences:
        raise FileFormatError(f"{path} holds {differences[0]} and the like only, which merge adds; nothing to transfer")
    shown = ", ".join(repr(key.key) for key in keys[:3]) or "none"
    raise FileFormatError(f"{path} is not a LoRA: none of its keys is a factor (its first keys: {shown})")
