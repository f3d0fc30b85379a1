"""Outputs in the place of the results: in a folder files under the names that `transfer` gives them, else objects."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from loraport.files.adapters.peft_fields import WEIGHTS_NAME
from loraport.files.formats.safetensors_write import OWN_PREFIX
from loraport.files.lora.write import LoraContents
from loraport.objects.store import MissingObjectError, ObjectStore

_LONGEST_HEADER = 1 << 24


@dataclass(frozen=True)
class Outputs:
    """The results in a store, by the names of their jobs."""

    store: ObjectStore

    @property
    def folder(self) -> Path | None:
        """The folder that they lie in; None in an object store."""
        return self.store.folder

    def save(self, name: str, contents: LoraContents) -> dict[str, int]:
        """Write an output: into a folder as `transfer` does, elsewhere object by object, weights last.

        Returns what was written: name -> bytes.
        """
        if self.folder is not None:
            contents.save(self.folder / name)
            return {f"{name}{inner}": path.stat().st_size for inner, path in _files(self.folder / name)}
        with tempfile.TemporaryDirectory(prefix="loraport-") as folder:
            place = Path(folder) / Path(name).name
            contents.save(place)
            written = sorted(_files(place), key=lambda one: one[1].name == WEIGHTS_NAME)
            for inner, path in written:
                self.store.write(f"{name}{inner}", path.read_bytes())
            return {f"{name}{inner}": path.stat().st_size for inner, path in written}

    def have(self, name: str, size: int) -> bool:
        """Return whether there is a file or an object of this name and size."""
        try:
            if self.folder is not None:
                return (self.folder / name).stat().st_size == size
            return self.store.size(name) == size
        except (MissingObjectError, OSError):
            return False

    def lies(self, name: str) -> str:
        """Return what lies under an output's name: nothing (an empty text), `ours` or `theirs`."""
        if self.folder is not None and not os.path.lexists(self.folder / name):
            return ""
        for file in (name, f"{name}/{WEIGHTS_NAME}"):
            if (start := self._start(file)) is not None:
                return "ours" if f'"{OWN_PREFIX}target"'.encode() in start else "theirs"
        if self.folder is not None:
            place = self.folder / name
            return "" if place.is_dir() and not any(place.iterdir()) else "theirs"
        return "theirs" if self.store.names(f"{name}/") else ""

    def _start(self, file: str) -> bytes | None:
        """Return a file's header, as far as it is one; None where there is no such file."""
        try:
            if self.folder is None:
                length = int.from_bytes(self.store.read_range(file, 0, 8), "little")
                return self.store.read_range(file, 8, 8 + min(length, _LONGEST_HEADER))
            with (self.folder / file).open("rb") as opened:
                return opened.read(min(int.from_bytes(opened.read(8), "little"), _LONGEST_HEADER))
        except (MissingObjectError, OSError):
            return None


def _files(place: Path) -> list[tuple[str, Path]]:
    """Return the files of an output, each with what stands behind the output's name."""
    return [(f"/{path.name}", path) for path in sorted(place.iterdir())] if place.is_dir() else [("", place)]
