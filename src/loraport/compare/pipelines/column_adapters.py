"""The adapters of a model's columns, read from their files: for each of its networks, and for its text encoders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from loraport.compare.grid.columns import Column
from loraport.errors import MismatchError
from loraport.files.lora.read import read_lora
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.names.clip import encoder_of
from loraport.files.names.families import flattened
from loraport.sampling.choice.candidates import plain
from loraport.spectral.low_rank import LowRank

Factors = Mapping[str, LowRank]


class ColumnAdapters:
    """What the columns of one model load."""

    def __init__(self, columns: Sequence[Column], networks: Mapping[str, Checkpoint]) -> None:
        """Read the files, and compare them with the headers of the networks.

        Raises InputError for what cannot be read, MismatchError for what is not made of factors, or for another model.
        """
        self.columns = tuple(column for column in columns if column.files)
        self.of_networks: dict[tuple[str, str], Factors] = {}
        """(column, network) -> its updates."""
        self.of_encoders: dict[str, dict[str, dict[str, LowRank]]] = {}
        """Column -> encoder -> layer in it -> update."""
        self.notes: list[str] = []
        for column in self.columns:
            for number, (network, checkpoint) in enumerate(networks.items()):
                place, part = (many[min(number, len(many) - 1)] for many in (column.files, column.parts))
                self._read(column, network, checkpoint, str(place), part, first=number == 0)

    def _read(
        self, column: Column, network: str, checkpoint: Checkpoint, place: str, part: str | None, *, first: bool
    ) -> None:
        lora = read_lora(place, part=part)
        flat = {flattened(layer): layer for layer in checkpoint.layers} if lora.unresolved else {}
        updates = {flat.get(name, name): plain(name, update, place) for name, update in lora.updates.items()}
        missing = [name for name in updates if f"{name}.weight" not in checkpoint]
        if len(missing) == len(updates) and not lora.encoders:
            raise MismatchError(
                f"{place}: none of its {len(updates)} layers is in {checkpoint.where}; was it made for it?"
            )
        for name, update in updates.items():
            shape = () if name in missing else checkpoint.shape(f"{name}.weight")
            if shape and update.shape != (shape[0], math.prod(shape[1:])):
                sizes = " × ".join(map(str, update.shape)), " × ".join(map(str, shape))
                raise MismatchError(
                    f"{place}: its layer {name} is {sizes[0]}, that of {checkpoint.where} {sizes[1]}; was it made "
                    "for this model?"
                )
        if missing:
            self.notes.append(
                f"{column.name}: {len(missing)} of its {len(updates)} layers are not in the {network}, {missing[0]}, "
                "for one, and are not applied"
            )
        self.of_networks[column.name, network] = {n: update for n, update in updates.items() if n not in missing}
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
