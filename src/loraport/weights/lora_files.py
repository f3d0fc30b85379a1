"""Where a LoRA lies on disk: one safetensors file, or a folder with weights and perhaps a configuration."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from loraport.errors import FileFormatError, InputError
from loraport.weights.alpha import BASE_MODEL, AdapterConfig, adapter_config, parse_json_object
from loraport.weights.dialects import PEFT_PREFIX
from loraport.weights.names import without_wrappers
from loraport.weights.quantized import refuse_quantized
from loraport.weights.safetensors_files import SafetensorsFile, read_safetensors

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class LoraFiles:
    """The opened file, PEFT's configuration where there is one, and the hash of both files' bytes."""

    path: Path
    weights: SafetensorsFile
    config: AdapterConfig | None
    sha256: str
    beside: AdapterConfig | None = None
    """A configuration in the same folder that does not go with these keys, by PEFT's rules."""


def open_lora(place: Path | str) -> LoraFiles:
    """The files behind a path, a file or a folder with one safetensors file, or behind a Hub id (a text only).

    Raises InputError for what is missing or cannot be opened, FileFormatError for pickles and for damaged files.
    """
    path = local_lora(place)
    try:
        weights = _weights_at(path)
        contents = read_safetensors(weights)
        refuse_quantized(contents.tensors)
        digest = hashlib.sha256()
        with contents.identity.open(weights) as file:
            _feed(digest, file)
        own = weights.name == WEIGHTS_NAME or all(
            without_wrappers(key).startswith(PEFT_PREFIX) for key in contents.tensors
        )
        config = _config_beside(weights) if own else None
        if config is not None:
            with weights.with_name(CONFIG_NAME).open("rb") as file:
                _feed(digest, file)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if config is not None and config.base_model is not None:
        contents = replace(contents, metadata={BASE_MODEL: config.base_model, **contents.metadata})
    return LoraFiles(path, contents, config, digest.hexdigest(), None if own else _foreign_config(weights))


def lora_keys(place: Path | str) -> tuple[str, ...]:
    """The keys of a LoRA, from its header alone. Raises as `open_lora`."""
    path = local_lora(place)
    try:
        return tuple(read_safetensors(_weights_at(path)).tensors)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def local_lora(place: Path | str) -> Path:
    """A path as it is, the local copy of a Hub id that is no path here. Raises InputError as the Hub does."""
    from loraport.weights.hub import fetch_lora, looks_like_hub_id

    path = Path(place).expanduser()
    return fetch_lora(place) if isinstance(place, str) and not path.exists() and looks_like_hub_id(place) else path


def _weights_at(path: Path) -> Path:
    """The safetensors file of a local LoRA."""
    weights = _weights_in(path) if path.is_dir() else path
    if not weights.is_file():
        raise InputError(f"{path} does not exist; give a safetensors file, a PEFT folder or a Hub id")
    _refuse_pickle(weights)
    return weights


def _weights_in(folder: Path) -> Path:
    if (folder / WEIGHTS_NAME).is_file():
        return folder / WEIGHTS_NAME
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{folder} holds {len(found)} safetensors files; give the file: {', '.join(f.name for f in found)}"
        )
    pickles = sorted(file for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        _refuse_pickle(pickles[0])
    raise InputError(f"{folder} holds no safetensors file; give a LoRA file or a PEFT folder")


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(9)
    looks = start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[8:] != b"{")
    if looks or path.suffix in PICKLES:
        raise FileFormatError(
            f"{path} is a PyTorch pickle, which can run code when it is opened; convert it to safetensors"
        )


def _config_beside(weights: Path) -> AdapterConfig | None:
    """PEFT's configuration in the same folder."""
    config = weights.with_name(CONFIG_NAME)
    if not config.is_file():
        return None
    return adapter_config(parse_json_object(config.read_bytes(), str(config)), CONFIG_NAME)


def _foreign_config(weights: Path) -> AdapterConfig | None:
    """The same beside weights that are not PEFT's own; one that cannot be read does not concern them."""
    try:
        return _config_beside(weights)
    except FileFormatError:
        return None


def _feed(digest: hashlib._Hash, file: BinaryIO | FileIO) -> None:
    while block := file.read(1 << 20):
        digest.update(block)
