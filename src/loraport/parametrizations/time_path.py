"""What a model's modulation layers see at each time: read from the few tensors that decide it, and from no other.

MiniMax-H3 is published in three forms. Full: a time embedder. Of reduced rank: the same, and a basis that its output is
projected on. Pruned: a table over time in place of both; some files keep the basis and the mean that it was made with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from loraport.errors import FileFormatError
from loraport.files.formats.safetensors_read import StoredTensor
from loraport.files.models.parameters import open_parameters
from loraport.files.names.families import MINIMAX_H3
from loraport.files.names.tables.minimax_h3 import BASIS, MEAN, REDUCED, TABLE
from loraport.parametrizations.curve import time_curve

Form = Literal["full", "pruned", "of reduced rank"]
EMBEDDER = tuple(f"time_embedder.linear_{layer}.{leaf}" for layer in (1, 2) for leaf in ("weight", "bias"))
DECIDING = (*EMBEDDER, TABLE, BASIS, MEAN, REDUCED)
"""The parameters that decide what modulation layers see."""


@dataclass(frozen=True)
class TimePath:
    """One model's way from the time to the inputs of its modulation layers."""

    where: str
    form: Form
    tensors: Mapping[str, Tensor] = field(repr=False)
    """Those of DECIDING that it has."""

    @property
    def inputs(self) -> int:
        """How many numbers its modulation layers see."""
        if self.form == "pruned":
            return self.tensors[TABLE].shape[1]
        return self.tensors[REDUCED].shape[0] if self.form == "of reduced rank" else self.full_inputs or 0

    @property
    def full_inputs(self) -> int | None:
        """How many the full model's see; None where this model does not tell its curve."""
        if EMBEDDER[-1] in self.tensors:
            return self.tensors[EMBEDDER[-1]].shape[0]
        return self.tensors[MEAN].shape[0] if {BASIS, MEAN} <= self.tensors.keys() else None

    @property
    def grid(self) -> int | None:
        """How many times its table has."""
        return self.tensors[TABLE].shape[0] if TABLE in self.tensors else None

    def at(self, times: Tensor) -> Tensor:
        """Return what its modulation layers see, [times, inputs] in float64."""
        if self.form == "pruned":
            return _between(self.tensors[TABLE].double(), times)
        full = self.full_at(times)
        return full if self.form == "full" else full @ self.tensors[REDUCED].double().mT

    def full_at(self, times: Tensor) -> Tensor:
        """Return what the full model's see: of a pruned one that keeps its basis, what the table holds of it."""
        if EMBEDDER[-1] in self.tensors:
            W1, b1, W2, b2 = (self.tensors[name] for name in EMBEDDER)
            return time_curve(W1, b1, W2, b2, times)
        return self.at(times) @ self.tensors[BASIS].double() + self.tensors[MEAN].double()


def _between(table: Tensor, times: Tensor) -> Tensor:
    """Return a table's rows at times in [0, 1], where it is given at equal steps."""
    knots = torch.linspace(0, 1, len(table), dtype=torch.float64)
    if len(times) == len(knots) and torch.equal(times, knots):
        return table
    from scipy.interpolate import CubicSpline  # only a pruned model needs it

    return torch.from_numpy(CubicSpline(knots.numpy(), table.numpy())(times.numpy()))


def read_time_path(where: str, part: str | None = None) -> TimePath | None:
    """Return a model's time path; None for a model of another family.

    Raises FileFormatError where tensors of it are missing, or are stored as codes or in shapes that do not fit, and
    what `open_parameters` raises.
    """
    found = open_parameters(where, DECIDING, part=part)
    if found.family is not MINIMAX_H3:
        return None
    stored = found.tensors
    if TABLE in stored:
        form: Form = "pruned"
        kept = {TABLE} | ({BASIS, MEAN} if {BASIS, MEAN} <= stored.keys() else set())
    elif stored.keys() >= set(EMBEDDER):
        form, kept = ("of reduced rank", {*EMBEDDER, REDUCED}) if REDUCED in stored else ("full", set(EMBEDDER))
    else:
        raise FileFormatError(
            f"{where}: neither a whole time embedder (time_embedder.*) nor a table over time (adaln_t_table) is in it, "
            "by which its modulation is told; give the whole model"
        )
    path = TimePath(where, form, {name: _numbers(where, stored[name]) for name in sorted(kept)})
    _check(path)
    return path


def _numbers(where: str, stored: StoredTensor) -> Tensor:
    tensor = stored.read().double() if stored.is_real and not stored.kind.startswith("float8") else None
    if tensor is None or not torch.isfinite(tensor).all():
        kind = f"stored as {stored.kind}" if tensor is None else "not finite"
        raise FileFormatError(
            f"{where}: {stored.key!r} is {kind}, and decides what its modulation sees; use bf16 or fp32"
        )
    return tensor


def _check(path: TimePath) -> None:
    """Raise FileFormatError where the shapes do not go together."""
    shapes = {name: tuple(tensor.shape) for name, tensor in path.tensors.items()}
    W1, b1, W2, b2 = (shapes.get(name, ()) for name in EMBEDDER)
    wrong = path.form != "pruned" and not (
        len(W1) == len(W2) == 2 and W1[1] % 2 == 0 and b1 == W1[:1] and W2[1:] == W1[:1] and b2 == W2[:1]
    )
    wrong |= path.form == "pruned" and (len(shapes[TABLE]) != 2 or shapes[TABLE][0] < 4)
    wrong |= path.form == "of reduced rank" and shapes[REDUCED][1:] != b2
    wrong |= BASIS in shapes and shapes[BASIS] != (shapes[TABLE][-1], *shapes[MEAN])
    if wrong:
        raise FileFormatError(f"{path.where}: the tensors of its time embedder do not fit together: {shapes}")
