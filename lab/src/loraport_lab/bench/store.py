"""Finished parts of a lab run on disk: a killed run goes on where it was, a second run repeats nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from loraport.errors import FileFormatError
from loraport.files.formats.safetensors_read import read_all
from loraport.files.formats.safetensors_write import Pending, save_safetensors


@dataclass(frozen=True)
class StoredPart:
    """Tensors and plain facts about them."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Store:
    """A folder of parts. What they were made from is in their names: other inputs or another program, other files."""

    folder: Path
    made_from: str

    def get(self, place: str, key: str) -> StoredPart | None:
        """Return what is stored under this place and key, or None; a damaged file counts as none."""
        path = self._path(place, key)
        if not path.is_file():
            return None
        try:
            tensors, metadata = read_all(path)
            return StoredPart(tensors, json.loads(metadata["facts"]))
        except (FileFormatError, KeyError, ValueError):
            return None

    def put(self, place: str, key: str, kept: StoredPart) -> None:
        """Keep it, whole or not at all."""
        path = self._path(place, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        pending = {name: Pending.of(tensor.contiguous()) for name, tensor in kept.tensors.items()}
        save_safetensors(path, pending, {"facts": json.dumps(kept.facts), "key": key})

    def _path(self, place: str, key: str) -> Path:
        digest = hashlib.sha256(f"{self.made_from}\n{place}\n{key}".encode()).hexdigest()
        return self.folder / place / f"{digest[:20]}.safetensors"
