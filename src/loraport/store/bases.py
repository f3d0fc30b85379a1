"""Content-addressed store of singular bases: the same weight is decomposed once, whatever file it lies in.

One safetensors file per entry, `v4/ab/<key>.safetensors`, with a checksum that every read verifies. Entries appear
whole or not at all (temporary name, fsync, rename): processes may share a folder and die in it, and all of it is safe
to delete. How matrices are kept: `packing`.

What is used is always the entry as it reads back, in the run that computed it as in every later one, with a cache or
without: a cold, a warm and an interrupted run give the same bytes. Nobody's files are trusted but the user's own: a
folder or an entry that belongs to somebody else, or that others may write, is not used, and an entry has to agree with
the weight that it is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraport.errors import FileFormatError, InputError, OutputError, SettingsError
from loraport.files.disk.atomic import TEMPORARY, write_whole
from loraport.files.disk.user_paths import expand_home
from loraport.files.formats.safetensors_read import read_all
from loraport.files.formats.safetensors_write import Pending, save_safetensors
from loraport.lazy_property import lazy_property
from loraport.progress import NO_PROGRESS, Progress
from loraport.spectral.basis import Basis
from loraport.store.packing import basis_of, contradiction, is_whole, packed, packed_basis

VERSION = 4
"""Of the entries' layout and meaning; part of every key and of the folder's name."""

MARKER = "CACHEDIR.TAG"
_MARKER_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Singular bases of model weights, kept by loraport; safe to delete. For the signature see https://bford.info/cachedir/\n"
)
_ENTRY = re.compile(r"([0-9a-f]{64})\.safetensors")
_TEMPORARY = re.compile(rf"\.loraport-.*\.tmp|{TEMPORARY.pattern}")
"""Leftovers of killed processes, of earlier versions too."""


def default_folder() -> Path:
    """$LORAPORT_CACHE, else $XDG_CACHE_HOME/loraport, else ~/.cache/loraport. Raises SettingsError without a home."""
    if own := os.environ.get("LORAPORT_CACHE"):
        return expand_home(own)
    folder = expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if folder.parts[0].startswith("~"):
        raise SettingsError("there is no home folder for the cache; set HOME, or give --cache or --no-cache")
    return folder / "loraport"


def basis_key(fingerprint: str, algorithm: str = "thin svd") -> str:
    """The key of an entry, from the fingerprint (dtype, shape, bytes) of what it is made of, and how."""
    return hashlib.sha256(f"loraport basis {VERSION}\n{algorithm}\n{fingerprint}\n".encode()).hexdigest()


@dataclass(frozen=True)
class Fetched:
    """A basis as it is stored, where it came from, and why it was not written (None where it was or need not be)."""

    basis: Basis
    found: bool
    not_written: str | None


@dataclass(frozen=True)
class Entry:
    """One file of the cache."""

    key: str
    path: Path
    bytes: int


class BasisCache:
    """The bases in one folder; without a folder nothing is kept, and the values are the same.

    The folder is created by the first `put`. Raises InputError where the folder exists and holds anything else.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else expand_home(folder)
        if self.folder is not None and not _is_ours(self.folder):
            raise InputError(
                f"{self.folder} is not a cache of loraport and not empty; give another folder for the cache"
            )
        self._refused: Counter[str] = Counter()

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the cache was not used, and why; entries are made anew then."""
        entries = (f"{count} entries of the cache were made anew: {why}" for why, count in self._refused.items())
        return (*((distrust,) if (distrust := self._distrust) else ()), *sorted(entries))

    @lazy_property
    def _distrust(self) -> str | None:
        """Why the folder is not used, once for as long as the cache is open."""
        if self.folder is None or not (why := _not_our_own(self.folder)):
            return None
        return f"the cache {self.folder} was not used: {why}; make it your own alone (chmod go-w), or give another"

    def get(self, key: str, W: Tensor) -> Basis | None:
        """The basis of a weight on its device, or None. A damaged or foreign entry counts as absent and is removed."""
        tensors = self._get(key, lambda stored: contradiction(stored, W, key))
        return None if tensors is None else basis_of(tensors, W)

    def put(self, key: str, basis: Basis) -> str | None:
        """Write an entry; an existing one is replaced. Returns why it could not be written, or None: a run goes on."""
        return self._write(key, packed_basis(basis))

    def get_or_compute(self, key: str, W: Tensor, compute: Callable[[Tensor], Basis]) -> Fetched:
        """The stored basis of a weight, or the computed one rounded, stored and restored: the same values."""
        if (tensors := self._get(key, lambda stored: contradiction(stored, W, key))) is not None:
            return Fetched(basis_of(tensors, W), True, None)
        tensors = packed_basis(compute(W))
        return Fetched(basis_of(tensors, W), False, self._write(key, tensors))

    def fetch(
        self,
        key: str,
        make: Callable[[], Mapping[str, Tensor]],
        check: Callable[[Mapping[str, Tensor]], str | None],
        coarse: Collection[str] = (),
    ) -> tuple[dict[str, Tensor], bool, str | None]:
        """Named vectors and matrices as they read back, whether they were there, and why they could not be kept.

        `check` says what is wrong with an entry that was found, and None where nothing is.
        """
        if (tensors := self._get(key, check)) is not None:
            return tensors, True, None
        stored = packed(make(), coarse)
        return stored, False, self._write(key, stored)

    def _get(self, key: str, check: Callable[[Mapping[str, Tensor]], str | None]) -> dict[str, Tensor] | None:
        if self.folder is None or self._distrust or not (path := _place(self.folder, key)).is_file():
            return None
        try:
            if why := _not_our_own(path):
                self._refused[why] += 1
                return None
            tensors = _read(path, key)
            if why := check(tensors):
                self._refused[why] += 1
                path.unlink()
                return None
            return tensors
        except FileFormatError:
            with contextlib.suppress(OSError):
                path.unlink()
        except (InputError, OSError):
            pass  # removed by another process, or not ours to read: absent either way
        return None

    def list(self) -> tuple[Entry, ...]:
        """The entries, by key."""
        mine = ((path, size) for path, size in self._files() if path.parts[-3] == f"v{VERSION}")
        files = ((match[1], path, size) for path, size in mine if (match := _ENTRY.fullmatch(path.name)))
        return tuple(Entry(*file) for file in sorted(files))

    def total_bytes(self) -> int:
        """Bytes of all files, leftovers of interrupted writes and of earlier versions included."""
        return sum(size for _, size in self._files())

    def verify(self, progress: Progress = NO_PROGRESS) -> tuple[tuple[Entry, str], ...]:
        """The entries that are torn, altered or not the user's own, each with what is wrong; nothing is removed.

        Whether a basis is that of its weight shows when a run has the weight at hand, and is checked then.
        """
        broken = []
        entries = self.list()
        for number, entry in enumerate(entries, 1):
            progress.advance("verifying", number, len(entries))
            try:
                tensors = _read(entry.path, entry.key)
                if why := _not_our_own(entry.path) or _incomplete(tensors):
                    broken.append((entry, f"{entry.path}: {why}"))
            except (InputError, OSError) as error:
                broken.append((entry, str(error)))
        return tuple(broken)

    def clear(self) -> tuple[int, int]:
        """Remove all entries and leftovers, of every version, and nothing else; returns how many files and bytes."""
        return remove(self._files())

    def _files(self) -> tuple[tuple[Path, int], ...]:
        """Our files of every version, and their sizes."""
        return () if self.folder is None else files_named(self.folder, "v[0-9]", _ENTRY, _TEMPORARY)

    def _write(self, key: str, tensors: dict[str, Tensor]) -> str | None:
        if self.folder is None or self._distrust:
            return None
        try:
            mark(self.folder)
            path = _place(self.folder, key)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            pending = {name: Pending.of(tensor) for name, tensor in tensors.items()}
            save_safetensors(path, pending, _metadata(key, tensors), private=True)
        except OSError as error:
            return f"{self.folder}: {error.strerror or error}"
        except OutputError as error:
            return f"{self.folder}: {getattr(error.__cause__, 'strerror', None) or error}"
        return None


def files_named(folder: Path, inside: str, *names: re.Pattern[str]) -> tuple[tuple[Path, int], ...]:
    """Files `inside/ab/NAME` of a cache and their sizes, by path; links and files with other names are not ours."""
    files = []
    for path in sorted(folder.glob(f"{inside}/[0-9a-f][0-9a-f]/*")):
        if path.parent.is_symlink() or path.parent.parent.is_symlink():
            continue
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if any(name.fullmatch(path.name) for name in names) and path.is_file() and not path.is_symlink():
                files.append((path, path.stat().st_size))
    return tuple(files)


def remove(files: Sequence[tuple[Path, int]]) -> tuple[int, int]:
    """Remove files of a cache and the folders that are empty then; returns how many files and bytes that were."""
    for path, _ in files:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path, _ in files}:
        with contextlib.suppress(OSError):  # not empty: another process writes, or something there is not ours
            folder.rmdir()
    return len(files), sum(size for _, size in files)


def mark(folder: Path) -> None:
    """Make the folder, and say in it that it is a cache of ours. Raises OSError, OutputError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (folder / MARKER).is_file():
        write_whole(folder / MARKER, _MARKER_TEXT.encode(), private=True)


