"""Tensors in memory in the place of a file: checked as a file's header is, and read as a file's tensors are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraport.errors import FileFormatError
from loraport.files.formats.safetensors_read import KINDS, NOT_READ, StoredTensor, check_name, kind_of

if TYPE_CHECKING:
    from torch import Tensor


class InMemory(str):
    """Tensors by key where a place on the disk would stand. As a text it is the name that messages use.

    Two of them are equal only if they are the same one, whatever they are called.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    """What a file would have in its header."""
    config: Mapping[str, Any] | None
    """What PEFT keeps beside an adapter."""

    def __new__(
        cls,
        name: str,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> InMemory:
        """Return the place of these tensors under a name for people."""
        place = super().__new__(cls, name)
        place.tensors, place.metadata, place.config = tensors, metadata or {}, config
        return place

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)

    def __deepcopy__(self, memo: object) -> InMemory:
        return self  # a configuration is copied into reports, and tensors are not


def stored_in_memory(place: InMemory) -> dict[str, StoredTensor]:
    """Return the tensors as a file's would be described. Raises FileFormatError for what is no plain tensor."""
    path = Path(place)
    for key, tensor in place.tensors.items():
        if not isinstance(key, str):
            raise FileFormatError(f"{place}: the key {key!r} is a {type(key).__name__}, and keys are texts")
        check_name(path, key)
        if reason := _refusal(tensor):
            raise FileFormatError(f"{place}: {key!r} {reason}")
    return {
        key: StoredTensor(key, path, kind_of(tensor.dtype), tuple(tensor.shape), partial(_fresh, tensor))
        for key, tensor in place.tensors.items()
    }


def content_digest(tensors: Mapping[str, StoredTensor]) -> str:
    """Return the SHA-256 of keys, dtypes, shapes and values, in the order of the keys."""
    import torch

    digest = hashlib.sha256()
    for key, stored in sorted(tensors.items()):
        digest.update(f"{key} {stored.kind} {stored.shape}\n".encode(errors="surrogatepass"))
        digest.update(stored.read().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _refusal(tensor: object) -> str:
    """Return why a value cannot be read as a tensor of a file; "" if it can."""
    import torch

    kind = type(tensor)
    if not isinstance(tensor, torch.Tensor):
        return f"is a {kind.__module__}.{kind.__name__}, where a torch tensor belongs"
    if tensor.is_meta:
        return "is a tensor without values (on the device meta): load it first"
    plain = kind in (torch.Tensor, torch.nn.Parameter)
    if not plain or tensor.is_quantized or tensor.layout != torch.strided:
        name = f"tensor of layout {tensor.layout}" if plain else kind.__name__
        return f"is a {name}, not a plain tensor of values: dequantise it, or give the file of the bf16 weights"
    return "" if kind_of(tensor.dtype) in KINDS.values() else f"is of {tensor.dtype}; {NOT_READ}"


def _fresh(tensor: Tensor) -> Tensor:
    """Return a copy on the processor that its reader may write over."""
    return tensor.detach().to("cpu", copy=True).contiguous()
