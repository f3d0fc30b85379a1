"""Updates that are read from their file when they are asked for: many LoRAs at once, flat memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from loraport.errors import InputError
from loraport.files.adapters.updates import LayerUpdate


class OnDemand(Mapping[str, LayerUpdate]):
    """Layer -> update. Each is read once now, so that a broken file is refused before any work, and not kept.

    The one that was asked for last is remembered; several threads may ask. Raises InputError where the file changes in
    between.
    """

    def __init__(self, paths: Sequence[Path], makers: Mapping[str, Callable[[], LayerUpdate]]) -> None:
        self._paths, self._makers = paths, makers
        self._states = [_state(path) for path in paths]
        self._last: tuple[str, LayerUpdate] | None = None
        for name in makers:
            self[name]
        self._last = None

    def __getitem__(self, name: str) -> LayerUpdate:
        found = self._last  # read once: another thread may ask for another layer meanwhile
        if found is None or found[0] != name:
            for path, state in zip(self._paths, self._states, strict=True):
                if _state(path) != state:
                    raise InputError(f"{path} was changed while it was in use; start again")
            self._last = found = (name, self._makers[name]())
        return found[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers


def _state(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return found.st_size, found.st_mtime_ns
