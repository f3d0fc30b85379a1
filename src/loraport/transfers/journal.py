"""Finished layers of an unfinished run, in a folder beside its output: an interrupted run resumes with what is missing.

The folder belongs to one run at a time. It is removed when the run succeeds; a run that fails, is refused or is killed
leaves what it has finished to the next start.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from loraport.digests import text_digest
from loraport.errors import LoraportError, OutputError
from loraport.files.disk.atomic import TEMPORARY
from loraport.files.disk.ownership import Lock
from loraport.spectral.low_rank import LowRank
from loraport.store.behind import WriteBehind, start_to_host
from loraport.store.keyed import Entry, KeyedStore
from loraport.transfers.results import LayerResult

P = TypeVar("P", bound="PartialFolder")
_LAYER = re.compile(r"[0-9a-f]{16}\.safetensors")
_LOCK = "lock"
_OURS = re.compile(rf"{_LAYER.pattern}|{_LOCK}|{TEMPORARY.pattern}")


class PartialFolder:
    """The folder `OUT.partial` of one run: a file a layer, each marked with the run that it belongs to."""

    def __init__(self, output: Path, run: str) -> None:
        """Look at the folder; `run` is a text that differs for different work.

        Raises OutputError if the folder exists and holds what no run wrote.
        """
        self.output = output
        self.folder = output.with_name(f"{output.name}.partial")
        # Entries are sealed with the run and named by the layer alone, unlike a cache's: a run with other settings
        # writes over what an earlier one left, and a folder never holds a layer twice.
        seal = {"run": text_digest(run)}
        self._store = KeyedStore(self.folder, lambda key, tensors: seal, flat=True)
        self.keep_after_success = False
        """Whether the finished layers stay for the next start even if no error comes."""
        self._lock = Lock(self.folder / _LOCK)
        try:
            names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be read: {error.strerror or error}; move it away") from error
        for name in names:
            if not _OURS.fullmatch(name):
                raise OutputError(f"{self.folder} holds {name!r}, which no transfer wrote; move it away")

    def __enter__(self: P) -> P:
        """Make the folder and become its owner. Raises OutputError if it cannot be made, or another run has it."""
        try:
            self._lock.take(str(self.output))
        except OSError as error:
            why = error.strerror or error
            raise OutputError(f"{self.output} cannot be written: {why}; choose another place") from error
        except BaseException:  # another run has it, which keeps the folder; or a signal
            self._lock.release()
            self._remove_folder()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        """Remove the folder after success; else leave the finished layers for the next start, and say so."""
        try:
            self._leave(kind, error)
        except BaseException:  # a signal in the middle of it: do it once more; another signal ends the program
            self._leave(kind, error)
            raise

    def _leave(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        finished = sum(bool(_LAYER.fullmatch(path.name)) for path in self._files())
        if (kind is None and not self.keep_after_success) or not finished:
            self.remove()
        elif isinstance(error, LoraportError) and ".partial" not in str(error):
            error.args = (
                f"{error}; {finished} finished layers are kept in {self.folder}, and the same command resumes with the "
                "others",
            )
        self._lock.release()

    def remove(self) -> None:
        """Remove the folder: all of it has been used. A file that cannot be removed does not fail a finished run."""
        for path in self._files():
            if path.name != _LOCK:
                with contextlib.suppress(OSError):
                    path.unlink()
        self._lock.release()
        self._remove_folder()

    def _remove_folder(self) -> None:
        with contextlib.suppress(OSError):  # not empty: another run has taken it meanwhile
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        try:
            return list(self.folder.iterdir())
        except OSError:
            return []

    def put(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the tensors and facts of a layer, whole or not at all. Raises OutputError."""
        self._store.put(_key(name), Entry(tensors, facts))

    def get(self, name: str) -> Entry | None:
        """Return what this run wrote of a layer before, or None; what is damaged counts as absent."""
        return self._store.get(_key(name))


def _key(name: str) -> str:
    return text_digest(name)[:16]


class LayerStore:
    """The finished layers of a transfer, rounded to the output's dtype."""

    dtype: torch.dtype
    where: str
    """What messages call it."""

    def put(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep the tensors and facts of a layer."""
        raise NotImplementedError

    def get(self, name: str) -> Entry | None:
        """Return what was kept of a layer, or None."""
        raise NotImplementedError

    def _when_copied(self, name: str, put: Callable[[], None]) -> None:
        """Keep a layer now, or let it be kept behind the work."""
        put()

    def keep(self, written: LowRank | Tensor, result: LayerResult) -> None:
        """Keep a finished layer, perhaps behind the work. Raises OutputError, for this layer or an earlier one."""
        tensors = {"B": written.B, "A": written.A} if isinstance(written, LowRank) else {"D": written}
        lost = written.lost_energy if isinstance(written, LowRank) else 0.0
        copied = start_to_host({name: tensor.to(self.dtype) for name, tensor in tensors.items()})
        facts = {"layer": asdict(result), "lost_energy": lost}
        self._when_copied(result.name, lambda: self.put(result.name, copied(), facts))

    def recall(self, name: str) -> tuple[LowRank | Tensor, LayerResult] | None:
        """Return a layer that this run finished, or None."""
        entry = self.get(name)
        if entry is None:
            return None
        tensors = entry.tensors
        try:
            fields = entry.facts["layer"]
            result = LayerResult(**{**fields, "shape": tuple(fields["shape"])})
            if "D" in tensors:
                return tensors["D"], result
            return LowRank(tensors["B"], tensors["A"], float(entry.facts["lost_energy"])), result
        except (KeyError, ValueError, TypeError):
            return None  # damaged or of another version: the layer is done again

    def finished(self, name: str) -> LowRank | Tensor:
        """Return a layer that this run has finished. Raises OutputError if it is not there any more."""
        earlier = self.recall(name)
        if earlier is None:
            raise OutputError(
                f"{self.where} has lost {name} since it was finished: another program changed the folder; start again"
            )
        return earlier[0]


class Journal(PartialFolder, LayerStore):
    """Finished layers in a folder beside the output, from where an interrupted run goes on."""

    def __init__(self, output: Path, run: str, dtype: torch.dtype) -> None:
        super().__init__(output, run)
        self.dtype, self.where = dtype, str(self.folder)
        self._behind = WriteBehind()

    def _when_copied(self, name: str, put: Callable[[], None]) -> None:
        self._behind.submit(name, put)

    def get(self, name: str) -> Entry | None:
        """Return what this run wrote of a layer, now or before, or None."""
        self._behind.finish(name)
        return super().get(name)

    def _leave(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        """Let the last writes end first: they are finished layers, too."""
        if error is None:
            self._behind.finish()
        else:
            with contextlib.suppress(Exception):  # the error at hand is the one to tell
                self._behind.finish()
        super()._leave(kind, error)

    def remove(self) -> None:
        """Remove the folder, when nothing is being written into it any more."""
        self._behind.finish()
        super().remove()


class MemoryJournal(LayerStore):
    """Finished layers in memory, for a result that stays there: nothing is left of an interrupted run."""

    where = "the memory"

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._entries: dict[str, Entry] = {}

    def put(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep the tensors and facts of a layer."""
        self._entries[name] = Entry(tensors, facts)

    def get(self, name: str) -> Entry | None:
        """Return what was kept of a layer, or None."""
        return self._entries.get(name)
