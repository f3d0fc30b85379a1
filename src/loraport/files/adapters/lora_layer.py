"""One layer of a LoRA: its update, held in memory or read when it is asked for, and all else that is known of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loraport.errors import InputError
from loraport.files.adapters.outline import Outline
from loraport.files.names.families import RowSlice

if TYPE_CHECKING:
    from loraport.files.adapters.updates import LayerUpdate


@dataclass(frozen=True)
class LoraLayer:
    """One layer of a LoRA as it was read."""

    read: Callable[[], LayerUpdate] = field(repr=False)
    """Returns the update, from memory or from the file."""
    keys: tuple[str, ...]
    """The keys of the file that it was read from."""
    scale: float
    """alpha / rank and the like, which is folded into the update."""
    scale_source: str
    """Where the scale came from, for people."""
    kernel: tuple[int, ...] | None = None
    """Of a convolution, the sizes behind (out, in); None where the file does not tell."""
    resolved: bool = True
    """Whether its name is canonical; one known by a flattened name only is looked up among a checkpoint's."""
    known: Outline | None = None
    """What the header says of the update, where it was not read."""
    settled: str = ""
    """Why it is already what it should become, so that nothing is left to transfer; empty for others."""

    @property
    def update(self) -> LayerUpdate:
        """What it adds to the weight, in float32 with the scale folded in: factors of a LoRA, or another adapter's."""
        return self.read()

    @property
    def outline(self) -> Outline:
        """Kind, size and rank of the update, which is read for them only where the header does not tell them."""
        if self.known is not None:
            return self.known
        from loraport.files.adapters.updates import outline_of  # loads PyTorch

        return outline_of(self.update)

    def divided(self, rows: RowSlice, where: Path) -> LoraLayer:
        """Return one layer out of a module that holds several. Raises MismatchError for what cannot be divided so."""
        if self.known is None:
            return self.with_update(_share(self, rows, where))
        return replace(self, known=self.known.divided(rows, where), read=partial(_share, self, rows, where))

    def with_update(self, update: LayerUpdate) -> LoraLayer:
        """Return the layer with another update, held in memory."""
        return replace(self, read=lambda: update, known=None)


def _share(module: LoraLayer, rows: RowSlice, where: Path) -> LayerUpdate:
    from loraport.files.adapters.updates import rows_of_update  # loads PyTorch

    return rows_of_update(module.update, rows, where)


class Updates(Mapping[str, "LayerUpdate"]):
    """Layer -> its update, read when it is asked for where the layer is not held in memory."""

    def __init__(self, layers: Mapping[str, LoraLayer]) -> None:
        self._layers = layers

    def __getitem__(self, name: str) -> LayerUpdate:
        return self._layers[name].update

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __contains__(self, name: object) -> bool:
        return name in self._layers


class LazyUpdates:
    """Reads updates again whenever they are asked for, so that many LoRAs at once take little memory.

    Only the one that was asked for last is kept; several threads may ask. A file that changed in between raises
    InputError.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._states = {path: _state(path) for path in paths}
        self._last: tuple[Callable[[], LoraLayer], LayerUpdate] | None = None

    def layer(self, make: Callable[[], LoraLayer]) -> LoraLayer:
        """Return the layer without its update. It is read once now: a broken file is refused before any work."""
        return replace(make(), read=partial(self._again, make))

    def _again(self, make: Callable[[], LoraLayer]) -> LayerUpdate:
        last = self._last  # looked at once: another thread may ask for another layer meanwhile
        if last is None or last[0] is not make:
            for path, state in self._states.items():
                if _state(path) != state:
                    raise InputError(f"{path} was changed while it was in use; start again")
            self._last = last = (make, make().update)
        return last[1]


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return status.st_size, status.st_mtime_ns
