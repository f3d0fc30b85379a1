"""A read-only, lazy view of a model on disk, in any format that is read: headers at once, one tensor on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loraport.errors import FileFormatError, InputError, MismatchError
from loraport.files.adapters.division import layer_rows
from loraport.files.disk.user_paths import check_input, expand_home
from loraport.files.formats.in_memory import InMemory
from loraport.files.formats.quantized import decode, foreign_tensors, layers_of, refuse_codes
from loraport.files.formats.safetensors_read import StoredTensor
from loraport.files.models.locate import ShardFilter, find_files
from loraport.files.models.model_files import ModelFiles, files_in_memory, read_files
from loraport.files.models.named_places import known_place
from loraport.files.models.networks import Network, are_of_network, find_network
from loraport.files.names.dialects import are_of_lora
from loraport.files.names.families import Family, Naming, Piece, RowSlice
from loraport.files.names.lookup import detect_naming, without_wrappers
from loraport.lazy_property import lazy_property
from loraport.objects.open import is_url
from loraport.objects.url_path import path_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from loraport.files.models.weight import StoredWeight, Weight

UNKNOWN_NAMING = "unknown"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model under their canonical names; opening reads headers, asking for a tensor reads it.

    Names that the family's table does not have are kept as they are and listed in `extra`.
    """

    where: str
    paths: tuple[Path, ...]
    naming: str
    """"original", "diffusers", "comfy", "fastvideo" or "unknown"."""
    prefix: str
    """What stands before the names in the file, such as `model.diffusion_model.`."""
    part: str | None
    """The entry of a pickle that was taken, such as `generator_ema`."""
    extra: tuple[str, ...]
    absent: frozenset[str]
    """Names that an index lists, in shards that were not asked for; they can be known and not read."""
    digest: str = field(repr=False)
    stored: Mapping[str, tuple[StoredTensor, tuple[Piece, ...]]] = field(repr=False)
    """Key in the files -> the tensor and the parameters that it holds: several where layers are fused."""
    family: Family | None = field(repr=False, default=None)
    """The family whose table has most of the names."""
    others: frozenset[str] = frozenset()
    """Names of other networks in the same file, such as a text encoder: they stand there and are not the model's."""
    notes: tuple[str, ...] = ()
    """Notes for people: what was passed over or assumed in reading the files."""
    aliases: Mapping[str, StoredTensor] = field(repr=False, default_factory=dict)
    """Further names of some parameters."""
    is_here: bool = True
    """Whether its tensors can be read; else its headers alone are known."""

    @lazy_property
    def _parameters(self) -> dict[str, StoredTensor]:
        """Each parameter by its canonical name: its own rows of the tensor that holds it."""
        own = {name: layer_rows(tensor, rows) for tensor, pieces in self.stored.values() for name, rows in pieces}
        return own | dict(self.aliases)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def names(self) -> tuple[str, ...]:
        """Return the canonical parameter names, in the order of the files."""
        return tuple(self._parameters)

    @property
    def own(self) -> tuple[str, ...]:
        """The names of the model's own parameters, without those of other networks in the file."""
        return tuple(name for name in self._parameters if name not in self.others)

    @property
    def layers(self) -> tuple[str, ...]:
        """The canonical names of the model's layers whose `.weight` is a matrix or a convolution kernel."""
        weights = (name for name in self.own if len(self._parameters[name].shape) >= 2)
        return tuple(name.removesuffix(".weight") for name in weights if name.endswith(".weight"))

    @property
    def bytes(self) -> int:
        """Bytes of tensor data in the model."""
        return sum(stored.nbytes for stored in self._parameters.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a parameter, from the header."""
        return self._find(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the stored dtype of a parameter, from the header; float32 for a quantised one."""
        return self._find(name).dtype

    def format(self, name: str) -> str:
        """Return how a parameter is stored, as people call it: its dtype, or the name of its codes."""
        stored = self._find(name)
        return stored.kind if stored.quantization is None else stored.quantization.format

    @property
    def quantized(self) -> tuple[str, ...]:
        """The codes that the model is stored in, most frequent first; empty where the files hold values."""
        stored = (self._parameters[name] for name in self.own)
        counts = Counter(one.quantization.format for one in stored if one.quantization is not None)
        return tuple(format for format, _ in counts.most_common())

    def key(self, name: str) -> str:
        """Return the key under which a parameter stands in its file."""
        return self._find(name).key

    def path(self, name: str) -> Path:
        """Return the file in which a parameter stands."""
        return self._find(name).path

    def tensor(self, name: str) -> Tensor:
        """Return a parameter as it is stored, in fresh CPU memory; of a quantised one the values."""
        return self._find(name).read()

    def read_weight(self, layer: str) -> Tensor:
        """Return a layer's weight as a float32 matrix; a convolution's kernel becomes out × (in · kernel positions).

        Raises InputError where the layer has no such weight, or the weight holds NaN or infinite values.
        """
        return self.read(layer).matrix

    def read(self, layer: str) -> Weight:
        """Return the weight of a layer as `read_weight` does, with its `fingerprint`, from one reading of the file."""
        return self.load(layer).on()

    def load(self, layer: str, *, pinned: bool = False) -> StoredWeight:
        """Read the bytes of a layer's weight, and hash them; `StoredWeight.on` makes numbers of them.

        `pinned`: into memory that a card copies from. Raises InputError where the layer has no such weight.
        """
        stored = self._find(f"{layer}.weight")
        if len(stored.shape) < 2 or not stored.is_real:
            raise InputError(
                f"{stored.path}: {layer} has no matrix of floats, but {stored.dtype} of shape {stored.shape}"
            )
        from loraport.files.models.weight import load_weight

        return load_weight(stored, layer, pinned=pinned)

    def fingerprint(self, name: str) -> str:
        """Return the BLAKE3 hash of dtype, shape and bytes of one parameter, the same in whatever file it stands.

        Of a quantised one the float32 values are hashed: another scale is another content.
        """
        from loraport.files.models.weight import fingerprint

        return fingerprint(self.tensor(name))

    def identity(self) -> str:
        """Return the SHA-256 of what headers say (names, shapes, dtypes, offsets) and of file sizes, in milliseconds.

        Not a hash of the contents: two trainings saved by the same program share it. `fingerprint` is one.
        """
        return self.digest

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """Return the same files with some parameters under further names: new name -> the one that it has here."""
        return replace(self, aliases={**self.aliases, **{new: self._find(old) for new, old in names.items()}})

    def divided(self, parts: Mapping[str, tuple[Piece, ...]]) -> Checkpoint:
        """Return the same files with the tensors under some keys divided otherwise: key -> the parameters in it."""
        stored, others = dict(self.stored), set(self.others)
        for key, pieces in parts.items():
            tensor, before = stored[key]
            old, new = ({name for name, _ in names} for names in (before, pieces))
            others = others - old | (new if others & old else set())
            stored[key] = (tensor, pieces)
        return replace(self, stored=stored, others=frozenset(others))

    def _find(self, name: str) -> StoredTensor:
        if name not in self._parameters:
            raise InputError(f"{self.where} has no parameter {name!r}; is it a model of the same family?")
        return self._parameters[name]


def open_checkpoint(
    where: str | Path | Mapping[str, Tensor], *, part: str | None = None, layers: Collection[str] | None = None
) -> Checkpoint:
    """Open a model: a safetensors or GGUF file, shards, a diffusers folder, a PyTorch pickle, a Hub id, or tensors in
    memory by their keys.

    `part` chooses the entry of a pickle (`generator` instead of the preferred `generator_ema`) or the inner folder of a
    pipeline (`transformer_2`). Only headers are read. Where shards have an index and `layers` (canonical names) says
    what will be read, only their shards are fetched and opened; the others need not be there.
    Raises InputError and FileFormatError, each with the file's name.
    """
    needed = None if layers is None else partial(shards_of, layers=frozenset(layers), part=part)
    if isinstance(where, Mapping):
        where = InMemory("the model in memory", where)
    if isinstance(where, InMemory):
        return named_checkpoint(str(where), files_in_memory(where), part, None)
    path = on_disk(where, needed)
    try:
        return _opened(str(where), path, part, needed)
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error


def _opened(where: str, path: Path, part: str | None, needed: ShardFilter | None) -> Checkpoint:
    inner = part if part is not None and path.is_dir() and (path / part).is_dir() else None
    files = find_files(path, inner, needed)
    part = part if inner is None else None
    read = read_files(files.paths, part, needed is not None, are_of_network)
    return named_checkpoint(where, replace(read, notes=files.notes + read.notes), part, inner)


def shards_of(weight_map: Mapping[str, str], layers: frozenset[str], part: str | None) -> set[str]:
    """Return the shards that hold some layers, or parameters by their full names; all shards where none is found."""
    names = find_network(weight_map, part).names
    spelling = detect_naming(names.values())
    shards: set[str] = set()
    for key, name in names.items():
        holds, leaf = layers_of(name, spelling)
        of_layer = leaf != "bias" and not layers.isdisjoint(holds)
        if of_layer or (spelling and any(one in layers for one, _ in spelling[0].parameter_pieces(name, spelling[1]))):
            shards.add(weight_map[key])
    return shards or set(weight_map.values())


def on_disk(where: str | Path, needed: ShardFilter | None) -> Path:
    """Return the path of a model, of which the needed shards are fetched if it is on the Hub. Raises InputError."""
    where = known_place(where) if isinstance(where, str) else where
    path = path_of(where) if isinstance(where, str) and is_url(where) else expand_home(where)
    if path.exists():
        check_input(path)
        return path
    if isinstance(where, str) and is_url(where):
        raise InputError(f"{where} is not there, or not for you; give a safetensors file or a folder of a store")
    from loraport.files.models.hub import fetch, looks_like_hub_id

    if isinstance(where, str) and looks_like_hub_id(where):
        return fetch(where, needed)
    raise InputError(f"{where} does not exist; give a file, a folder or a Hub id such as Wan-AI/Wan2.1-T2V-1.3B")


def named_checkpoint(where: str, files: ModelFiles, part: str | None, inner: str | None) -> Checkpoint:
    """Return the checkpoint with its keys translated to canonical names."""
    first = _first(where, files)
    if not files.tensors:
        raise FileFormatError(f"{first} holds no tensors; give the file with the model's weights")
    if are_of_lora(files.tensors):
        raise FileFormatError(
            f"{where} is a LoRA, where a model belongs (it holds {min(files.tensors)!r}); an accelerator is named "
            f"behind its model: --target 'source+{where}'"
        )
    try:
        network = find_network([*files.tensors, *files.absent], part if files.part is None else None)
        own = decode({key: one for key, one in files.tensors.items() if key in network.names}, files.headers)
        stripped = {key: network.name(key) for key in (*network.names, *own.tensors)}
    except MismatchError as error:
        raise FileFormatError(f"{first}: {error}") from error
    except FileFormatError:
        raise
    except InputError as error:
        raise InputError(f"{first}: {error}") from error
    names, spelling = _canonical(stripped.values())
    refuse_codes({stripped[key]: tensor for key, tensor in own.tensors.items()}, spelling, set(network.names.values()))
    holders: dict[str, StoredTensor] = {}
    stored: dict[str, tuple[StoredTensor, tuple[Piece, ...]]] = {}
    extra = []
    for key, tensor in own.tensors.items():
        pieces = names[stripped[key]]
        if not pieces or not all(rows.fits(tensor.shape) for _, rows in pieces):
            pieces = ((stripped[key], RowSlice(stripped[key])),)
            extra += [stripped[key]]
        for final, _ in pieces:
            if final in holders:
                raise FileFormatError(
                    f"{first}: {holders[final].key!r} and {key!r} both name {final!r}; remove one of them"
                )
            holders[final] = tensor
        stored[key] = (tensor, pieces)
    beside = foreign_tensors({key: files.tensors[key] for key in network.beside if key in files.tensors})
    beside = {key: tensor for key, tensor in beside.items() if key not in holders}
    stored |= {key: (tensor, ((key, RowSlice(key)),)) for key, tensor in beside.items()}
    absent = frozenset(name for key in files.absent if key in stripped for name in _names_of(stripped[key], names))
    family, naming = spelling or (None, UNKNOWN_NAMING)
    return Checkpoint(
        where, files.paths, naming, _common_prefix(stripped), files.part or network.part or inner, tuple(extra), absent,
        files.digest, stored, family, frozenset(beside),
        (*files.notes, *_of_parts(where, files, network), *own.notes),
    )  # fmt: skip


def _of_parts(where: str, files: ModelFiles, network: Network) -> Iterator[str]:
    """Yield which of several networks in a file was taken."""
    for taken, left in ((files.part, files.left), (network.part, network.others)):
        if left:
            yield (
                f"{_first(where, files)} holds several networks: {taken or 'the one at its top'} is taken, and not "
                f"{', '.join(name or 'the one at its top' for name in left)} (--source-part, --target-part)"
            )


def _first(where: str, files: ModelFiles) -> Path:
    """Return the file that messages name, or what tensors in memory are called."""
    return files.paths[0] if files.paths else Path(where)


def _canonical(
    names: Iterable[str],
) -> tuple[dict[str, tuple[Piece, ...]], tuple[Family, Naming] | None]:
    """Return each bare name -> the parameters it holds, () where no table has it; and the family and naming.

    A fused copy beside the layers that it was made of holds nothing: those are what is loaded.
    """
    names = list(names)
    spelling = detect_naming(names)
    if spelling is None:
        return dict.fromkeys(names, ()), None
    family, naming = spelling
    pieces = {name: family.parameter_pieces(name, naming) for name in names}
    copies = {
        name for name, held in pieces.items() if len(held) > 1 and family.is_fused(name.rpartition(".")[0], naming)
    }
    own = {canonical for name, held in pieces.items() if name not in copies for canonical, _ in held}
    beside = {name for name in copies if not own.isdisjoint(canonical for canonical, _ in pieces[name])}
    return {name: () if name in beside else held for name, held in pieces.items()}, spelling


def _names_of(name: str, names: Mapping[str, tuple[Piece, ...]]) -> tuple[str, ...]:
    """Return the canonical names of what one stored parameter holds; its own where no table has it."""
    return tuple(canonical for canonical, _ in names[name]) or (name,)


def _common_prefix(stripped: Mapping[str, str]) -> str:
    """Return what most keys carry before their name, wrappers left out."""
    counts: Counter[str] = Counter()
    for key, name in stripped.items():
        counts[without_wrappers(key).removesuffix(name)] += 1
    return counts.most_common(1)[0][0]
