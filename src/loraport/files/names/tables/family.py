"""Tables of names: the layers of one architecture in every spelling, and which rows of a stored tensor are whose.

Canonical names are those of a family's first naming. Matching is anchored: a name is in the table as a whole or not at
all. What is not in the table keeps its name.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

from loraport.files.names.tables.record import FamilyRecord
from loraport.lazy_property import lazy_property

if TYPE_CHECKING:
    from torch import Tensor

Naming = Literal["original", "diffusers", "comfy", "diffusion-pipe", "fastvideo", "interleaved", "xlabs"]
"""Whose spelling: the original project's, diffusers', ComfyUI's repackaged files', and so on.

`interleaved`: the original names, with the rows of fused layers in another order, which names do not tell.
"""
NAMINGS: tuple[Naming, ...] = get_args(Naming)

Layout = Literal["stacked", "interleaved"]
"""How the rows of q, k and v lie in a fused layer: one block behind the other, or head by head."""
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class RowSlice:
    """The rows of a stored layer that are one layer's: all, one or more of several equal blocks, or two swapped halves.

    The blocks stand one behind the other, or alternate in groups of `group` rows (a head's q, k, v, the next one's).

    Only rows are ever moved, so of a LoRA only B is: A belongs to the input. Models alone store transposes and lines.
    """

    name: str
    part: int = 0
    of: int = 1
    swapped: bool = False
    span: int = 1
    """How many of the blocks, from `part` on, are the layer's."""
    transposed: bool = False
    folded: int = 0
    """How many rows the parameter has, where it is stored as one line; 0 where it is stored as it is."""
    group: int = 0
    """Rows of one block before the next block's begin; 0 where each block stands in one piece."""
    square: bool = False
    """Whether the layer has as many rows as columns: another model's, of the same names, is divided otherwise."""

    @property
    def whole(self) -> bool:
        """Whether stored rows and the layer's rows are the same in the same order."""
        return self.of == 1 and not self.swapped and not self.transposed and not self.folded

    def named(self, name: str) -> RowSlice:
        """Return the same rows of another stored layer."""
        return replace(self, name=name)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether a stored tensor of this shape can be divided so."""
        if self.transposed:
            return len(shape) == 2
        if self.folded:
            return len(shape) == 1 and shape[0] % self.folded == 0
        if self.square and len(shape) > 1 and self.own_rows(shape[0]) != shape[1]:
            return False
        return self.whole or (bool(shape) and shape[0] % (2 if self.swapped else self.of * (self.group or 1)) == 0)

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the layer's shape in a stored tensor of that shape."""
        if self.folded:
            return self.folded, stored[0] // self.folded
        return stored[::-1] if self.transposed else (self.own_rows(stored[0]), *stored[1:])

    def take(self, stored: Tensor) -> Tensor:
        """Return the layer's rows out of the stored ones."""
        if self.transposed:
            return stored.mT
        if self.folded:
            return stored.reshape(self.folded, -1)
        if self.swapped:
            return halves_swapped(stored)
        if self.of == 1:
            return stored
        return self._blocks(stored)[:, self.part : self.part + self.span].flatten(0, 2)

    def put(self, stored: Tensor, own: Tensor) -> None:
        """Write the layer's rows into the stored ones, which are several layers': the way back from `take`."""
        mine = self._blocks(stored)[:, self.part : self.part + self.span]
        mine.copy_(own.reshape(mine.shape))

    def _blocks(self, stored: Tensor) -> Tensor:
        """Return a view of the stored rows as (groups, blocks, rows of one, …)."""
        height = self.group or stored.shape[0] // self.of
        return stored.view(-1, self.of, height, *stored.shape[1:])

    def own_rows(self, stored: int) -> int:
        """Return how many of the stored rows are the layer's."""
        return stored // self.of * self.span

    def stored_rows(self, own: int) -> int:
        """Return how many rows the stored layer has, if this layer has so many."""
        return own // self.span * self.of


def halves_swapped(stored: Tensor) -> Tensor:
    """Return the rows with their two halves exchanged; twice is not at all."""
    import torch

    first, second = stored.chunk(2)
    return torch.cat([second, first])


Cell = str | RowSlice | None
Row = tuple[Cell, ...]
"""One layer in a family's spellings, `{}` for the block number; None where a naming has no such layer."""

Piece = tuple[str, RowSlice]
"""A canonical name, and where it stands in the stored layer that was looked up."""


