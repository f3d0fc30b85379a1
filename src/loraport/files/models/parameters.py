"""Read single parameters of a model, in whatever codes the rest of it is stored: only they are checked and read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from loraport.errors import FileFormatError, InputError, MismatchError
from loraport.files.formats.in_memory import InMemory
from loraport.files.formats.safetensors_read import StoredTensor
from loraport.files.models.checkpoint import on_disk, shards_of
from loraport.files.models.locate import find_files
from loraport.files.models.model_files import files_in_memory, read_files
from loraport.files.models.networks import are_of_network, find_network
from loraport.files.models.presets import location
from loraport.files.names.families import Family
from loraport.files.names.lookup import detect_naming


@dataclass(frozen=True)
class ModelParameters:
    """Some parameters of a model, by canonical names."""

    where: str
    family: Family | None
    tensors: dict[str, StoredTensor]


def open_parameters(where: str, names: Collection[str], *, part: str | None = None) -> ModelParameters:
    """Open those of the named parameters that a model has; `where` and `part` are as for `open_model`.

    Of shards with an index only those with these parameters are fetched and opened.
    Raises InputError and FileFormatError for what cannot be read.
    """
    try:
        if isinstance(where, InMemory):
            files, inner = files_in_memory(where), None
        else:
            needed = partial(shards_of, layers=frozenset(names), part=part)
            path = on_disk(location(where), needed)
            inner = part if part is not None and path.is_dir() and (path / part).is_dir() else None
            found = find_files(path, inner, needed)
            files = read_files(found.paths, part if inner is None else None, True, are_of_network)
        network = find_network([*files.tensors, *files.absent], part if files.part is None and inner is None else None)
    except OSError as error:
        raise InputError(f"{error.filename or where} cannot be read: {error.strerror or error}") from error
    except MismatchError as error:
        raise FileFormatError(f"{where}: {error}") from error
    stripped = {key: network.name(key) for key in network.names}
    spelling = detect_naming(stripped.values())
    if spelling is None:
        return ModelParameters(str(where), None, {})
    family, naming = spelling
    tensors = {}
    for key, name in stripped.items():
        for canonical, rows in family.parameter_pieces(name, naming) if key in files.tensors else ():
            if canonical in names and rows.whole:
                tensors[canonical] = files.tensors[key]
    return ModelParameters(str(where), family, tensors)
