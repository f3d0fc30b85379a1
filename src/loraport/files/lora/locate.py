"""Find and open a LoRA on disk: a file, a set of shards, or a folder with weights and perhaps a configuration."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from loraport.errors import FileFormatError, InputError
from loraport.files.adapters.peft_fields import CONFIG_NAME, WEIGHTS_NAME
from loraport.files.disk.identity import FileIdentity
from loraport.files.disk.user_paths import check_input, expand_home
from loraport.files.formats.in_memory import InMemory, content_digest
from loraport.files.formats.quantized import refuse_scaled
from loraport.files.formats.safetensors_read import StoredTensor
from loraport.files.lora.alpha import BASE_MODEL, AdapterConfig, adapter_config, parse_json_object
from loraport.files.models.locate import INDEX, is_weights, read_index
from loraport.files.models.model_files import ModelFiles, files_in_memory, read_files
from loraport.files.models.named_places import known_place
from loraport.files.models.shards import GGUF, PICKLES, SAFETENSORS, announced_shards
from loraport.files.names.dialects import PEFT_PREFIX, are_of_lora
from loraport.files.names.lookup import without_wrappers
from loraport.objects.open import is_url
from loraport.objects.url_path import path_of

if TYPE_CHECKING:
    from torch import Tensor

_OF_PEFT = (WEIGHTS_NAME, f"adapter_model{INDEX}", "adapter_model.bin")
"""What PEFT calls its weights, in the order in which they are taken."""


@dataclass(frozen=True)
class LoraFiles:
    """The opened files, PEFT's configuration where there is one, and the hash of all their bytes."""

    path: Path
    paths: tuple[Path, ...]
    """The files that hold tensors: one, or the shards of a set."""
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    config: AdapterConfig | None
    sha256: str
    beside: AdapterConfig | None = None
    """A configuration in the same folder that does not go with these keys, by PEFT's rules."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Numbers and texts that a pickle holds beside its tensors."""
    entry: str | None = None
    """The entry of a pickle that was taken."""
    other_entries: tuple[str, ...] = ()
    """The entries of the pickle that are LoRAs too, and were not."""


def open_lora(place: Path | str | Mapping[str, Tensor], entry: str | None = None) -> LoraFiles:
    """Open the files behind a path, a file or a folder with one LoRA, or behind a Hub id (a text only).

    Tensors in memory, by their keys, are as good as a file.

    `entry`: the one of several LoRAs in a pickle to take, if it has one of this name.
    Pickles are read weights only: code in them is never run.
    Raises InputError for what is missing or cannot be opened, FileFormatError for damaged files.
    """
    if isinstance(place, Mapping):
        place = InMemory("the LoRA in memory", place)
    if isinstance(place, InMemory):
        return _lora_in_memory(place)
    path = local_lora(place)
    try:
        weights = _weights_at(path)
        identities = {file: FileIdentity.at(file) for file in weights}
        files = _contents(weights, entry)
        tensors = files.tensors
        metadata = {name: text for header in files.headers for name, text in header.items()}
        refuse_scaled(tensors)
        config_file = weights[0].with_name(CONFIG_NAME)
        own = weights[0].name.startswith("adapter_model") or all(
            without_wrappers(key).startswith(PEFT_PREFIX) for key in tensors
        )
        config = _config_beside(config_file) if own else None
        digest = hashlib.sha256()
        for place, identity in identities.items():
            with identity.open(place) as file:
                _feed(digest, file)
        if config is not None:
            with config_file.open("rb") as config_bytes:
                _feed(digest, config_bytes)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if config is not None and config.base_model is not None:
        metadata = {BASE_MODEL: config.base_model, **metadata}
    beside = None if own else _foreign_config(config_file)
    return LoraFiles(
        path, weights, tensors, metadata, config, digest.hexdigest(), beside, files.fields, files.part, files.left
    )


def _lora_in_memory(place: InMemory) -> LoraFiles:
    """Return tensors in memory as a LoRA's file, hashed by their content. Raises FileFormatError as a file's would."""
    tensors = files_in_memory(place).tensors
    if not tensors:
        raise FileFormatError(f"{place} holds no tensors; give the LoRA's tensors by their keys")
    refuse_scaled(tensors)
    config = None if place.config is None else adapter_config(place.config, "the configuration given beside it")
    metadata = dict(place.metadata)
    if config is not None and config.base_model is not None:
        metadata = {BASE_MODEL: config.base_model, **metadata}
    return LoraFiles(Path(place), (), tensors, metadata, config, content_digest(tensors))


def is_adapter_folder(folder: Path) -> bool:
    """Return whether a folder is one adapter by its files' names: PEFT's, or the shards of a set and nothing else."""
    if any((folder / name).is_file() for name in (CONFIG_NAME, *_OF_PEFT)):
        return True
    try:
        return bool(_whole_set(folder)) or any(INDEX in name for name in os.listdir(folder))
    except OSError:  # said when it is opened
        return False


