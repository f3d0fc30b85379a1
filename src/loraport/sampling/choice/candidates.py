"""Candidates by name or file, and calibrated adapters written as ordinary LoRA files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loraport.compute import TORCH_DTYPES
from loraport.errors import MismatchError, SettingsError
from loraport.files.adapters.product import Product
from loraport.files.adapters.updates import LayerUpdate, adapter_kind
from loraport.files.disk.free_space import check_writable
from loraport.files.disk.protect_inputs import protect_inputs
from loraport.files.disk.user_paths import expand_home
from loraport.files.lora.provenance import made_from
from loraport.files.lora.read import Lora, read_lora
from loraport.files.lora.write import WrittenLora, check_form, output_dialect, write_lora
from loraport.files.strength import split_strength
from loraport.methods.recipes import METHODS
from loraport.plain_json import json_text
from loraport.sampling.choice.guard import DIRECT
from loraport.sampling.hooks import scale_updates
from loraport.sampling.pair import Pair, Updates
from loraport.spectral.low_rank import LowRank

NONE = "none"


def read_adapter(
    place: str, pair: Pair, *, part: str | None = None
) -> tuple[Lora, dict[str, LowRank], tuple[str, ...]]:
    """Read a LoRA with its strength (`LORA*0.8`) as updates of the pair's layers, with notes on what was left out.

    `part`: which of several LoRAs in the file. Raises MismatchError where the model has none of its layers.
    """
    path, strength = split_strength(place)
    lora = read_lora(path, part=part)
    known = pair.layers()
    missing = sorted(set(lora.layers) - set(known))
    updates = {name: plain(name, update, place) for name, update in lora.updates.items() if name in known}
    if not updates:
        raise MismatchError(f"{place}: none of its {len(lora.layers)} layers is in the model; was it made for it?")
    notes = []
    if missing:
        notes.append(
            f"{place}: {len(missing)} layers are left out, the model has no linear layer {missing[0]}, for one"
        )
    if lora.extras:
        notes.append(
            f"{place}: {len(lora.extras)} keys beside the factors are left out, {sorted(lora.extras)[0]}, for one"
        )
    return lora, scale_updates(updates, strength), tuple(notes)


def plain(name: str, update: LayerUpdate, place: str) -> LowRank:
    """Return the factors of a layer's update. Raises MismatchError where it has none, as DoRAs and full differences."""
    if isinstance(update, Product):
        return update.low_rank()
    if not isinstance(update, LowRank):
        raise MismatchError(
            f"{place}: the update of {name} is a {adapter_kind(update)}, not a product of factors; what is sampled "
            "here is LoRA, LoHa and LoKr; write it as a LoRA first (loraport transfer --method direct --as lora)"
        )
    return update


def read_candidate(text: str, direct: Updates, pair: Pair) -> tuple[dict[str, LowRank], tuple[str, ...]]:
    """Return the updates that a candidate means (`none`, `direct`, `direct:1.15`, a LoRA on the target), and notes.

    Raises SettingsError for a strength that is not a number, and for another method, which has to be made first.
    """
    if text == NONE:
        return {}, ()
    if text == DIRECT or text.startswith(f"{DIRECT}:"):
        _, colon, number = text.partition(":")
        try:
            return scale_updates(direct, float(number) if colon else 1.0), ()
        except ValueError as error:
            raise SettingsError(f"{text!r}: {number!r} is not a valid strength; write direct:1.15") from error
    if text.partition(":")[0] in METHODS and not expand_home(text).exists():
        raise SettingsError(
            f"{text!r} is a method, and finished adapters are scored: let `loraport choose {text}` make it and score "
            f"it, or write it first (loraport transfer --method {text}) and give the file"
        )
    _, updates, notes = read_adapter(text, pair)
    return updates, notes


def check_place(output: str, lora: Lora, format: str, inputs: Iterable[str | None]) -> None:
    """Refuse, before any pass, an output that could not be written afterwards, or is an input. Raises OutputError."""
    path = expand_home(output)
    check_form(path, output_dialect(lora, format).folder)
    check_writable(path)
    protect_inputs(path, (lora.path, *inputs))


def write_calibrated(
    path: str, updates: Mapping[str, LowRank], lora: Lora, facts: Mapping[str, Any], *, dtype: str, format: str
) -> WrittenLora:
    """Write an adapter file with the updates, and in its metadata how they were fitted."""
    provenance = {
        **made_from(lora, "calibrated"),
        **{name: json_text(value, sort_keys=True) for name, value in facts.items()},
        "note": "fitted to the adapter's effect by sampling both models on random noise; made for this target only",
    }
    return write_lora(expand_home(path), updates, lora, format=format, dtype=TORCH_DTYPES[dtype], provenance=provenance)
