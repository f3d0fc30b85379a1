"""What one layer costs, by its shape and the method: seconds of one thread on the machine where they were measured.

`benchmarks.layer_costs` measured layers from 256 × 256 to 13824 × 5120 (LoRA of rank 32, fp32 source, bf16 target) and
fitted the coefficients, each stage as the sums that its work grows with. With m ≥ n the two sizes of a layer: reading,
hashing and norms grow with m·n; the Gram matrix and Eq. 2 with m·n²; eigenvectors with n³; packed bases with n².
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loraport.inputs.open import TransferInputs
from loraport.inputs.plan import LayerJob
from loraport.methods.recipes import Recipe
from loraport.spectral.kernels import EXACT_UP_TO


@dataclass(frozen=True)
class Growth:
    """A quantity as a sum of what it grows with, in seconds or bytes."""

    each: float = 0.0
    of_mn: float = 0.0
    of_nn: float = 0.0
    of_mnn: float = 0.0
    of_nnn: float = 0.0

    def at(self, shape: tuple[int, int]) -> float:
        """Return the quantity of a layer of this shape."""
        m, n = max(shape), min(shape)
        return self.each + self.of_mn * m * n + self.of_nn * n * n + self.of_mnn * m * n * n + self.of_nnn * n**3


@dataclass(frozen=True)
class CostTable:
    """The stages of a layer on one kind of device; `again`: with the cache's entry there."""

    read: Growth
    basis: Growth
    basis_again: Growth
    routing_square: Growth
    routing_square_again: Growth
    routing_tall: Growth
    routing_tall_again: Growth
    transfer: dict[str, Growth]
    """Method -> what is its own; the empty name is for all others."""
    memory: Growth
    """Bytes of main memory that a layer takes at most, beside the program itself: of a processor's while it is in work,
    of a card's as long as what was read for it waits, in blocks that PyTorch rounds up to powers of two."""


@dataclass(frozen=True)
class Device:
    """What layers cost on one kind of device: those up to `EXACT_UP_TO` directions, and larger ones, whose entries are
    compared in single precision.
    """

    exact: CostTable
    large: CostTable

    def table(self, shape: tuple[int, int]) -> CostTable:
        """Return the table for a layer of this shape."""
        return self.exact if min(shape) <= EXACT_UP_TO else self.large


_EXACT = CostTable(
    read=Growth(0.003, of_mn=7e-9, of_nn=3e-9),
    basis=Growth(0.0066, of_mn=5e-9, of_mnn=2.2e-11, of_nnn=1.76e-10),
    basis_again=Growth(0.0003, of_mn=2e-9, of_nnn=1.7e-12),
    routing_square=Growth(0.0013, of_mnn=1.15e-10),
    routing_square_again=Growth(0.001, of_nnn=7e-12),
    routing_tall=Growth(0.036, of_mnn=9.5e-11),
    routing_tall_again=Growth(0.001, of_mnn=3.5e-12),
    transfer={
        "": Growth(0.011, of_mn=4e-8, of_nn=5e-8),
        "casa": Growth(0.08, of_mn=8e-9, of_nn=4e-8),
        "core": Growth(0.0028, of_mn=2.5e-9, of_nn=1.1e-9),
        "prolora": Growth(0.0024, of_nn=5.6e-9, of_mnn=5.9e-11, of_nnn=1.6e-11),
        "lora-x": Growth(0.0009, of_mn=1.9e-9, of_nn=3.2e-9, of_mnn=2.1e-11),
        "drift-orthogonal": Growth(0.0074, of_mn=1.1e-8, of_mnn=2.6e-12),
        "direct": Growth(0.001, of_mn=5.6e-10, of_nn=4.4e-10),
    },
    memory=Growth(3.3e7, of_mn=31, of_nn=63),
)
_LARGE = CostTable(
    read=_EXACT.read,
    basis=Growth(of_mn=5e-9, of_mnn=2.5e-11, of_nnn=2.4e-10),
    basis_again=Growth(of_mn=1.5e-9, of_nn=9e-9),
    routing_square=Growth(of_nnn=6.2e-11),
    routing_square_again=Growth(of_nn=2e-8),
    routing_tall=Growth(of_mnn=7.3e-11),
    routing_tall_again=Growth(of_nnn=1.3e-11),
    transfer={
        **_EXACT.transfer,
        "": Growth(of_mn=2.4e-8, of_nn=4.5e-8),
        "casa": Growth(of_mn=2.4e-8, of_nn=4.5e-8),
    },
    memory=Growth(2e8, of_mn=10, of_nn=26),
)
PROCESSOR = Device(_EXACT, _LARGE)
"""CPU seconds of one thread of the machine of the table in docs/explanation/speed.md."""