def lora_keys(place: Path | str) -> tuple[str, ...]:
    """Return the keys of a LoRA, from its header alone. Raises as `open_lora`."""
    if isinstance(place, InMemory):
        return tuple(place.tensors)
    path = local_lora(place)
    try:
        return tuple(_contents(_weights_at(path)).tensors)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def local_lora(place: Path | str) -> Path:
    """Return a path as it is, or the local copy of a Hub id that is not a path. Raises InputError as the Hub does."""
    from loraport.files.models.hub import fetch_lora, looks_like_hub_id

    place = known_place(place) if isinstance(place, str) else place
    path = path_of(place) if isinstance(place, str) and is_url(place) else expand_home(place)
    if isinstance(place, str) and not path.exists() and looks_like_hub_id(place):
        return fetch_lora(place)
    check_input(path)
    return path


def _weights_at(path: Path) -> tuple[Path, ...]:
    """Return the files of a local LoRA: one, or all the shards of a set."""
    if path.is_dir() and (whole := _whole_set(path)):
        return whole
    weights = _weights_in(path) if path.is_dir() else path
    if weights.name.endswith(INDEX):
        shards = sorted(set(read_index(weights).values()))
        if missing := [shard for shard in shards if not weights.with_name(shard).is_file()]:
            raise FileFormatError(f"{weights} names shards that are not there: {', '.join(missing[:5])}; get them")
        return tuple(weights.with_name(shard) for shard in shards)
    if not weights.is_file():
        raise InputError(f"{path} does not exist; give a LoRA's file, a PEFT folder or a Hub id")
    if others := [shard for shard in announced_shards(weights.name) if shard != weights.name]:
        index = next((file.name for file in sorted(weights.parent.glob(f"*{INDEX}"))), None)
        raise InputError(
            f"{weights} is one of {len(others) + 1} shards, a part of an adapter; give "
            + (f"{weights.with_name(index)} or " if index else f"it whole, with {', '.join(others[:5])} beside it, as ")
            + f"the folder {weights.parent}"
        )
    if weights.suffix.lower() == GGUF:
        raise FileFormatError(f"{weights}: LoRAs in GGUF files are not read; give the safetensors file")
    return (weights,)


def _whole_set(folder: Path) -> tuple[Path, ...]:
    """Return the shards of a set, where a folder holds nothing but all of them and no index."""
    names = sorted(entry.name for entry in folder.iterdir() if is_weights(entry.name) and entry.is_file())
    whole = set(announced_shards(names[0])) if names else set()
    return tuple(folder / name for name in names) if len(names) > 1 and whole == set(names) else ()


def _weights_in(folder: Path) -> Path:
    """Return a folder's weights: PEFT's, the index of the only set of shards, the only safetensors file or pickle."""
    for name in _OF_PEFT:
        if (folder / name).is_file():
            return folder / name
    names = sorted(entry.name for entry in folder.iterdir() if is_weights(entry.name) and entry.is_file())
    files = [name for name in names if name.endswith(SAFETENSORS)]
    indexes = [name for name in names if name.endswith(INDEX)]
    if len(indexes) == 1 and set(files) <= set(read_index(folder / indexes[0]).values()):
        return folder / indexes[0]
    files = files or [name for name in names if name.endswith(PICKLES)]
    if len(files) == 1:
        return folder / files[0]
    if files:
        raise InputError(f"{folder} holds {len(files)} files of weights; give the file: {', '.join(files)}")
    raise InputError(f"{folder} holds no weights, no .safetensors, .pt or .bin file; give a LoRA file or a PEFT folder")


def _contents(weights: tuple[Path, ...], entry: str | None = None) -> ModelFiles:
    """Read the tensors of all files and their headers; of a pickle that has an entry of this name, that one."""
    if entry is not None and weights[0].suffix.lower() in PICKLES:
        try:
            return read_files(weights, entry, False, are_of_lora)
        except InputError:  # it has no such entry: the name may be one of several LoRAs in a table
            return read_files(weights, None, False, are_of_lora)
    return read_files(weights, None, False, are_of_lora)


def _config_beside(config: Path) -> AdapterConfig | None:
    """Read PEFT's configuration, where there is one."""
    if not config.is_file():
        return None
    return adapter_config(parse_json_object(config.read_bytes(), str(config)), CONFIG_NAME)


def _foreign_config(config: Path) -> AdapterConfig | None:
    """Read it beside weights that are not PEFT's own; one that cannot be read does not concern them."""
    try:
        return _config_beside(config)
    except FileFormatError:
        return None


def _feed(digest: hashlib._Hash, file: BinaryIO | FileIO) -> None:
    while block := file.read(1 << 20):
        digest.update(block)
