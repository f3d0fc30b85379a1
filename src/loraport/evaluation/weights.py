"""Find the weights of instruments: in a folder that the user names, else in the Hub's cache; fetched when asked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraport.digests import text_digest
from loraport.errors import InputError, UnreadableError
from loraport.evaluation.metrics.metric import Instrument, Weights
from loraport.files.models.hub import cached_files, fetch_files

_ENDS = 1 << 20


@dataclass(frozen=True)
class Missing:
    """What the user has to fetch before a metric can be measured."""

    metrics: tuple[str, ...]
    what: str
    command: str

    def __str__(self) -> str:
        return f"{', '.join(self.metrics)} not measured: {self.what} missing; get it with: {self.command}"


def find_weights(instrument: Instrument, folder: Path | None) -> tuple[Path, ...] | None:
    """Return the folder of each of an instrument's weights; None where one of them is not here.

    In the named folder they lie as `ORG/NAME/FILE`, as `hf download ORG/NAME FILE --local-dir FOLDER/ORG/NAME` puts it.
    """
    found = [_place(weights, folder) for weights in instrument.weights]
    places = tuple(place for place in found if place is not None)
    return places if len(places) == len(found) else None


def fetch_weights(instrument: Instrument, folder: Path | None) -> tuple[Path, ...] | None:
    """Return the same, what is missing fetched into the Hub's cache; None for what lies elsewhere than on the Hub.

    Raises InputError where it cannot be had.
    """
    places: list[Path] = []
    for weights in instrument.weights:
        place = _place(weights, folder)
        if place is None and weights.address:
            return None
        places.append(place or _fetch(weights))
    return tuple(places)


def lacking(instrument: Instrument, folder: Path | None) -> list[Weights]:
    """Return the weights of an instrument that are not here."""
    return [weights for weights in instrument.weights if _place(weights, folder) is None]


def weights_digest(instrument: Instrument, places: Sequence[Path]) -> str:
    """Return what tells these weights from others under the same names: sizes, and how each file begins and ends.

    Raises UnreadableError.
    """
    lines = []
    for weights, place in zip(instrument.weights, places, strict=True):
        for file in weights.files:
            path = place / file.path
            try:
                with path.open("rb") as opened:
                    size, head = path.stat().st_size, opened.read(_ENDS)
                    opened.seek(max(0, size - _ENDS))
                    tail = opened.read(_ENDS)
            except OSError as error:
                raise UnreadableError(f"{path} cannot be read: {error.strerror or error}") from error
            lines.append(f"{weights.repo} {file.path} {size} {hashlib.sha256(head + tail).hexdigest()}")
    return text_digest(*lines) if lines else ""


def _place(weights: Weights, folder: Path | None) -> Path | None:
    names = [file.path for file in weights.files]
    if folder is not None and all((folder / weights.repo / name).is_file() for name in names):
        return folder / weights.repo
    if weights.address:
        return None
    return cached_files(weights.repo, weights.revision, names)


def _fetch(weights: Weights) -> Path:
    return fetch_files(weights.repo, weights.revision, [file.path for file in weights.files])


def check_folder(folder: Path | None) -> None:
    """Raise InputError for a folder of weights that is not there."""
    if folder is not None and not folder.is_dir():
        raise InputError(f"--weights {folder} is no folder; name the one that holds ORG/NAME/FILE of each network")
