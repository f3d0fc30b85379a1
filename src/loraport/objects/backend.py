"""What an object store asks of the place where its objects lie; errors are the system's or the client's own."""

from __future__ import annotations

from typing import Protocol


class Backend(Protocol):
    """A place of whole objects. Names are encoded, errors are raised as they come: `ObjectStore` does the rest."""

    @property
    def url(self) -> str:
        """What a user calls the place."""

    def creates_atomically(self) -> bool:
        """Return whether of several `create` of one name at the same time exactly one succeeds."""

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Return an object's bytes, or those of a range. Raises FileNotFoundError."""

    def write(self, name: str, data: bytes) -> None:
        """Write an object, whole or not at all; the last one wins."""

    def create(self, name: str, data: bytes) -> bool:
        """Write an object that is not there; return False, and change nothing, where it is."""

    def names(self, prefix: str) -> list[str]:
        """Return the names of all objects that begin with these characters, in any order."""

    def size(self, name: str) -> int:
        """Return an object's bytes. Raises FileNotFoundError."""

    def facts(self, name: str) -> tuple[int, str, bool]:
        """Return an object's bytes, a text that differs when it is written anew, and whether it is a folder instead.

        Raises FileNotFoundError.
        """

    def entries(self) -> list[str]:
        """Return the names of what lies directly in the place, folders too."""

    def delete(self, name: str) -> None:
        """Remove an object. Raises FileNotFoundError, or not, where it is not there."""
