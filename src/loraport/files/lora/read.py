"""Read LoRA files of any dialect into {canonical layer name: LoraLayer}, the whole scale folded in.

Every key of the file is in one of three places of a `Lora`: the `keys` of a layer, `extras` (carried through) or
`dropped` (with the reason).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loraport.errors import MismatchError
from loraport.files.adapters.division import split_modules
from loraport.files.adapters.lora_layer import LazyUpdates, LoraLayer, Updates
from loraport.files.formats.safetensors_read import StoredTensor, dtype_of
from loraport.files.lora.alpha import stored_scales
from loraport.files.lora.layer_reader import LayerReader
from loraport.files.lora.locate import LoraFiles, open_lora
from loraport.files.lora.parts import evidence_of, keys_of_part, notes_on_names, parsed_keys
from loraport.files.lora.refusals import refuse_unread, refuse_without_layers
from loraport.files.names.clip import SECOND, is_named
from loraport.files.names.dialects import (
    SCALES,
    VARIANTS,
    Dialect,
    LoraKey,
    parse_key,
)
from loraport.files.names.families import FAMILIES, Layout, RowSlice
from loraport.files.names.majority import majority_dialect

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from loraport.files.adapters.updates import LayerUpdate


@dataclass(frozen=True)
class Lora:
    """A LoRA as it was read: its updates by canonical layer name, and everything needed to write it back."""

    layers: Mapping[str, LoraLayer]
    """By canonical name."""
    dialect: Dialect
    extras: Mapping[str, StoredTensor]
    """Carried through, and read when their turn comes: full differences, biases, text encoders."""
    dropped: tuple[tuple[str, str], ...]
    """(key, reason)."""
    kinds: tuple[str, ...]
    """What the factors are stored in, by PyTorch's names of its dtypes."""
    metadata: Mapping[str, str]
    sha256: str
    """Of the file's bytes; of a PEFT folder: of the weights' bytes and then the configuration's."""
    path: Path
    notes: tuple[str, ...] = ()
    """What a user should know of how it was read: an alpha that was not applied, say."""
    start: str = ""
    """What stands before the layers' names, where no list has it and it was inferred from the tables."""
    encoders: Mapping[str, LoraLayer] = field(default_factory=dict)
    """Layers of text encoders whose names are known (`names.clip`); their keys are among the extras too."""

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes that the factors are stored in."""
        return tuple(map(dtype_of, self.kinds))

    @property
    def updates(self) -> Mapping[str, LayerUpdate]:
        """Layer -> its update, each read when it is asked for where the LoRA is not held in memory."""
        return Updates(self.layers)

    @property
    def unresolved(self) -> frozenset[str]:
        """Layers known by a flattened name only; look them up among the flattened names of a checkpoint."""
        return frozenset(name for name, layer in self.layers.items() if not layer.resolved)

    @property
    def encoder_keys(self) -> frozenset[str]:
        """The keys of `encoders`."""
        return frozenset(key for layer in self.encoders.values() for key in layer.keys)

    def parse(self, key: str) -> LoraKey:
        """Parse one of its keys."""
        return _of_folder(parse_key(key, self.dialect.family, self.start, self.dialect.naming), self.path)


def read_lora(
    path: Path | str | Mapping[str, Tensor],
    *,
    dense: bool = False,
    diffs: bool = False,
    keep: bool = True,
    part: str | None = None,
    outlines: bool = False,
    qkv: Layout | None = None,
) -> Lora:
    """Read the LoRA in a safetensors file, in a folder with one (PEFT's, or diffusers'), on the Hub (as a text), or in
    memory (its tensors by their keys).

    `dense`: a file with full differences (.diff) or text encoders alone will do; it has no layers, and all in `extras`.
    `diffs`: full differences of matrices are layers too, not extras; one beside factors is added to them.
    `keep` off: the updates are checked now, and read again when they are asked for.
    `outlines`: for who only looks at a file. Plain factors are checked, and read when an update is asked for; what is
    known of them meanwhile stands in `LoraLayer.outline`, and PyTorch is not loaded for it.
    `part`: which of several LoRAs in one file (`lora.parts`). `qkv`: how the rows of fused layers lie; None takes
    what the keys' endings say.
    Raises FileFormatError for what is not a safetensors file, not a LoRA, or an adapter that is not read (OFT, GLoRA,
    IA3, VeRA, replaced weights); MismatchError for half a pair, disagreeing ranks, a layer given twice; InputError for
    missing files and values that are not finite.
    """
    files = open_lora(path, part)
    part = None if part == files.entry else part
    tensors = files.tensors
    evidence = evidence_of(files)
    start, every_key = parsed_keys(sorted(tensors), evidence, qkv)
    parsed = [_of_folder(key, files.path) for key in keys_of_part(files.path, every_key, part)]
    refuse_unread(files.path, parsed)
    scales = stored_scales(
        files.metadata, files.config, files.path.name, files.beside, files.fields, of_header=_takes_header_alpha(parsed)
    )
    groups = _by_layer(files.path, [key for key in parsed if not key.text_encoder])
    encoders = _by_layer(files.path, [key for key in parsed if key.clip])
    all_factors = [key for key in parsed if key.part in ("A", "B", *VARIANTS)]
    factors = [key for key in all_factors if not key.text_encoder]
    differences = [one for one in parsed if one.part == ".diff" and not one.text_encoder and not one.bare]
    matrices = [one for one in differences if len(tensors[one.key].shape) > 1]
    refuse_without_layers(files.path, parsed, all_factors, dense, diffs and bool(matrices))
    reader = LayerReader(files, scales, outlines)
    dropped = _scales_alone((*groups.values(), *encoders.values()))
    makers, of_encoders = _makers(reader, groups), _makers(reader, encoders)
    taken = {key.key for parts in groups.values() for key in parts.values()}
    if diffs:
        factors += matrices
        for one in matrices:
            makers[one.layer] = partial(reader.full, one, makers.get(one.layer))
            taken.add(one.key)
    modules = {key.layer: key.pieces for key in parsed if not key.whole}
    single = split_modules(makers, modules, files.path, lambda make, rows: lambda: make().divided(rows, files.path))
    lazy = None if keep else LazyUpdates(files.paths)
    layers, encoded = (
        {layer: make() if lazy is None else lazy.layer(make) for layer, make in some.items()}
        for some in (single, of_encoders)
    )
    done = taken.union(key for key, _ in dropped)
    extras = reader.extras([key for key in parsed if key.key not in done])
    return Lora(
        layers,
        majority_dialect(factors or all_factors or parsed, evidence),
        extras,
        tuple(dropped),
        tuple(sorted({tensors[key.key].kind for key in factors or all_factors})),
        files.metadata,
        files.sha256,
        files.path,
        (*_other_entries(files), *notes_on_names(every_key, parsed, start, evidence, qkv), *reader.notes(of_encoders)),
        start,
        encoded,
    )


def _of_folder(key: LoraKey, path: Path) -> LoraKey:
    """Name the encoder of PEFT's adapter of one, which does not say of which it is; the folder that it lies in does."""
    if not key.clip or is_named(key.prefix) or SECOND not in (path.name, path.parent.name):
        return key
    name = f"{SECOND}.{key.layer.partition('.')[2]}"
    return replace(key, pieces=((name, RowSlice(name)),))


