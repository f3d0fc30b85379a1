"""Carry a LoRA's modulation layers over to a model whose modulation is stored otherwise: full, pruned, of reduced rank.

What such a layer adds is a function of time alone, and stays the same function. No weight of the layers is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from loraport.errors import MismatchError
from loraport.files.adapters.lora_layer import LoraLayer
from loraport.files.adapters.outline import Outline
from loraport.files.adapters.updates import LayerUpdate, exact_update, needs_weight
from loraport.files.formats.safetensors_read import StoredTensor
from loraport.files.lora.layer_reader import BIASES_OF_B
from loraport.files.lora.read import Lora
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.names.families import MINIMAX_H3
from loraport.files.names.tables.minimax_h3 import REDUCED, TABLE
from loraport.parametrizations.curve import AffineMap, affine_map, carried, constant_as_factor
from loraport.parametrizations.time_path import TimePath
from loraport.spectral.low_rank import LowRank

TOLERANCE = 1e-5
"""Relative error of the inputs that is taken for none."""
GRID = 1025
"""Times at which inputs are compared where no table says which."""


def modulation_layers(lora: Lora) -> list[str]:
    """Return the layers of a LoRA that see nothing but the time."""
    if lora.dialect.family != MINIMAX_H3.name:
        return []
    return [name for name in lora.layers if name == "norm_out.linear" or name.endswith(".adaln_proj.linear")]


@dataclass(frozen=True)
class Carrier:
    """How layers of one width are carried over to a model, and what that leaves."""

    to: AffineMap
    one: Tensor | None
    """The combination of the new inputs that is 1 at all times; None where there is none, and a bias is needed."""
    of: str
    """What the layers were made for, for people."""
    target: TimePath

    def carry(self, update: LowRank, bias: Tensor | None) -> tuple[LowRank, Tensor | None]:
        """Return an update, and the bias that it was given beside it, for the new inputs."""
        B, A, constant = carried(update.B, update.A, self.to)
        constant = constant if bias is None else constant + bias.double()
        if self.one is not None:
            B, A = constant_as_factor(B, A, constant, self.one)
        rest = constant.float() if self.one is None and constant.any() else None
        return LowRank(B.float().contiguous(), A.float().contiguous(), update.lost_energy), rest

    def note(self, count: int) -> str:
        """Say what was done with so many layers."""
        error = "exactly" if self.to.error < 1e-7 else f"up to {self.to.error:.1g} of what they see"
        cut = ", which is what the target's own form leaves out" if self.to.error > TOLERANCE else ""
        beside = "a bias beside them (.diff_b) holds what is constant" if self.one is None else "no bias is needed"
        return (
            f"{count} modulation layers (adaln_proj) made for {self.of} are carried over to {self.target.where}, "
            f"{_form(self.target)}: at every time they add the same, {error}{cut}; {beside}"
        )


def _form(path: TimePath) -> str:
    return f"which is {path.form} ({path.inputs} inputs)"


def find_carrier(width: int, source: TimePath | None, target: TimePath) -> Carrier | None:
    """Return how layers that see `width` numbers are carried over to the target; None where they fit as they are.

    They see what the source's layers see, or those of its full model; without a source, those of the target's.
    Raises MismatchError where neither model tells what they see, and where the target's inputs cannot give it.
    """
    if source is not None and source.form == target.form == "full" and width == target.inputs:
        return None  # the same layers: what differs is drift
    grid = target.grid or (source.grid if source else None) or GRID
    times = torch.linspace(0, 1, grid, dtype=torch.float64)
    y = target.at(times)
    seen: tuple[Tensor, str] | None = None
    if source is not None and width in (source.inputs, source.full_inputs):
        own = width == source.inputs
        seen = (source.at(times), f"{source.where} ({source.form}, {width} inputs)") if own else (
            source.full_at(times), f"the full model of {source.where} ({width} inputs)"
        )  # fmt: skip
    elif width == target.inputs:
        return None
    elif width == target.full_inputs:
        seen = target.full_at(times), f"the full model ({width} inputs)"
    if seen is None:
        raise MismatchError(
            f"its modulation layers see {width} numbers, and {target.where}'s {target.inputs} ({target.form}); what "
            "they see is told by the time embedder or the table of the model that they were made for: name that as "
            "--source, and the one that they are to fit as --target of `loraport convert`"
        )
    x, of = seen
    if x.shape == y.shape and float((x - y).norm()) <= 1e-6 * float(y.norm()):
        return None
    one = None if target.form == "pruned" else affine_map(torch.ones(grid, 1), y, constant=False).M[0]
    to = affine_map(x, y, constant=target.form == "pruned")
    if to.error > max(TOLERANCE, 2 * to.least):
        raise MismatchError(
            f"its modulation layers, made for {of}, cannot be carried over to {target.where}, {_form(target)}: the "
            f"best map leaves {to.error:.1g} of what they see, more than {max(TOLERANCE, 2 * to.least):.1g}; the two "
            "are not forms of one model: name as --source the model that they were made for, full if there is one"
        )
    return Carrier(to, one, of, target)


@dataclass(frozen=True)
class Carried:
    """A LoRA with its modulation layers for a target, and what to say of it."""

    lora: Lora
    layers: dict[str, LowRank]
    """The layers that were carried over, where their updates were given."""
    notes: tuple[str, ...]


def carry_over(
    lora: Lora, source: TimePath | None, target: TimePath, layers: Mapping[str, LayerUpdate] | None = None
) -> Carried:
    """Return the LoRA with its modulation layers for the target, and their biases among its extras.

    `layers` are the updates where they are at hand already. Raises MismatchError where it cannot be done.
    """
    by_width: dict[int, list[str]] = {}
    for name in modulation_layers(lora):
        by_width.setdefault(lora.layers[name].outline.shape[1], []).append(name)
    own = lora.updates if layers is None else layers
    extras, done, notes = dict(lora.extras), dict[str, LowRank](), []
    again: dict[str, LoraLayer] = {}
    for width, names in by_width.items():
        if (carrier := find_carrier(width, source, target)) is None:
            continue
        for name in names:
            if name not in own:
                continue
            bias_key, bias = _bias(lora, name)
            update, rest = carrier.carry(_as_factors(lora, name, own[name]), bias)
            again[name] = replace(
                lora.layers[name],
                read=partial(_carried_again, lora, name, carrier, bias),
                known=Outline("LoRA", update.shape, update.rank),
                settled=_SETTLED,
            )
            if layers is not None:
                done[name] = update
            if bias_key:
                del extras[bias_key]
            if rest is not None:
                key = bias_key or _new_bias_key(lora, name)
                extras[key] = StoredTensor(key, lora.path, "float32", tuple(rest.shape), partial(_same, rest))
        notes.append(carrier.note(len(names)))
    carried_layers = {name: again.get(name, layer) for name, layer in lora.layers.items()}
    return Carried(
        replace(lora, layers=carried_layers, extras=extras), done if layers is not None else {}, tuple(notes)
    )


_SETTLED = "carried over: the models store this layer otherwise, so it has no drift that could be measured"


def _carried_again(lora: Lora, name: str, carrier: Carrier, bias: Tensor | None) -> LowRank:
    """Read a layer and carry it over: of many LoRAs at once only the biases are held in memory."""
    return carrier.carry(_as_factors(lora, name, lora.layers[name].update), bias)[0]


def _as_factors(lora: Lora, name: str, update: LayerUpdate) -> LowRank:
    if needs_weight(update):
        raise MismatchError(
            f"{lora.path}: layer {name} is a {lora.layers[name].outline.kind}, which depends on the weight, and cannot "
            "be carried over to a layer that is stored otherwise"
        )
    exact = exact_update(update, None)
    if isinstance(exact, LowRank):
        return exact
    out, width = exact.shape
    return LowRank(exact, torch.eye(width)) if width <= out else LowRank(torch.eye(out), exact)


def _bias(lora: Lora, layer: str) -> tuple[str, Tensor | None]:
    """Return the key and the value of the bias that a file has beside a layer."""
    for key, stored in lora.extras.items():
        parsed = lora.parse(key)
        if parsed.part in (".diff_b", *BIASES_OF_B) and parsed.layer == layer:
            return key, stored.read().float()
    return "", None


def _new_bias_key(lora: Lora, layer: str) -> str:
    """Return the key of a bias as the loaders of the LoRA's own dialect read it."""
    dialect = lora.dialect
    by_factor = dialect.naming == "diffusers" and not dialect.flat and dialect.pair[1].endswith(".weight")
    return dialect.key(layer, dialect.pair[1].removesuffix(".weight") + ".bias" if by_factor else ".diff_b")


