"""The limits of the page: how much it takes, how long it keeps, and how many may wait."""

from __future__ import annotations

import shutil
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