@dataclass(frozen=True)
class Family:
    """The layers (with weight, bias and the like) and the bare parameters of one architecture."""

    name: str
    namings: tuple[Naming, ...]
    """The columns of the table; the first is canonical."""
    layers: tuple[Row, ...]
    parameters: tuple[Row, ...]
    component: str = "transformer"
    """What diffusers calls the network inside a pipeline, and puts before the keys of its LoRAs."""
    partitions: tuple[str, ...] = ()
    """Further networks of the same names in a pipeline, each with LoRAs of its own."""
    written: Mapping[str, Naming] = field(default_factory=dict)
    """Format of LoRA files -> the naming that its loaders want for this family."""
    probe: str = ""
    """A layer that every block has once, its ending or its template: its input width and their number tell the size."""
    sizes: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """(that width, blocks) -> the published model of that size."""
    depths: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    """Width -> list of modules, by its canonical name -> how many of them the published model of that width has."""
    ratios: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Canonical template -> (rows, columns) of its weight as a ratio, where another family has it in another one."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Version, the newest first -> a canonical parameter that it and none before it has, where sizes do not tell."""
    marks: str = ""
    """What a trainer's header says of a LoRA's base, as a pattern (`names.evidence`)."""
    together: Mapping[str, RowSlice] = field(default_factory=dict)
    """Canonical name -> its rows in the canonical naming, where that holds several layers in one."""
    twins: Mapping[Naming, Naming] = field(default_factory=dict)
    """Naming -> the one with the same names and the rows of fused layers in another order.

    Names do not tell them apart. A LoRA whose keys hold an adapter's name (`lora_A.default`) is of the second.
    """
    fused: tuple[tuple[Naming, str, RowSlice], ...] = ()
    """(naming, canonical name, rows) of modules that take the place of a naming's own: read, never written."""
    kernels: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """(ending of a canonical name, kernel) of the convolutions; every other layer is linear."""
    mixed_ranks: bool = False
    """Whether all of its loaders scale layers of different ranks rightly, so that none is padded."""
    header_alpha: bool = False
    """Whether its loaders take a number `alpha` in a file's header for all layers, where no tensor is an alpha."""
    apart: Mapping[str, str] = field(default_factory=dict)
    """Another family, mostly a version -> why nothing moves between the two, as a clause for people."""
    record: FamilyRecord | None = None
    """What the reference says of it."""

    @property
    def canonical(self) -> Naming:
        """The naming whose names are canonical."""
        return self.namings[0]

    def pieces(self, name: str, naming: Naming, *, flat: bool = False) -> tuple[Piece, ...]:
        """Return the layers that a stored layer holds, in the order of its rows; () where the table has none."""
        return _look_up(name, self._stored(naming, flat), flat)

    def parameter_pieces(self, name: str, naming: Naming) -> tuple[Piece, ...]:
        """Return the parameters (`….q.weight`, `….modulation`) that a stored one holds."""
        if bare := _look_up(name, self._stored(naming, False, bare=True), False):
            return bare
        layer, _, leaf = name.rpartition(".")
        pieces = self.pieces(layer, naming)
        return tuple((f"{canonical}.{leaf}", rows.named(name)) for canonical, rows in pieces)

    def rows(self, canonical: str, naming: Naming) -> RowSlice | None:
        """Return where a canonical layer stands in a naming; None where that has no such layer."""
        found = _look_up(canonical, self._spelled(naming), False)
        return found[0][1] if found else None

    def parameter_rows(self, canonical: str, naming: Naming) -> RowSlice | None:
        """Return where a canonical parameter stands in a naming."""
        if bare := _look_up(canonical, self._spelled(naming, bare=True), False):
            return bare[0][1]
        layer, _, leaf = canonical.rpartition(".")
        rows = self.rows(layer, naming)
        return None if rows is None else rows.named(f"{rows.name}.{leaf}")

    def is_bare(self, name: str, naming: Naming) -> bool:
        """Return whether the table has a parameter by its full name: `blocks.0.modulation`, `….query_norm.scale`."""
        return bool(_look_up(name, self._stored(naming, False, bare=True), False))

    def version(self, parameters: Container[str]) -> str:
        """Return which version a model with these canonical parameters is; "" where the family has none, or no sign."""
        return next((version for version, sign in self.versions.items() if sign in parameters), "")

    def kernel(self, canonical: str) -> tuple[int, ...]:
        """Return the kernel of a layer in this table, as its name tells it; () for a linear layer."""
        return next((kernel for ending, kernel in self.kernels if f".{canonical}".endswith(f".{ending}")), ())

    def is_probe(self, canonical: str) -> bool:
        """Return whether a layer is the one of its block that tells the size."""
        if "{}" not in self.probe:
            return canonical.endswith(self.probe)
        return any(template == self.probe for template, _ in templates_of(canonical))

    def is_beside_probe(self, canonical: str) -> bool:
        """Return whether a layer is in the module of the probe, and so, mostly, of its input width."""
        module = self.probe.rpartition(".")[0] + "."
        if "{}" not in self.probe:
            return module in canonical
        return any(template.startswith(module) for template, _ in templates_of(canonical))

    def is_fused(self, layer: str, naming: Naming, flat: bool = False) -> bool:
        """Return whether a stored layer is of a module that takes the place of the naming's own."""
        return any((naming, flat, template) in self._copies for template, _ in templates_of(layer, flat=flat))

    def templates(self, naming: Naming, flat: bool = False) -> Iterator[str]:
        """Iterate over every stored layer of a naming, as a template."""
        return iter(self._stored(naming, flat))

    def bare_templates(self, naming: Naming) -> Iterator[str]:
        """Iterate over every stored parameter of a naming that belongs to no layer."""
        return iter(self._stored(naming, False, bare=True))

    def _stored(self, naming: Naming, flat: bool, bare: bool = False) -> Mapping[str, tuple[Piece, ...]]:
        return self._tables.get((naming, flat, bare), {})

    def _spelled(self, naming: Naming, bare: bool = False) -> Mapping[str, tuple[Piece, ...]]:
        return self._spellings.get((naming, bare), {})

    @lazy_property
    def _tables(self) -> dict[tuple[Naming, bool, bool], dict[str, tuple[Piece, ...]]]:
        """(naming, flattened, bare parameters) -> stored template -> the canonical templates in it."""
        tables: dict[tuple[Naming, bool, bool], dict[str, tuple[Piece, ...]]] = {}
        cells = [(naming, str(row[0]), rows, bare) for naming, row, rows, bare in self._cells()]
        for naming, canonical, rows, bare in (*cells, *((*copy, False) for copy in self.fused)):
            for flat in (False, True):
                table = tables.setdefault((naming, flat, bare), {})
                key = flattened(rows.name) if flat else rows.name
                table[key] = (*table.get(key, ()), (canonical, rows))
        return tables

    @lazy_property
    def _copies(self) -> frozenset[tuple[Naming, bool, str]]:
        return frozenset(
            (naming, flat, flattened(rows.name) if flat else rows.name)
            for naming, _, rows in self.fused
            for flat in (False, True)
        )

    @lazy_property
    def _spellings(self) -> dict[tuple[Naming, bool], dict[str, tuple[Piece, ...]]]:
        """(naming, bare parameters) -> canonical template -> its rows."""
        tables: dict[tuple[Naming, bool], dict[str, tuple[Piece, ...]]] = {}
        for naming, row, rows, bare in self._cells():
            tables.setdefault((naming, bare), {})[str(row[0])] = ((rows.name, rows),)
        return tables

    def _cells(self) -> Iterator[tuple[Naming, Row, RowSlice, bool]]:
        for bare, table in ((False, self.layers), (True, self.parameters)):
            for row in table:
                for naming, cell in zip(self.namings, row, strict=True):
                    if naming == self.canonical:
                        cell = self.together.get(str(cell), cell)
                    if cell is not None:
                        yield naming, row, cell if isinstance(cell, RowSlice) else RowSlice(cell), bare


def flattened(name: str) -> str:
    """Return a layer name as kohya's trainers write it: dots become underscores. The way back is a look-up."""
    return name.replace(".", "_")


_NUMBER = re.compile(r"(?<![^.])(0|[1-9]\d*)(?![^.])")
_FLAT_NUMBER = re.compile(r"(?<![^_])(0|[1-9]\d*)(?![^_])")


def templates_of(name: str, *, flat: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (template, block number) of a name: as it stands, and with each of its numbers taken for the block's."""
    yield name, ""
    for number in (_FLAT_NUMBER if flat else _NUMBER).finditer(name):
        yield f"{name[: number.start()]}{{}}{name[number.end() :]}", number[1]


def _look_up(name: str, table: Mapping[str, tuple[Piece, ...]], flat: bool) -> tuple[Piece, ...]:
    if "{}" in name:
        return ()
    for template, number in templates_of(name, flat=flat):
        if pieces := table.get(template):
            return tuple(
                (canonical.replace("{}", number), rows.named(rows.name.replace("{}", number)))
                for canonical, rows in pieces
            )
    return ()