def _not_our_own(path: Path) -> str | None:
    """Why a file or folder is not trusted: it belongs to somebody else, or others may write it. None where nobody can.

    Systems without owners tell nothing.
    """
    if not hasattr(os, "geteuid") or not path.exists():
        return None
    state = path.stat()
    if state.st_uid != os.geteuid():
        return "it belongs to another user"
    if path.is_symlink() and path.is_file():
        return "it is a link"
    return "other users may write it" if state.st_mode & 0o022 else None


def _incomplete(tensors: Mapping[str, Tensor]) -> str | None:
    """What an entry lacks that its checksum does not tell: that of a basis its order and shapes."""
    return None if "C" in tensors or is_whole(tensors) else "it lacks parts of a basis, or has others"


def _place(folder: Path, key: str) -> Path:
    return folder / f"v{VERSION}" / key[:2] / f"{key}.safetensors"


def _is_ours(folder: Path) -> bool:
    """Marked as ours, empty, or not there yet."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    marker = folder / MARKER
    if marker.is_file():
        return "loraport" in marker.read_text(errors="replace")
    return all(_TEMPORARY.fullmatch(path.name) for path in folder.iterdir())


def _metadata(key: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    return {"format": "loraport basis", "version": str(VERSION), "blake2b": _checksum(key, tensors)}


def _checksum(key: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(f"{key}\n".encode(), digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of an entry; raises FileFormatError where the header, the names or the checksum are wrong."""
    tensors, metadata = read_all(path)
    if metadata != _metadata(key, tensors):
        raise FileFormatError(f"{path} does not match its checksum; remove it")
    return tensors
