"""A model on disk, read-only and lazy: names, shapes and dtypes now, one tensor on demand, whatever its files are."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.errors import FileFormatError, InputError, MismatchError
from loraport.weights.gguf_files import read_gguf
from loraport.weights.names import WRAPPER_INFIXES, canonical_parameter, detect_naming, strip_prefixes
from loraport.weights.pickled import read_pickle
from loraport.weights.places import GGUF, PICKLES, SAFETENSORS, files_of, indexes_beside, read_index
from loraport.weights.quantized import decoded
from loraport.weights.rounding import expected_error, narrowest, step_of
from loraport.weights.safetensors_files import StoredTensor, read_safetensors

UNKNOWN_NAMING = "unknown"


@dataclass(frozen=True)
class Weight:
    """One layer's weight as it was read."""

    matrix: Float[Tensor, "out in"]
    """float32; a convolution's kernel is out × (in · kernel positions)."""
    fingerprint: str
    dtype: torch.dtype
    """That of the file; float32 where it holds codes."""
    _step: Tensor | None = None

    @cached_property
    def precision(self) -> torch.dtype | None:
        """The dtype whose grid the values lie on, which may be narrower than the file's; None where it holds codes."""
        return None if self._step is not None else narrowest(self.matrix, self.dtype)

    @cached_property
    def rounding(self) -> float:
        """Expected ‖W − W_before‖_F, W_before the weight before it was rounded to what the file holds."""
        if self._step is not None:
            return expected_error(self._step)
        return expected_error(step_of(self.matrix, self.precision or self.dtype))


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model under their canonical names; opening reads headers, asking for a tensor reads it.

    Names that the family's table does not have are kept as they are and listed in `extra`.
    """

    where: str
    paths: tuple[Path, ...]
    naming: str
    """"original", "diffusers", "fastvideo" or "unknown"."""
    prefix: str
    """What stands before the names in the file, such as `model.diffusion_model.`."""
    part: str | None
    """The entry of a pickle that was taken, such as `generator_ema`."""
    extra: tuple[str, ...]
    digest: str = field(repr=False)
    _stored: Mapping[str, StoredTensor] = field(repr=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def names(self) -> tuple[str, ...]:
        """The canonical parameter names, in the order of the files."""
        return tuple(self._stored)

    @property
    def layers(self) -> tuple[str, ...]:
        """The canonical names of layers whose `.weight` is a matrix or a convolution kernel."""
        weights = (name for name, stored in self._stored.items() if len(stored.shape) >= 2)
        return tuple(name.removesuffix(".weight") for name in weights if name.endswith(".weight"))

    @property
    def bytes(self) -> int:
        """Bytes of tensor data in the model."""
        return sum(stored.dtype.itemsize * _count(stored.shape) for stored in self._stored.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter, from the header."""
        return self._find(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype of a parameter, from the header; float32 for a quantised one."""
        return self._find(name).dtype

    def format(self, name: str) -> str:
        """How a parameter is stored, for people: its dtype, or the name of its codes."""
        stored = self._find(name)
        return str(stored.dtype).removeprefix("torch.") if stored.coded is None else stored.coded.format

    @property
    def quantized(self) -> tuple[str, ...]:
        """The codes that the model is stored in, most frequent first; empty where the files hold values."""
        counts = Counter(stored.coded.format for stored in self._stored.values() if stored.coded is not None)
        return tuple(format for format, _ in counts.most_common())

    def key(self, name: str) -> str:
        """The key under which a parameter stands in its file."""
        return self._find(name).key

    def path(self, name: str) -> Path:
        """The file in which a parameter stands."""
        return self._find(name).path

    def tensor(self, name: str) -> Tensor:
        """A parameter as it is stored, in fresh CPU memory; of a quantised one the values."""
        return self._find(name).read()

    def read_weight(self, layer: str) -> Float[Tensor, "out in"]:
        """The weight of a layer as a float32 matrix; a convolution's kernel becomes out × (in · kernel positions).

        Raises InputError where the layer has no such weight, or the weight holds NaN or infinite values.
        """
        return self.read(layer).matrix

    def read(self, layer: str) -> Weight:
        """The weight of a layer as `read_weight` gives it, with its `fingerprint`, from one reading of the file."""
        stored = self._find(f"{layer}.weight")
        if len(stored.shape) < 2 or not stored.dtype.is_floating_point:
            raise InputError(
                f"{stored.path}: {layer} has no matrix of floats, but {stored.dtype} of shape {stored.shape}"
            )
        tensor, step = (stored.read(), None) if stored.coded is None else stored.coded.read()
        W = tensor.float().flatten(1)
        if W.numel() and not all(torch.isfinite(bound) for bound in torch.aminmax(W)):  # NaN spreads; one pass, no copy
            raise InputError(
                f"{stored.path}: the weight of {layer} holds NaN or infinite values; use an undamaged file"
            )
        return Weight(W, _fingerprint(tensor), stored.dtype, step)

    def fingerprint(self, name: str) -> str:
        """BLAKE2b (256 bits) of dtype, shape and bytes of one parameter, the same in whatever file it stands.

        Of a quantised one the float32 values are hashed: another scale is another content.
        """
        return _fingerprint(self.tensor(name))

    def identity(self) -> str:
        """SHA-256 over what the headers say (names, shapes, dtypes, places) and the files' sizes, in milliseconds.

        Not a hash of the contents: two trainings saved by the same program share it. `fingerprint` is one.
        """
        return self.digest

    def _find(self, name: str) -> StoredTensor:
        if name not in self._stored:
            raise InputError(f"{self.where} has no parameter {name!r}; is it a model of the same family?")
        return self._stored[name]


def open_checkpoint(where: str | Path, *, part: str | None = None) -> Checkpoint:
    """Open a model: a safetensors or GGUF file, shards, a diffusers folder, a PyTorch pickle or a Hub id.

    `part` chooses the entry of a pickle (`generator` instead of the preferred `generator_ema`) or the inner folder of a
    pipeline (`transformer_2`). Only headers are read. Raises InputError and FileFormatError, each with the file's name.
    """
    place = _on_disk(where)
    try:
        return _opened(str(where), place, part)
    except OSError as error:
        raise InputError(f"{error.filename or place} cannot be read: {error.strerror or error}") from error


def _opened(where: str, place: Path, part: str | None) -> Checkpoint:
    inner = part if part is not None and place.is_dir() and (place / part).is_dir() else None
    paths = files_of(place, inner)
    for path in paths:
        if path.suffix.lower() not in (*SAFETENSORS, *PICKLES, GGUF):
            raise FileFormatError(
                f"{path} is of no kind that is read; give one of {', '.join((*SAFETENSORS, *PICKLES, GGUF))}"
            )
    kind = paths[0].suffix.lower()
    if part is not None and inner is None and kind not in PICKLES:
        raise InputError(f"{place} has no part {part!r}: parts are entries of a .pt file or folders inside a pipeline")
    if kind in PICKLES:
        stored, part = read_pickle(paths[0], part)
        lines = [f"{key} {one.dtype} {one.shape}" for key, one in stored.items()]
        stored, digest = decoded(stored), _digest([*lines, str(paths[0].stat().st_size)])
    elif kind == GGUF:
        stored, digest = read_gguf(paths[0])
    else:
        stored, digest = _from_safetensors(paths)
    return _named(where, paths, part, stored, digest)


def _on_disk(where: str | Path) -> Path:
    place = Path(where).expanduser()
    if place.exists():
        return place
    from loraport.weights.hub import fetch, looks_like_hub_id

    if isinstance(where, str) and looks_like_hub_id(where):
        return fetch(where)
    raise InputError(f"{where} does not exist; give a file, a folder or a Hub id such as Wan-AI/Wan2.1-T2V-1.3B")


def _from_safetensors(paths: tuple[Path, ...]) -> tuple[dict[str, StoredTensor], str]:
    """All tensors of a set of files by their stored keys, and the digest of the set."""
    stored: dict[str, StoredTensor] = {}
    files = [read_safetensors(path) for path in paths]
    for file in files:
        for key, tensor in file.tensors.items():
            if key in stored:
                raise FileFormatError(
                    f"{key!r} stands both in {stored[key].path} and in {file.path}; remove one of them"
                )
            stored[key] = tensor
    for index in indexes_beside(paths) if len(paths) > 1 else ():
        for key, shard in read_index(index).items():
            if key not in stored or stored[key].path.name != shard:
                raise FileFormatError(f"{index} says that {key!r} is in {shard}, but it is not; download both again")
    return decoded(stored, [file.metadata for file in files]), _digest([file.digest for file in files])


def _named(
    where: str, paths: tuple[Path, ...], part: str | None, stored: dict[str, StoredTensor], digest: str
) -> Checkpoint:
    """The checkpoint with its keys translated to canonical names."""
    if not stored:
        raise FileFormatError(f"{paths[0]} holds no tensors; give the file with the model's weights")
    try:
        stripped = strip_prefixes(stored)
    except MismatchError as error:
        raise FileFormatError(f"{paths[0]}: {error}") from error
    naming = detect_naming(stripped.values())
    translate: Callable[[str], str | None] = lambda name: canonical_parameter(name, naming) if naming else None  # noqa: E731
    tensors: dict[str, StoredTensor] = {}
    extra = []
    for key, name in stripped.items():
        canonical = translate(name)
        if canonical is None:
            extra.append(name)
        final = canonical or name
        if final in tensors:
            raise FileFormatError(
                f"{paths[0]}: {tensors[final].key!r} and {key!r} both name {final!r}; remove one of them"
            )
        tensors[final] = stored[key]
    return Checkpoint(
        where, paths, naming or UNKNOWN_NAMING, _common_prefix(stripped), part, tuple(extra), digest, tensors
    )


def _common_prefix(stripped: Mapping[str, str]) -> str:
    """What most keys carry before their name, wrappers left out."""
    counts: Counter[str] = Counter()
    for key, name in stripped.items():
        for infix in WRAPPER_INFIXES:
            key = key.replace(infix, "")
        counts[key.removesuffix(name)] += 1
    return counts.most_common(1)[0][0]


def _fingerprint(tensor: Tensor) -> str:
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode(), digest_size=32)
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
