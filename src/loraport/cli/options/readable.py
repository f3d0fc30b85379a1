"""Refuse, before PyTorch is loaded, files that cannot be read and words that mean nothing, in milliseconds.

What is said here the commands would say too, two seconds later. What is not seen here (pickles, folders, models with an
accelerator, what lies on the Hub) is left to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def refuse_unreadable(loras: Iterable[str], models: Iterable[str | None]) -> None:
    """Raise InputError for a LoRA or a model that is missing, and for a file that is damaged or not what it should be.

    None stands for a model that was not given.
    """
    for place in loras:
        _refuse_lora(place)
    for model in models:
        if model is not None:
            _refuse_model(model)


def refuse_unknown(candidates: Iterable[str], others: Sequence[str] = ()) -> None:
    """Raise SettingsError for a candidate that is no method, none of the `others`, and no file that is there."""
    from loraport.inputs.recipes import check_method_or_file

    for candidate in candidates:
        check_method_or_file(candidate.strip(), others)


def _refuse_lora(place: str) -> None:
    from loraport.files.disk.user_paths import expand_home
    from loraport.files.lora.locate import local_lora, lora_keys
    from loraport.files.lora.refusals import refuse_unread, refuse_without_layers
    from loraport.files.models.hub import looks_like_hub_id
    from loraport.files.models.shards import PICKLES
    from loraport.files.names.dialects import VARIANTS, parse_key

    if expand_home(place).exists() or not looks_like_hub_id(place):
        path = local_lora(place)
        if not path.is_dir() and path.suffix.lower() not in PICKLES:
            keys = [parse_key(key) for key in lora_keys(path)]
            refuse_unread(path, keys)
            refuse_without_layers(path, keys, [key for key in keys if key.part in ("A", "B", *VARIANTS)], True, True)


def _refuse_model(place: str) -> None:
    from loraport.files.disk.user_paths import expand_home
    from loraport.files.formats.safetensors_read import read_safetensors
    from loraport.files.models.hub import looks_like_hub_id
    from loraport.files.models.presets import PRESETS, open_model
    from loraport.files.models.shards import SAFETENSORS
    from loraport.files.names.dialects import are_of_lora

    path = expand_home(place)
    elsewhere = place in PRESETS or place == "source" or "+" in place or looks_like_hub_id(place)
    if path.is_file() and path.suffix.lower() in SAFETENSORS:
        if are_of_lora(read_safetensors(path).tensors):
            open_model(place)  # says what it is instead
    elif not path.exists() and not elsewhere:
        open_model(place)  # says what could be given
