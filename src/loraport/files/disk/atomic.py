"""Files and folders that appear under their name whole or not at all; leftovers of killed processes are removed.

The work is done under a temporary name in the same folder, which says whose it is and is locked for as long as its
process lives. The next writer in that folder removes what belongs to no living process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from loraport.errors import OutputError
from loraport.files.disk.ownership import HOST_DIGEST, is_running, try_lock
from loraport.files.disk.user_paths import check_output

TEMPORARY = re.compile(r"\.loraport-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.part")
"""The name of an unfinished file or folder: short, since the final name may be as long as the system allows."""
_DAY = 86400
_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds between the attempts to replace a file that is open."""
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EACCES, errno.EINVAL}
"""What systems answer where a disk has no hard links."""
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_making = threading.Lock()
"""Held while a name is made and locked: between the two, another thread would take the file for a dead process's."""


def write_whole(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file, whole or not at all; one that was there is replaced. Raises OutputError."""
    with new_file(path, private=private) as file:
        file.write(content)


def create_whole(path: Path, content: bytes, *, workplace: Path | None = None) -> bool:
    """Write a file that is not there, whole or not at all; return False, and change nothing, where there is one.

    Of several processes that create the same file exactly one succeeds, where the disk can do that (`can_create`).
    Raises OutputError.
    """
    if os.path.lexists(path):
        return False
    try:
        with new_file(path, workplace=workplace, take_name=_take_free_name) as file:
            file.write(content)
    except _TakenError:
        return False
    return True


class _TakenError(Exception):
    """There is a file of this name already."""


def can_create(folder: Path) -> bool:
    """Return whether `create_whole` is one step on this disk: it has hard links, or moves that replace nothing.

    Tries it there. Raises OutputError where nothing can be written.
    """
    with _writing(folder / "trial") as target:
        one, other = _free_name(target), _free_name(target)
        try:
            with _making:  # what is not locked would count as a dead process's
                one.touch()
                return _taken_in_one_step(one, other)
        finally:
            _remove(one)
            _remove(other)


@contextmanager
def new_file(
    path: Path,
    *,
    private: bool = False,
    workplace: Path | None = None,
    take_name: Callable[[Path, Path], None] | None = None,
) -> Iterator[BinaryIO]:
    """Open a file to write, which takes its name at the end, or is removed on any error; `private`: for its owner only.

    `workplace` is where it lies until then: a folder on the same disk, for folders with too many files to be searched
    for leftovers each time. `take_name` gives it its name.
    Raises OutputError where it cannot be written; what was there before is then still there.
    """
    with _writing(path, workplace) as target:
        temporary, file = _free_name(target if workplace is None else workplace / target.name), None
        try:  # a signal may come from here on
            with _making:
                file = open(os.open(temporary, _CREATE, 0o600 if private else 0o666), "wb")
                try_lock(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the name is taken: a crash of the machine could else leave it empty
            if sys.platform == "win32":  # where open files cannot be moved
                file.close()
            (take_name or _take_name)(temporary, target)
        except BaseException:
            _close(file)
            _remove(temporary)
            raise
        finally:
            _close(file)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder to fill, which takes its name at the end, or is removed on any error.

    The old and the new folder change places in one step, where the system has one. Raises OutputError as `new_file`.
    """
    with _writing(path) as target:
        temporary, handle = _free_name(target), None
        try:  # a signal may come from here on
            with _making:
                temporary.mkdir()
                handle = None if sys.platform == "win32" else os.open(temporary, os.O_RDONLY)
                if handle is not None:
                    try_lock(handle)
            yield temporary
            if target.is_dir():
                _exchange(temporary, target)
            else:
                _take_name(temporary, target)
        finally:
            _remove(temporary)
            if handle is not None:
                os.close(handle)


def _take_name(temporary: Path, target: Path) -> None:
    """Give what is finished its name. Windows replaces no file that is open: a scanner lets go of it soon, a program
    that shows or uses it does not. Raises OSError.
    """
    for wait in _WAITS if sys.platform == "win32" else ():
        try:
            os.replace(temporary, target)
            return
        except PermissionError:
            time.sleep(wait)
    try:
        os.replace(temporary, target)
    except PermissionError as error:
        if sys.platform == "win32" and target.exists():
            why = "another program has it open, or it is write-protected; close it there, and start again"
            raise PermissionError(error.errno, why, str(target)) from error
        raise


def _take_free_name(temporary: Path, target: Path) -> None:
    """Give what is finished a name that nothing has. Raises _TakenError, OSError."""
    if not _taken_in_one_step(temporary, target):
        if os.path.lexists(target):
            raise _TakenError
        os.replace(temporary, target)


def _taken_in_one_step(temporary: Path, target: Path) -> bool:
    """Give a file a free name so that only one of several processes can; return False where this disk cannot.

    Raises _TakenError, OSError.
    """
    try:
        if sys.platform == "win32":  # where a move replaces nothing
            os.rename(temporary, target)
        else:
            os.link(temporary, target)
            os.unlink(temporary)
    except FileExistsError as error:
        raise _TakenError from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if _renamed(temporary, target, 1):  # RENAME_NOREPLACE
            return True
        if os.path.lexists(target):
            raise _TakenError from error
        return False
    return True


@contextmanager
def _writing(path: Path, workplace: Path | None = None) -> Iterator[Path]:
    """Give the path behind all links, its folder made or cleared of dead leftovers; folders made for it alone go again.

    Errors of the system become OutputError.
    """
    made: list[Path] = []
    try:
        target = Path(os.path.realpath(path))
        if target.is_symlink():  # still a link: they form a circle, and `stat` raises the error that says so
            target.stat()
        check_output(target)
        made = [folder for folder in target.parents if not folder.exists()]
        if made:
            target.parent.mkdir(parents=True, exist_ok=True)
        if workplace is not None:
            workplace.mkdir(parents=True, exist_ok=True)
        remove_dead(target.parent if workplace is None else workplace)
        yield target
    except BaseException as error:
        for folder in made:
            with contextlib.suppress(OSError):  # another has put something into it
                folder.rmdir()
        if not isinstance(error, OSError):
            raise
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; nothing was left behind") from error


def _free_name(target: Path) -> Path:
    return target.with_name(f".loraport-{HOST_DIGEST}-{os.getpid()}-{secrets.token_hex(4)}.part")


def remove_dead(folder: Path) -> None:
    """Remove the unfinished files in a folder whose process has ended. What cannot be removed stays."""
    try:
        leftovers = [(entry, match) for entry in os.scandir(folder) if (match := TEMPORARY.fullmatch(entry.name))]
    except OSError:
        return
    for entry, match in leftovers:
        with _making:
            if _is_dead(Path(entry.path), match["host"], int(match["process"])):
                _remove(Path(entry.path))


def _is_dead(path: Path, host: str, process: int) -> bool:
    this_machine, other_process = host == HOST_DIGEST, process != os.getpid()
    # A number may have gone to a later program by now: then only the lock, which no dead process has, or age tells.
    alive = this_machine and other_process and is_running(process)
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders; gone, or not ours to read
        return this_machine and other_process and not alive and path.is_dir()
    try:
        locked, age = try_lock(handle), time.time() - os.fstat(handle).st_mtime
    finally:
        os.close(handle)
    if locked is None:
        return this_machine and other_process and not alive
    return locked and ((this_machine and not alive) or age > _DAY)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders: at once where the system can, else by three renames, undone if the second fails."""
    if _swapped(new, old):
        return
    aside = new.with_name(f"{new.name}.old")
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except OSError:
        os.rename(aside, old)
        raise
    os.rename(aside, new)


def _swapped(one: Path, other: Path) -> bool:
    """Exchange two names in one step and return whether that worked: not every file system can, and Windows cannot."""
    return _renamed(one, other, 2)  # RENAME_EXCHANGE, or macOS's RENAME_SWAP; with two renames a reader could see none


def _renamed(one: Path, other: Path, flag: int) -> bool:
    """Rename as Python does not offer it, and return whether that worked."""
    import ctypes

    try:
        system = ctypes.CDLL(None)
    except (TypeError, OSError):
        return False
    cwd = -100  # AT_FDCWD
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(system, "renameat2"):
        return bool(system.renameat2(cwd, names[0], cwd, names[1], flag) == 0)
    if not hasattr(system, "renamex_np"):
        return False
    return bool(system.renamex_np(*names, flag if flag == 2 else 4) == 0)  # RENAME_EXCL


def _close(file: BinaryIO | None) -> None:
    """Close a file whose last bytes a full disk may refuse."""
    if file is not None:
        with contextlib.suppress(OSError):
            file.close()


def _remove(path: Path) -> None:
    """Remove a file or folder if it is there; its own failure never hides the error that made it useless."""
    try:
        _remove_once(path)
    except BaseException:  # a signal; the next one ends the program
        _remove_once(path)
        raise


def _remove_once(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()
