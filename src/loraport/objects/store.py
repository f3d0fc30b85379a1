"""Whole objects under names, wherever they lie: names encoded, failures that pass asked again, others in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from loraport.errors import InputError, LoraportError, OutputError, UnreadableError
from loraport.lazy_property import lazy_property
from loraport.objects.backend import Backend
from loraport.objects.folder import Folder
from loraport.objects.object_names import decoded, encoded, encoded_folder
from loraport.objects.patience import Patience
from loraport.objects.transient import causes, http_status, is_full, passes

_Answer = TypeVar("_Answer")
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""An object of this name is not there, though a folder of it may be, or one of a name above it."""


class MissingObjectError(UnreadableError):
    """There is no object of this name."""


@dataclass(frozen=True)
class Facts:
    """What an object is."""

    size: int
    version: str
    """Differs when it was written anew."""
    is_folder: bool = False


@dataclass(frozen=True)
class ObjectStore:
    """A place of whole objects: a reader sees all of an object or none of it, however a writer ended.

    Reading raises UnreadableError (MissingObjectError where there is no such object), writing OutputError; where the
    failure was one that passes, after the store's patience is over.
    """

    backend: Backend
    patience: Patience = field(default_factory=Patience)
    as_they_are: bool = False
    """Whether names are those that another program gave, and are not encoded."""

    @property
    def url(self) -> str:
        """What a user calls the store."""
        return self.backend.url

    @property
    def folder(self) -> Path | None:
        """The plain folder that the objects lie in, each as a file of its encoded name; None for other stores."""
        return self.backend.path if isinstance(self.backend, Folder) else None

    @lazy_property
    def atomic_create(self) -> bool:
        """Whether of several `create` of one name at the same time exactly one succeeds; else two may."""
        return self._asked(self.backend.creates_atomically, self.url, "be written", OutputError)

    def read(self, name: str) -> bytes:
        """Return an object's bytes."""
        return self._read(name, partial(self.backend.read, self._coded(name)))

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to before `stop`; fewer where the object ends before."""
        if not 0 <= start < stop:
            return b""
        return self._read(name, partial(self.backend.read, self._coded(name), start, stop))

    def write(self, name: str, data: bytes) -> None:
        """Write an object, whole or not at all; one that was there is replaced, and the last writer wins."""
        self._asked(partial(self.backend.write, self._coded(name), data), self._at(name), "be written", OutputError)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object if there is none of this name, and return whether it was written.

        The data should say whose it is: after an answer that was lost, the object there counts as ours where its
        bytes are ours.
        """
        coded, lost = self._coded(name), False

        def create() -> bool:
            nonlocal lost
            try:
                return self.backend.create(coded, data) or (lost and self._holds(coded, data))
            except Exception as error:
                lost = lost or passes(error)
                raise

        return self._asked(create, self._at(name), "be written", OutputError)

    def names(self, prefix: str = "") -> list[str]:
        """Return the names that begin with a text, in order.

        The store lists what begins with the text up to its last `/`: end a prefix with it where there is much beside.
        Only names that this class writes are listed.
        """
        where = self._at(prefix) if prefix else self.url
        found = self._asked(partial(self.backend.names, encoded_folder(prefix)), where, "be listed", UnreadableError)
        names = ((coded, decoded(coded)) for coded in found)
        return sorted(name for coded, name in names if name.startswith(prefix) and _is_ours(coded, name))

    def size(self, name: str) -> int:
        """Return an object's bytes, counted."""
        return self._read(name, partial(self.backend.size, self._coded(name)))

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens where there is none."""

        coded = self._coded(name)

        def delete() -> None:
            with suppress(*_ABSENT):
                self.backend.delete(coded)

        self._asked(delete, self._at(name), "be removed", OutputError)

    def facts(self, name: str) -> Facts:
        """Return what an object is; of a name that objects lie below, that it is a folder."""
        return self._read(name, lambda: Facts(*self.backend.facts(self._coded(name))))

    def entries(self) -> list[str]:
        """Return the names of objects and of folders that lie directly in the store, as they are."""
        return sorted(self._asked(self.backend.entries, self.url, "be listed", UnreadableError))

    def _coded(self, name: str) -> str:
        return name if self.as_they_are else encoded(name)

    def _at(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _holds(self, coded: str, data: bytes) -> bool:
        try:
            return self.backend.read(coded) == data
        except FileNotFoundError:
            return False

    def _read(self, name: str, ask: Callable[[], _Answer]) -> _Answer:
        return self._asked(ask, self._at(name), "be read", UnreadableError)

    def _asked(
        self, ask: Callable[[], _Answer], where: str, what: str, kind: Callable[[str], LoraportError]
    ) -> _Answer:
        """Return an answer, asked for again while failures pass. Raises `kind`, and MissingObjectError."""
        times, waited = 0, 0.0
        pauses = None
        while True:
            times += 1
            try:
                return ask()
            except Exception as error:  # clients raise their own kinds
                if kind is not OutputError and any(isinstance(one, _ABSENT) for one in causes(error)):
                    raise MissingObjectError(f"{where} is not there") from error
                why, answer = f"{where} cannot {what}: {_reason(error)}", error
            if not passes(answer):
                raise kind(f"{why}{_advice(answer)}") from answer
            pauses = self.patience.pauses(why) if pauses is None else pauses
            if (now := next(pauses, None)) is None:
                asked = f" ({times} times in {waited:.0f} seconds)" if times > 1 else ""
                raise kind(f"{why}{asked}; {_later(answer)}") from answer
            waited = now


def _is_ours(coded: str, name: str) -> bool:
    try:
        return encoded(name) == coded
    except InputError:
        return False


def _reason(error: BaseException) -> str:
    """Return what went wrong in the words of the innermost error that has any, on one line."""
    for one in reversed([*causes(error)]):
        text = (one.strerror if isinstance(one, OSError) and one.strerror else str(one)) or type(one).__name__
        status = http_status(one)
        said = " ".join(text.split())[:200]
        if said:
            return f"{said} (HTTP {status})" if status is not None and str(status) not in said else said
    return type(error).__name__


def _advice(error: BaseException) -> str:
    status = next((found for one in causes(error) if (found := http_status(one)) is not None), None)
    if status in (401, 403) or any(isinstance(one, PermissionError) for one in causes(error)):
        return "; check that your credentials may do this there"
    return ""


def _later(error: BaseException) -> str:
    if is_full(error):
        return "make room, and start again; what is done is kept"
    return "start again when it answers; what is done is kept"
