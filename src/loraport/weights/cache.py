"""Content-addressed store of singular bases: the same weight is decomposed once, whatever file it lies in.

One safetensors file per entry, `v3/ab/<key>.safetensors`, with a checksum that every read verifies. Matrices are kept
in 16 bits, whole numbers with a scale for each row; vectors in float32. Entries appear whole or not at all (temporary
name, fsync, rename): processes may share a folder and die in it, and all of it is safe to delete.

Of a basis the smaller factor is kept, V of a square or tall weight and U of a wide one, and of the other only the
directions with singular values below a fifth of their root mean square: the others follow from the weight, which a
run reads anyway (`HalfBasis`).

What is used is always the entry as it reads back, in the run that computed it as in every later one, with a cache or
without: a cold, a warm and an interrupted run give the same bytes. The rounding moves each direction by 4e-5, a fifth
of what float16 does, so nothing needs to be straightened. For scale: rounding a weight to bfloat16 costs 1.7e-3.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraport.errors import FileFormatError, InputError
from loraport.spectral.svd import HalfBasis, SingularBasis, strong_directions
from loraport.weights.safetensors_files import read_safetensors

VERSION = 3
"""Of the entries' layout and meaning; part of every key and of the folder's name."""

_LARGEST = 32767
_SCALE = ".scale"

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
    """The key of an entry, from the fingerprint (dtype, shape, bytes) of what it is made of, and how."""
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

    def get(self, key: str, W: Tensor) -> SingularBasis | None:
        """The basis of a weight in float32 on its device, or None. A damaged entry counts as absent and is removed."""
        tensors = self._get(key)
        return None if tensors is None else _basis(tensors, W)

    def put(self, key: str, basis: SingularBasis) -> str | None:
        """Write an entry; an existing one is replaced. Returns why it could not be written, or None: a run goes on."""
        return self._write(key, _stored(_halved(basis)))

    def get_or_compute(self, key: str, W: Tensor, compute: Callable[[Tensor], SingularBasis]) -> Fetched:
        """The stored basis of a weight, or the computed one rounded, stored and restored: the same values."""
        tensors, found, not_written = self.fetch(key, lambda: _halved(compute(W)))
        return Fetched(_basis(tensors, W), found, not_written)

    def fetch(self, key: str, make: Callable[[], Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], bool, str | None]:
        """Named vectors and matrices as they read back, whether they were there, and why they could not be kept."""
        if (tensors := self._get(key)) is not None:
            return tensors, True, None
        stored = _stored(make())
        return stored, False, self._write(key, stored)

    def _get(self, key: str) -> dict[str, Tensor] | None:
        if self.folder is None or not (path := _place(self.folder, key)).is_file():
            return None
        try:
            return _read(path, key)
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
        """Remove all entries and leftovers, of every version, and nothing else; returns how many files and bytes."""
        return remove(self._files())

    def _files(self) -> tuple[tuple[Path, int], ...]:
        """Our files of every version, and their sizes."""
        return () if self.folder is None else files_named(self.folder, "v[0-9]", _ENTRY, _TEMPORARY)

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


def files_named(folder: Path, inside: str, *names: re.Pattern[str]) -> tuple[tuple[Path, int], ...]:
    """Files `inside/ab/NAME` of a cache and their sizes, by path; links and files with other names are not ours."""
    files = []
    for path in sorted(folder.glob(f"{inside}/[0-9a-f][0-9a-f]/*")):
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


def _halved(basis: SingularBasis) -> dict[str, Tensor]:
    """What is kept of a basis: the smaller factor, and the weak directions of the other; rows are directions."""
    upright = basis if basis.shape[0] >= basis.shape[1] else basis.transposed()
    return {"S": basis.S, "small": upright.Vh, "weak": upright.left_rows(strong_directions(basis.S))}


def _basis(stored: Mapping[str, Tensor], W: Tensor) -> SingularBasis:
    """The basis of the weight from an entry."""
    S, small, weak = stored["S"].to(W.device), unpacked(stored, "small", W.device), unpacked(stored, "weak", W.device)
    if W.shape[0] >= W.shape[1]:
        return HalfBasis(W, S, small, weak)
    return HalfBasis(W.mT, S, small, weak).transposed()


def unpacked(stored: Mapping[str, Tensor], name: str, device: torch.device | str = "cpu") -> Tensor:
    """A matrix of an entry in float32."""
    return stored[name].to(device).float().mul_(stored[name + _SCALE].to(device)[:, None])


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Vectors in float32, matrices as whole numbers of 16 bits with a scale for each row."""
    found = {}
    for name, X in tensors.items():
        if X.dim() == 1:
            found[name] = X.to("cpu", torch.float32).contiguous()
            continue
        scale = X.abs().amax(dim=1) / _LARGEST if X.numel() else X.new_zeros(len(X))
        found[name + _SCALE] = scale.to("cpu", torch.float32)
        rounded = (X / scale.where(scale > 0, 1)[:, None]).round_()
        found[name] = rounded.to(torch.int16).cpu().contiguous()
    return found


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
    file = read_safetensors(path)
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
