"""Models on the Hub known by their headers alone, read by range requests: what a dry run opens, and what is missing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from loraport.digests import text_digest
from loraport.errors import InputError, UnreadableError
from loraport.files.disk.user_paths import expand_home
from loraport.files.formats.safetensors_read import SafetensorsFile, described_header, read_safetensors
from loraport.files.models.checkpoint import Checkpoint, named_checkpoint, shards_of
from loraport.files.models.hub import (
    Download,
    HubFiles,
    files_on_hub,
    header_on_hub,
    looks_like_hub_id,
    lora_files_on_hub,
)
from loraport.files.models.model_files import ModelFiles
from loraport.files.models.presets import location, open_model
from loraport.files.models.shards import SAFETENSORS, WEIGHTS


class HeadersUnknownError(InputError):
    """A model's layers cannot be known without fetching it."""


@dataclass(frozen=True)
class HubHeaders:
    """Opens models as `open_model` does, but fetches nothing of a model on the Hub: its headers are read where it lies.

    What a run would fetch is collected on the way.
    """

    found: dict[str, Download] = field(default_factory=dict)

    @property
    def downloads(self) -> tuple[Download, ...]:
        """What a run would fetch, of all that was opened."""
        return tuple(one for one in self.found.values() if one.sizes)

    def __call__(self, text: str, *, part: str | None = None, layers: Collection[str] | None = None) -> Checkpoint:
        """Open a model. Raises HeadersUnknownError where only fetching would tell, and what `open_model` raises."""
        where = location(text)
        files = None if expand_home(where).exists() or not looks_like_hub_id(where) else files_on_hub(where)
        weights = {} if files is None else {name: n for name, n in files.missing.items() if _is_weights(name)}
        if files is None or not weights:
            return open_model(text, part=part, layers=layers)
        self.found[where] = Download(where, files.missing)
        if other := [name for name in files.sizes if _is_weights(name) and not name.endswith(SAFETENSORS)]:
            raise HeadersUnknownError(f"{where}: what is in {other[0]} is known when it has been fetched")
        headers = {name: _header(files, name) for name in files.sizes if name.endswith(SAFETENSORS)}
        weight_map = {key: name for name, header in headers.items() for key in header.tensors}
        wanted = set(headers)
        if layers is not None and files.has_index:
            wanted = shards_of(weight_map, frozenset(layers), part)
        kept = {name: n for name, n in files.missing.items() if name in wanted or not _is_weights(name)}
        self.found[where] = Download(where, kept)
        try:
            opened = named_checkpoint(where, _model_files(headers, wanted), part, None)
        except UnreadableError as error:
            raise HeadersUnknownError(f"{where}: how it is stored is known when it has been fetched") from error
        return replace(opened, is_here=False)

    def look_at_model(self, text: str) -> None:
        """Note what of a model on the Hub would be fetched, all of its shards included."""
        where = location(text)
        if where in self.found or expand_home(where).exists() or not looks_like_hub_id(where):
            return
        if (files := files_on_hub(where)) is not None:
            self.found[where] = Download(where, files.missing)

    def look_at_lora(self, place: str) -> None:
        """Note what of a LoRA on the Hub would be fetched. Raises HeadersUnknownError where it is not here: a plan
        needs its contents."""
        if expand_home(place).exists() or not looks_like_hub_id(place):
            return
        files = lora_files_on_hub(place)
        if files is not None and files.missing:
            self.found[place] = Download(place, files.missing)
            raise HeadersUnknownError(f"{place}: a plan needs the LoRA itself")


def _is_weights(name: str) -> bool:
    return name.lower().endswith(WEIGHTS)


def _header(files: HubFiles, name: str) -> SafetensorsFile:
    if name in files.cached:
        return read_safetensors(files.cached[name])
    header = header_on_hub(files.repo, name, files.revision)
    return described_header(Path(files.repo) / name, header, files.sizes[name])


def _model_files(headers: dict[str, SafetensorsFile], wanted: set[str]) -> ModelFiles:
    """Return the tensors of the files that are wanted, and the keys of the others."""
    taken = [header for name, header in headers.items() if name in wanted]
    return ModelFiles(
        tuple(header.path for header in taken),
        {key: tensor for header in taken for key, tensor in header.tensors.items()},
        tuple(header.metadata for header in taken),
        text_digest(*(header.digest for header in taken)),
        absent=tuple(key for name, header in headers.items() if name not in wanted for key in header.tensors),
    )
