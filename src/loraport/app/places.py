"""Which LoRAs and models the page's visitors may name: in shared folders, by preset, by Hub id, `toy:` and the like.

A name is never taken as a path outside these folders, whatever it says: not by `..`, not by a link, not by a number of
plus signs. What lies outside and what does not exist is refused in the same words, so that nobody learns which it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from loraport.errors import InputError
from loraport.files.accelerator_names import files_of, is_named
from loraport.files.models.hub import looks_like_hub_id
from loraport.files.models.named_places import known_place, named_entries
from loraport.files.models.presets import PRESETS
from loraport.files.models.shards import WEIGHTS
from loraport.files.strength import split_strength
from loraport.inputs.accelerator import SOURCE, split_target

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LISTED = 500
"""Files and folders that the page offers of its shared folders."""
_LOOKED_AT = 20_000
"""Entries of shared folders that are looked at for that."""


@dataclass(frozen=True)
class Places:
    """The folders that visitors may read models and LoRAs from; real paths."""

    folders: tuple[Path, ...] = ()

    @classmethod
    def at(cls, folders: tuple[str, ...]) -> Places:
        """Return the places below these folders. Raises InputError for one that is not a folder."""
        real = []
        for folder in folders:
            path = Path(os.path.expanduser(folder))
            if not path.is_dir():
                raise InputError(f"--share-models {folder}: that is no folder; name one that holds models")
            real.append(path.resolve())
        return cls(tuple(dict.fromkeys(real)))

    def find(self, text: str, what: str) -> str:
        """Return the place that a name means, as every command takes it. Raises InputError for any other name."""
        name = text.strip()
        if not name:
            raise InputError(f"the {what} is missing: {_HOW}")
        if _CONTROL.search(name) or len(name) > 1000:
            raise InputError(f"the {what} is no name: {_HOW}")
        prefix, colon, _ = name.partition(":")
        if colon and (prefix in named_entries() or prefix == "toy"):
            known_place(name)  # says which names there are
            return name
        if name in PRESETS:
            return name
        if (found := self._shared(name)) is not None:
            return str(found)
        if looks_like_hub_id(name) and ".." not in re.split(r"[/:@]", name):
            return name
        where = f"{len(self.folders)} shared folders" if len(self.folders) > 1 else "shared folder"
        shared = f"the page's {where}" if self.folders else "a folder that this page shares (it shares none)"
        raise InputError(
            f"the {what} {name!r} is neither in {shared} nor a name from the list nor a Hub id (org/repo); the page "
            "reads no other files: whoever started it can share a folder with --share-models"
        )

    def target(self, text: str) -> str:
        """Return a target likewise, which may be MODEL+ACCELERATOR[*STRENGTH], MODEL the word source.

        An accelerator may be a preset, too. Raises InputError for every other name.
        """
        name = text.strip()
        if "+" not in name or self._shared(name) is not None:
            return self.find(name, "target")
        model, *beside = name.split("+")
        pieces = [SOURCE if model == SOURCE else self.find(model, "target")]
        for piece in beside:
            place, star, strength = piece.rpartition("*") if "*" in piece else (piece, "", "")
            if self._shared(place) is None and is_named(piece):
                pieces += files_of(piece, model)
                continue
            found = self.find(place, "accelerator")
            pieces.append(f"{found}{star}{strength}")
            split_strength(pieces[-1])
        whole = "+".join(pieces)
        if split_target(whole) != tuple(pieces):  # plus signs in the names of folders: it must mean what was checked
            raise InputError(f"the target {name!r} can be read in more than one way; rename what has a plus sign in it")
        return whole

    def _shared(self, name: str) -> Path | None:
        """Return the file or folder of this name in a shared folder, with all that it links to; None if there is none.

        Raises InputError for a folder in which a link leads outside.
        """
        for folder in self.folders:
            real = _real(folder / name)
            if real is not None and self._holds(real):
                self._check_links(real)
                return real
        return None

    def _holds(self, real: Path | None) -> bool:
        return real is not None and any(real == folder or folder in real.parents for folder in self.folders)

    def _check_links(self, real: Path) -> None:
        for path in _below(real) if real.is_dir() else ():
            if path.is_symlink() and not self._holds(_real(path)):
                raise InputError(
                    f"{path.name} in {real.name} is a link that leads out of the shared folders; share that place, too"
                )

    def listed(self) -> list[str]:
        """Return names that the page offers: files of weights and folders of pipelines or adapters, by their path."""
        found: list[str] = []
        for folder in self.folders:
            for path in islice(_below(folder), _LOOKED_AT):
                is_model = path.suffix.lower() in WEIGHTS if path.is_file() else _is_model_folder(path)
                if is_model and self._holds(_real(path)):
                    found.append(path.relative_to(folder).as_posix())
                if len(found) == _LISTED:
                    return sorted(found)
        return sorted(found)


_HOW = "choose one from the list, or name a file in a shared folder, a Hub id (org/repo) or a preset"


def _below(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder, links themselves and not what lies behind them."""
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted((*folders, *files)):
            yield Path(where, name)


def _real(path: Path) -> Path | None:
    """Return where a path leads; None where it leads nowhere: not there, not to be entered, links in a circle."""
    try:
        return path.resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None


def _is_model_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in ("model_index.json", "adapter_config.json"))
