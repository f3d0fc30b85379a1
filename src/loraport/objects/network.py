"""Objects in a store on the network, or in any other file system that fsspec knows."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from typing import Any

from loraport.objects.object_names import OURS
from loraport.objects.transient import causes, http_status

_WHOLE = {"s3", "s3a", "gs", "gcs", "hf", "memory", "az", "abfs", "abfss"}
"""Stores of objects, where nobody sees an object before all of it is there; in other file systems it is moved."""
_CONDITIONAL = {"s3", "s3a", "gs", "gcs"}
"""Stores of which the client can ask for a write on condition; whether this one keeps to it is tried."""

_VERSIONS = (
    "size",
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "VersionId",
    "LastModified",
    "mtime",
    "created",
    "blob_id",
)
"""What clients tell of an object that changes with its content."""
_one_at_a_time = threading.Lock()
"""For creating in the memory of this process, where no other process can come between."""


@dataclass(frozen=True)
class FsspecFolder:
    """A backend on a file system of fsspec."""

    system: Any
    """An instance of fsspec's AbstractFileSystem, without caches of listings."""
    scheme: str
    root: str
    """The place of the objects in the file system's own words, such as `bucket/run`."""
    url: str

    def creates_atomically(self) -> bool:
        """Return whether a second write of the same object is refused when that was asked for; tries it."""
        if self.scheme == "memory":
            return True
        if self.scheme not in _CONDITIONAL:
            return False
        trial = self._path(f"{OURS}trial-{secrets.token_hex(8)}")
        try:
            self.system.pipe_file(trial, b"1", mode="create")
            try:
                self.system.pipe_file(trial, b"2", mode="create")
            except FileExistsError:
                return True
            except OSError as error:
                if _status(error) == 412:
                    return True
                raise
            return False
        finally:
            self.system.rm_file(trial)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Return an object's bytes, or those of a range. Raises what the client raises."""
        if start is None:
            return bytes(self.system.cat_file(self._path(name)))
        try:
            return bytes(self.system.cat_file(self._path(name), start=start, end=stop))
        except OSError as error:
            if _status(error) == 416:  # the range begins behind the end
                return b""
            raise

    def write(self, name: str, data: bytes) -> None:
        """Write an object. Raises what the client raises."""
        if self.scheme in _WHOLE:
            self.system.pipe_file(self._path(name), data)
        else:
            self._move_there(name, data)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object that is not there. Raises what the client raises."""
        if self.scheme in _CONDITIONAL:
            try:
                self.system.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if _status(error) == 412:
                    return False
                raise
            return True
        with _one_at_a_time:
            if self.system.exists(self._path(name)):
                return False
            self.write(name, data)
            return True

    def names(self, prefix: str) -> list[str]:
        """Return the names of all objects in the folder that a prefix names, page by page. Raises as the client."""
        root = self._path(prefix).rstrip("/")
        try:
            found = self.system.find(root)
        except FileNotFoundError:
            return []
        inside = len(self.root.rstrip("/")) + 1
        names = (path[inside:] for path in found if path != root)
        return [name for name in names if not any(word.startswith(OURS) for word in name.split("/"))]

    def size(self, name: str) -> int:
        """Return an object's bytes. Raises what the client raises."""
        facts = self.system.info(self._path(name))
        if facts["type"] != "file":
            raise FileNotFoundError(name)
        return int(facts["size"])

    def facts(self, name: str) -> tuple[int, str, bool]:
        """Return size, version, and whether it is a folder. Raises what the client raises."""
        facts = self.system.info(self._path(name))
        version = " ".join(f"{key} {facts[key]}" for key in _VERSIONS if facts.get(key) is not None)
        return int(facts.get("size") or 0), version, facts["type"] != "file"

    def entries(self) -> list[str]:
        """Return the names of what lies directly in the place. Raises what the client raises."""
        found = self.system.ls(self.root, detail=False)
        names = (str(path).rstrip("/").rpartition("/")[2] for path in found if str(path).rstrip("/") != self.root)
        return [name for name in names if not name.startswith(OURS)]

    def delete(self, name: str) -> None:
        """Remove an object. Raises what the client raises."""
        self.system.rm_file(self._path(name))

    def _move_there(self, name: str, data: bytes) -> None:
        """Write beside, then move: what a kill leaves has a name that is no object's."""
        path = self._path(name)
        beside = self._path(f"{OURS}unfinished/{secrets.token_hex(8)}")
        self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.system.makedirs(beside.rpartition("/")[0], exist_ok=True)
        try:
            self.system.pipe_file(beside, data)
            self.system.mv(beside, path)
        except BaseException:
            if self.system.exists(beside):
                self.system.rm_file(beside)
            raise

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"


def _status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of a client: for 412 (there is one already) and 416 they have no class."""
    return next((status for one in causes(error) if (status := http_status(one)) is not None), None)
