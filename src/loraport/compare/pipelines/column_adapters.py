"""The adapters of a model's columns, read from their files: for each of its networks, and for its text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loraport.compare.grid.columns import Column
from loraport.files.lora.read import read_lora
from loraport.files.names.clip import encoder_of
from loraport.sampling.choice.candidates import plain
from loraport.spectral.low_rank import LowRank

Factors = Mapping[str, LowRank]


class ColumnAdapters:
    """What the columns of one model load."""

    def __init__(self, columns: Sequence[Column], networks: Sequence[str]) -> None:
        """Read the files. Raises InputError for what cannot be read, MismatchError for what is not made of factors."""
        self.columns = tuple(column for column in columns if column.files)
        self.of_networks: dict[tuple[str, str], Factors] = {}
        """(column, network) -> its updates."""
        self.of_encoders: dict[str, dict[str, dict[str, LowRank]]] = {}
        """Column -> encoder -> layer in it -> update."""
        self.notes: list[str] = []
        for column in self.columns:
            for number, network in enumerate(networks):
                place, part = (many[min(number, len(many) - 1)] for many in (column.files, column.parts))
                self._read(column, network, str(place), part, first=number == 0)

    def _read(self, column: Column, network: str, place: str, part: str | None, *, first: bool) -> None:
        lora = read_lora(place, part=part)
        self.of_networks[column.name, network] = {
            name: plain(name, update, place) for name, update in lora.updates.items()
        }
        if not first:
            return
        for name, layer in lora.encoders.items():
            encoder = encoder_of(name)
            own = self.of_encoders.setdefault(column.name, {}).setdefault(encoder, {})
            own[name.removeprefix(f"{encoder}.")] = plain(name, layer.update, place)
        if left := sorted(set(lora.extras) - lora.encoder_keys):
            self.notes.append(
                f"{column.name}: {len(left)} keys beside the factors are not applied, {left[0]}, for one ({place})"
            )

    def encoded_with(self, column: Column) -> str:
        """Return which column's text encoders embed a column's prompts: its own where it has an adapter for them."""
        return column.name if column.name in self.of_encoders else ""