def _takes_header_alpha(keys: Iterable[LoraKey]) -> bool:
    """Return whether loaders of the file's family take a header's alpha: some do, where no tensor is an alpha."""
    keys = list(keys)
    families = Counter(key.dialect.family for key in keys if key.dialect.family is not None)
    own = [FAMILIES[name] for name, _ in families.most_common(1)]
    return any(family.header_alpha for family in own) and not any(key.part == ".alpha" for key in keys)


def _other_entries(files: LoraFiles) -> list[str]:
    """Say that a pickle holds LoRAs beside the one that was taken."""
    if not files.other_entries:
        return []
    taken, others = files.entry or "its own table", ", ".join(files.other_entries[:8])
    return [f"{files.path} holds {taken}, which was taken, and {others}; --lora-part chooses another"]


def _makers(reader: LayerReader, groups: Mapping[str, Mapping[str, LoraKey]]) -> dict[str, Callable[[], LoraLayer]]:
    """Return layer -> how it is read, for all that are more than a scale."""
    return {layer: partial(reader.layer, layer, parts) for layer, parts in groups.items() if parts.keys() - SCALES}


def _scales_alone(groups: Iterable[Mapping[str, LoraKey]]) -> list[tuple[str, str]]:
    """Return the keys of layers that have an alpha and nothing else, with the reason."""
    alone = (parts for parts in groups if not parts.keys() - SCALES)
    return [(key.key, "an alpha without factors") for parts in alone for key in parts.values()]


def _by_layer(path: Path, keys: Iterable[LoraKey]) -> dict[str, dict[str, LoraKey]]:
    """Return layer -> part -> key, for factors and scales. Raises MismatchError where two keys give the same part."""
    groups: dict[str, dict[str, LoraKey]] = {}
    for key in keys:
        if key.part not in ("A", "B", *VARIANTS, *SCALES):
            continue
        parts = groups.setdefault(key.layer, {})
        if key.part in parts:
            raise MismatchError(
                f"{path}: {parts[key.part].key!r} and {key.key!r} are the same part of layer {key.layer!r}; "
                "give one adapter for one model at a time"
            )
        parts[key.part] = key
    return groups
