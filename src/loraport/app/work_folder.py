"""The folder of uploads and results: made when the page begins, swept while it runs, removed with it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loraport.app.limits import Limits
from loraport.errors import OutputError
from loraport.files.disk.ownership import try_lock

_PREFIX = "loraport-app-"
_LOCK = "in-use"
"""The file that the page holds a lock on while it runs."""


@dataclass(frozen=True)
class WorkFolder:
    """Where uploads and results lie while the page is served; nothing of it outlives the page."""

    path: Path
    """A real path, Gradio's own folder for files: what lies in it is shown where it lies, and not copied."""

    @classmethod
    def made(cls, named: str | None) -> WorkFolder:
        """Return a new folder, of which none but its owner sees anything, in `named` or where the system keeps such.

        Those of pages that were killed are removed. Raises OutputError where it cannot be made.
        """
        try:
            if named is not None:
                Path(os.path.expanduser(named)).mkdir(parents=True, exist_ok=True)
            parent = Path(tempfile.gettempdir() if named is None else os.path.expanduser(named))
            remove_left_over(parent)
            folder = cls(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)).resolve())
            folder.make()
        except OSError as error:
            raise OutputError(
                f"{named or 'the temporary folder'} takes no files: {error.strerror or error}; name another with --work"
            ) from error
        return folder

    def hold(self) -> int:
        """Mark it as in use, until what is returned is closed, or this process ends however it does."""
        handle = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        try_lock(handle)
        return handle

    @property
    def uploads(self) -> list[Path]:
        """What was uploaded: folders with a file each, which Gradio names by their content."""
        return [path for path in _entries(self.path) if path.name not in (self.jobs.name, _LOCK)]

    def holds_upload(self, path: Path) -> bool:
        """Return whether a file was uploaded."""
        real = path.resolve()
        return real.is_file() and self.path in real.parents and self.jobs not in real.parents

    @property
    def jobs(self) -> Path:
        """A folder for each job."""
        return self.path / "jobs"

    def make(self) -> None:
        """Make the folders, for their owner only."""
        for folder in (self.path, self.jobs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def sweep(self, limits: Limits, now: float | None = None, running: frozenset[str] = frozenset()) -> list[Path]:
        """Remove what was kept long enough, except of jobs that run; return what was removed."""
        now = time.time() if now is None else now
        old = [path for path in self.uploads if _age(path, now) > limits.keep_uploads]
        old += [
            path
            for path in _entries(self.jobs)
            if path.name not in running and _age(path, now) > limits.keep_results
        ]  # fmt: skip
        for path in old:
            remove(path)
        return old


def remove_left_over(parent: Path) -> None:
    """Remove the folders of pages that were killed: those of this user whose lock nobody holds."""
    for path in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or gone meanwhile
            if path.is_symlink() or (hasattr(os, "getuid") and path.stat().st_uid != os.getuid()):
                continue
            handle = os.open(path / _LOCK, os.O_RDWR)
            try:
                is_free = try_lock(handle)
            finally:
                os.close(handle)
            if is_free:
                remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _age(path: Path, now: float) -> float:
    try:
        return now - path.lstat().st_mtime
    except FileNotFoundError:  # another removed it meanwhile
        return 0.0