def _same(tensor: Tensor) -> Tensor:
    return tensor


def differ_in_form(lora: Lora, source: Checkpoint, target: Checkpoint) -> bool:
    """Return whether a LoRA has modulation layers and its models may store them otherwise, by names and shapes."""
    if not (layers := modulation_layers(lora)):
        return False
    if any(name in model or name in model.absent for name in (TABLE, REDUCED) for model in (source, target)):
        return True
    own = {name: f"{name}.weight" for name in layers if f"{name}.weight" in target}
    return any(lora.layers[name].outline.shape[1] != target.shape(weight)[-1] for name, weight in own.items())


def carry_or_drop(lora: Lora, source: TimePath | None, target: TimePath | None) -> Lora:
    """Return the LoRA with its modulation layers for the target; where that cannot be, without them, and why."""
    if target is None:
        return lora
    try:
        done = carry_over(lora, source, target)
    except MismatchError as error:
        names = set(modulation_layers(lora))
        biases = {key for name in names if (key := _bias(lora, name)[0])}  # the constant part of what is dropped
        keys = [key for name in sorted(names) for key in lora.layers[name].keys]
        gone = [(key, str(error)) for key in (*keys, *sorted(biases))]
        kept = {name: layer for name, layer in lora.layers.items() if name not in names}
        if not kept:
            raise
        extras = {key: stored for key, stored in lora.extras.items() if key not in biases}
        return replace(lora, layers=kept, extras=extras, dropped=(*lora.dropped, *gone))
    return replace(done.lora, notes=(*lora.notes, *done.notes))
