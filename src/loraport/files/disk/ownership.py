"""Which process a file or folder on the disk belongs to: a lock that ends with its process, and a name for people.

Where a file system has no locks, a process of this machine is looked up by its number, and one of another machine
counts as alive while its heartbeat is fresh.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from loraport.errors import OutputError

HOST = socket.gethostname()
HOST_DIGEST = hashlib.sha256(HOST.encode()).hexdigest()[:8]
"""The machine's name where only a few letters have room."""
_BEAT, _QUIET = 15.0, 120.0
"""Seconds between heartbeats, and after how many without one the owner on another machine counts as dead."""
_BYTE = 1 << 30
"""The byte that is locked on Windows, where locked bytes cannot be read: far behind the text."""


def try_lock(handle: int) -> bool | None:
    """Lock an open file until it is closed. Return whether that worked; None where there are no locks."""
    if sys.platform == "win32":
        import msvcrt

        before = os.lseek(handle, 0, os.SEEK_CUR)
        try:
            os.lseek(handle, _BYTE, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # the byte at the position of the file
        except OSError:
            return False
        finally:
            os.lseek(handle, before, os.SEEK_SET)  # else what is written next would begin there
        return True
    try:
        import fcntl
    except ImportError:
        return None
    # A lock of the open file, not of a name or a number: the system takes it away however the process ends, and nothing
    # is left to clean up. (`fcntl.lockf` would end with the first close of the file by any thread.)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def is_running(process: int) -> bool:
    """Return whether a process of this machine is alive."""
    if sys.platform == "win32":
        import ctypes

        kernel, code = ctypes.windll.kernel32, ctypes.c_ulong()
        opened = kernel.OpenProcess(0x1000, False, process)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not opened:
            return False
        kernel.GetExitCodeProcess(opened, ctypes.byref(code))
        kernel.CloseHandle(opened)
        return code.value == 259  # STILL_ACTIVE
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@dataclass(frozen=True)
class Owner:
    """Who has a lock, as its file says."""

    process: int
    host: str
    since: str

    @classmethod
    def here(cls) -> Owner:
        """Return this process."""
        return cls(os.getpid(), HOST, time.strftime("%Y-%m-%d %H:%M:%S"))

    @classmethod
    def read(cls, handle: int) -> Owner | None:
        """Return the owner that a lock file names, or None."""
        os.lseek(handle, 0, os.SEEK_SET)
        try:
            return cls(**json.loads(os.read(handle, 4096)))
        except (ValueError, TypeError):
            return None

    def write(self, handle: int) -> None:
        """Write the owner into the lock file."""
        os.lseek(handle, 0, os.SEEK_SET)
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(vars(self)).encode())

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


class Lock:
    """A file that says which run has the folder around it; it is there while the run is, and goes with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        self._end = threading.Event()

    def take(self, what: str) -> None:
        """Become the owner, also after a dead one. Raises OutputError, naming `what` and who has it, OSError."""
        while self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            except FileNotFoundError:
                continue  # the owner before us removed the folder at this moment
            try:
                self._handle = handle if self._taken(handle, what) else None
            except Exception:
                raise
            except BaseException:  # a signal: what may be ours already goes with us
                if sys.platform != "win32" and try_lock(handle):
                    self._unlink()
                raise
            finally:
                if self._handle is None:
                    os.close(handle)
        threading.Thread(target=self._live, args=(self._handle,), name="loraport-lock", daemon=True).start()

    def _taken(self, handle: int, what: str) -> bool:
        """Return whether the lock is ours now; False where its file was removed meanwhile. Raises OutputError."""
        locked, owner = try_lock(handle), Owner.read(handle)
        if locked is False or (owner is not None and self._lives(owner, handle, locked)):
            who = "another run" if owner is None else f"another run ({owner})"
            raise OutputError(
                f"{what} is being made by {who}; wait for its end, or give another name (if that run is surely dead, "
                f"remove {self.path})"
            )
        if not self._is_there(handle):  # we have locked a file without a name, which keeps nobody out
            return False
        me = Owner.here()
        me.write(handle)
        if locked is None:  # without locks two may have come to here: the name that was written last is the owner's
            time.sleep(0.2)
            return Owner.read(handle) == me
        return True

    @staticmethod
    def _lives(owner: Owner, handle: int, locked: bool | None) -> bool:
        if owner.host != HOST:  # its process number means nothing here, and not every network disk passes locks on
            return time.time() - os.fstat(handle).st_mtime < _QUIET
        return locked is None and owner.process != os.getpid() and is_running(owner.process)

    def _is_there(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self.path.stat())
        except OSError:
            return False

    def _live(self, handle: int) -> None:
        while not self._end.wait(_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        """Remove the file and let others come. After an interruption by a signal it can be called again."""
        if self._handle is None:
            return
        self._end.set()
        if sys.platform != "win32":  # where what is open cannot be removed
            self._unlink()
        handle, self._handle = self._handle, None
        os.close(handle)
        if sys.platform == "win32":
            self._unlink()

    def _unlink(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()