_ON_CARD = CostTable(
    read=Growth(0.005, of_mn=2.5e-8),
    basis=Growth(0.005, of_nn=2.7e-8),
    basis_again=Growth(0.005, of_nn=9e-9),
    routing_square=Growth(0.004, of_mnn=8e-13),
    routing_square_again=Growth(0.004, of_mnn=8e-13),
    routing_tall=Growth(0.004, of_mnn=8e-13),
    routing_tall_again=Growth(0.004, of_nn=3e-9),
    transfer={"": Growth(0.02, of_mn=4e-9)},
    memory=Growth(of_mn=12, of_nn=8),
)
CARD = Device(_ON_CARD, _ON_CARD)
"""Seconds on one H100, file to file, of one block of Wan 2.1's two sizes; reading is the processor's beside it."""


@dataclass(frozen=True)
class LayerSeconds:
    """What a layer takes: once for all runs that share it, and for each of them."""

    shared: float
    shared_again: float
    """With its basis and its routing in the cache."""
    own: float


def layer_seconds(shape: tuple[int, int], recipe: Recipe, device: Device = PROCESSOR) -> LayerSeconds:
    """Return what a layer of this shape takes by this method on a device of this kind."""
    table = device.table(shape)
    square = shape[0] == shape[1]
    read = table.read.at(shape)
    bases = recipe.needs_basis + recipe.needs_target
    basis, basis_again = bases * table.basis.at(shape), bases * table.basis_again.at(shape)
    routing = routing_again = 0.0
    if recipe.needs_routing:
        routing = (table.routing_square if square else table.routing_tall).at(shape)
        routing_again = (table.routing_square_again if square else table.routing_tall_again).at(shape)
    name = recipe.name.partition(":")[0]
    own = table.transfer.get(name, table.transfer[""]).at(shape)
    return LayerSeconds(read + basis + routing, read + basis_again + routing_again, own)


def bar_weights(batch: Sequence[TransferInputs]) -> tuple[dict[str, int], ...]:
    """Return, for each run of one pass, layer -> its share of a bar.

    Whether the cache has a layer's basis is known when its weight has been read, so a bar takes what lies half-way
    between a first run and a further one, by their ratio.
    """
    first, again = run_seconds(batch), run_seconds(batch, again=True)
    return tuple(
        {name: as_weight(math.sqrt(seconds * other[name])) for name, seconds in own.items()}
        for own, other in zip(first, again, strict=True)
    )


def run_seconds(
    batch: Sequence[TransferInputs], device: Device = PROCESSOR, *, again: bool = False
) -> tuple[dict[str, float], ...]:
    """Return, for each run of one pass, layer -> its seconds; `again`: with bases and routings in the cache.

    What runs share of a layer counts for the first that needs it.
    """
    paid: dict[str, float] = {}
    runs: list[dict[str, float]] = []
    for inputs in batch:
        own: dict[str, float] = {}
        for job in inputs.plan.of("transfer"):
            cost = layer_seconds(job.shape, inputs.config.recipe, device)
            rest = max(0.0, (cost.shared_again if again else cost.shared) - paid.get(job.name, 0.0))
            paid[job.name] = paid.get(job.name, 0.0) + rest
            own[job.name] = rest + cost.own
        runs.append(own)
    return tuple(runs)


def transfer_cost(inputs: TransferInputs) -> float:
    """Return what one run takes by itself, in seconds of the machine where layers were measured: good for ordering."""
    return sum(run_seconds([inputs])[0].values())


def layer_weight(job: LayerJob, recipe: Recipe) -> int:
    """Return a layer's share of a bar of a work on single layers."""
    cost = layer_seconds(job.shape, recipe)
    return as_weight(math.sqrt((cost.shared + cost.own) * (cost.shared_again + cost.own)))


def as_weight(seconds: float) -> int:
    """Return seconds as a share of a bar, at least 1."""
    return max(1, round(1000 * seconds))
