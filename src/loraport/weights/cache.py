"""Content-addressed store of singular bases: the same weight is decomposed once, whatever file it lies in.

One safetensors file per basis, `v1/ab/<key>.safetensors`: U and Vh in float16, S in float32, and a checksum that every
read verifies. Entries appear whole or not at all (temporary name, fsync, rename): processes may share a folder and die
in it, and all of it is safe to delete.

What is used is always the basis as it reads back, in the run that computed it as in every later one, with a cache or
without: a cold, a warm and an interrupted run give the same bytes. Rounding to float16 and straightening again moves
each direction by 1.5e-4 to 2e-4, and C = Uᵀ·D·V and U·S·Vh by 2.1e-4 to 2.5e-4 of their norm (1536×1536,
8960×1536, 5120×5120); max |UᵀU − I| comes back at 1e-6. For scale: rounding the weight itself to bfloat16 costs 1.7e-3.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraport.errors import FileFormatError, InputError
from loraport.spectral.svd import SingularBasis, orthonormal
from loraport.weights.safetensors_files import read_safetensors

VERSION = 1
"""Of the entries' layout and meaning; part of every key and of the folder's name."""

MARKER = "CACHEDIR.TAG"
_MARKER_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Singular bases of model weights, kept by loraport; safe to delete. For the signature see https://bford.info/cachedir/\n"
)
_ENTRY = re.compile(r"([0-9a-f]{64})\.safetensors")
_TEMPORARY = re.compile(r"\.loraport-.*\.tmp")


def default_folder() -> Path:
    """$LORAPORT_CACHE, else $XDG_CACHE_HOME/loraport, else ~/.cache/loraport."""
    if own := os.environ.get("LORAPORT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "loraport"


def basis_key(fingerprint: str, algorithm: str = "thin svd") -> str:
    """The key of a weight's basis, from the weight's fingerprint (dtype, shape, bytes) and how it is decomposed."""
    return hashlib.sha256(f"loraport basis {VERSION}\n{algorithm}\n{fingerprint}\n".encode()).hexdigest()


@dataclass(frozen=True)
class Fetched:
    """A basis as it is stored, where it came from, and why it was not written (None where it was or need not be)."""

    basis: SingularBasis
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
        self.folder = None if folder is None else Path(folder).expanduser()
        if self.folder is not None and not _is_ours(self.folder):
            raise InputError(
                f"{self.folder} is not a cache of loraport and not empty; give another folder for the cache"
            )

    def get(self, key: str, device: torch.device | str = "cpu") -> SingularBasis | None:
        """The basis in float32 on the device, or None. A torn or altered entry counts as absent and is removed."""
        if self.folder is None or not (path := _place(self.folder, key)).is_file():
            return None
        try:
            return _restored(_read(path, key), device)
        except FileFormatError:
            with contextlib.suppress(OSError):
                path.unlink()
        except (InputError, OSError):
            pass  # removed by another process, or not ours to read: absent either way
        return None

    def put(self, key: str, basis: SingularBasis) -> str | None:
        """Write an entry; an existing one is replaced. Returns why it could not be written, or None: a run goes on."""
        return self._write(key, _stored(basis))

    def get_or_compute(
        self, key: str, compute: Callable[[], SingularBasis], device: torch.device | str = "cpu"
    ) -> Fetched:
        """The stored basis, or the computed one rounded, stored and restored: the same values in either case."""
        if (basis := self.get(key, device)) is not None:
            return Fetched(basis, True, None)
        tensors = _stored(compute())
        return Fetched(_restored(tensors, device), False, self._write(key, tensors))

    def list(self) -> tuple[Entry, ...]:
        """The entries, by key."""
        files = ((match[1], path, size) for path, size in self._files() if (match := _ENTRY.fullmatch(path.name)))
        return tuple(Entry(*file) for file in sorted(files))

    def total_bytes(self) -> int:
        """Bytes of all files, those that an interrupted write left behind included."""
        return sum(size for _, size in self._files())

    def verify(self, watch: Callable[[str, int, int], None] | None = None) -> tuple[tuple[Entry, str], ...]:
        """The entries that are torn or altered, each with what is wrong; nothing is removed. `watch` sees each."""
        broken = []
        entries = self.list()
        for number, entry in enumerate(entries, 1):
            if watch is not None:
                watch("verifying", number, len(entries))
            try:
                _read(entry.path, entry.key)
            except (InputError, OSError) as error:
                broken.append((entry, str(error)))
        return tuple(broken)

    def clear(self) -> tuple[int, int]:
        """Remove all entries and leftovers and nothing else; returns how many files and bytes that were."""
        files = self._files()
        for path, _ in files:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path, _ in files}:
            with contextlib.suppress(OSError):  # not empty: another process writes, or something there is not ours
                folder.rmdir()
        return len(files), sum(size for _, size in files)

    def _files(self) -> tuple[tuple[Path, int], ...]:
        """Our files, two folders deep, and their sizes; links and files with other names are not ours."""
        if self.folder is None:
            return ()
        files = []
        for path in self.folder.glob(f"v{VERSION}/[0-9a-f][0-9a-f]/*"):
            ours = _ENTRY.fullmatch(path.name) or _TEMPORARY.fullmatch(path.name)
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if ours and path.is_file() and not path.is_symlink():
                    files.append((path, path.stat().st_size))
        return tuple(files)

    def _write(self, key: str, tensors: dict[str, Tensor]) -> str | None:
        if self.folder is None:
            return None
        from safetensors.torch import save

        try:
            mark(self.folder)
            path = _place(self.folder, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(path, save(tensors, _metadata(key, tensors)))
        except OSError as error:
            return f"{self.folder}: {error.strerror or error}"
        return None


def mark(folder: Path) -> None:
    """Make the folder, and say in it that it is a cache of ours. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MARKER).is_file():
        _write_whole(folder / MARKER, _MARKER_TEXT.encode())


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


def _stored(basis: SingularBasis) -> dict[str, Tensor]:
    """The tensors of an entry, laid out as a file gives them: layout decides the last bits of later products."""
    kinds = (("U", basis.U, torch.float16), ("S", basis.S, torch.float32), ("Vh", basis.Vh, torch.float16))
    return {name: X.to("cpu", dtype).clone(memory_format=torch.contiguous_format) for name, X, dtype in kinds}


def _restored(tensors: dict[str, Tensor], device: torch.device | str) -> SingularBasis:
    U, S, Vh = (tensors[name].to(device).float() for name in ("U", "S", "Vh"))
    return orthonormal(SingularBasis(U, S, Vh))


def _metadata(key: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    return {"format": "loraport basis", "version": str(VERSION), "blake2b": _checksum(key, tensors)}


def _checksum(key: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(f"{key}\n".encode(), digest_size=32)
    for name in ("U", "S", "Vh"):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of an entry; raises FileFormatError where the header, the names or the checksum are wrong."""
    file = read_safetensors(path)
    if set(file.tensors) != {"U", "S", "Vh"}:
        raise FileFormatError(f"{path} holds no basis; remove it")
    tensors = {name: stored.read() for name, stored in file.tensors.items()}
    if file.metadata != _metadata(key, tensors):
        raise FileFormatError(f"{path} does not match its checksum; remove it")
    return tensors


def _write_whole(path: Path, content: bytes) -> None:
    """The file with this content under its name, or no change: temporary name, fsync, rename."""
    temporary = path.with_name(f".loraport-{path.stem[:16]}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
