"""The limits of the page: how much it takes, how long it keeps, and how many may wait."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from loraport.errors import InputError, SettingsError

HOUR = 3600.0
GB = 10**9


@dataclass(frozen=True)
class Limits:
    """What the page takes and keeps."""

    upload: int = 2 * GB
    """Bytes of one uploaded LoRA."""
    waiting: int = 8
    """Jobs that may wait behind the one that runs."""
    keep_uploads: float = 2 * HOUR
    """Seconds after which an uploaded file is removed; jobs that wait or run have their own name for it."""
    keep_results: float = 24 * HOUR
    """Seconds after which a result is removed."""
    reserve: int = 1 * GB
    """Bytes that stay free on the disk whatever is uploaded."""

    def __post_init__(self) -> None:
        if self.upload < 1:
            raise SettingsError(f"the largest upload is {self.upload} bytes, but it must be more than nothing")
        if self.waiting < 0:
            raise SettingsError(f"{self.waiting} jobs may wait, but that must be 0 or more")

    @property
    def upload_words(self) -> str:
        """The size of an upload, for people."""
        return f"{self.upload / GB:g} GB" if self.upload >= GB else f"{self.upload / 10**6:g} MB"

    def check_upload(self, size: int, folder: Path) -> None:
        """Raise InputError for an upload that is too large, or for which there is no room."""
        if size > self.upload:
            raise InputError(
                f"the file is larger than {self.upload_words}, the largest that this page takes; put it into a shared "
                "folder of the machine, or start the page with a larger --max-upload"
            )
        if shutil.disk_usage(folder).free - size < self.reserve:
            raise InputError("there is no room for the file on this machine's disk; try again later")


@dataclass(frozen=True)
class WorkFolder:
    """Where uploads and results lie while the page is served; nothing of it outlives the page."""

    path: Path
    """A real path, Gradio's own folder for files: what lies in it is shown where it lies, and not copied."""

    @property
    def uploads(self) -> list[Path]:
        """What was uploaded: folders with a file each, which Gradio names by their content."""
        return [path for path in _entries(self.path) if path != self.jobs]

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
