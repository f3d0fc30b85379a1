"""Pair the layers of models of different depth: each target layer with the source layer that is most similar to it.

SSD-1B is an SDXL with blocks taken out and the rest trained on, so its block i need not be SDXL's block i. Layers are
compared within one role (the name without block numbers) and one shape, by the overlap Φ of their leading singular
directions, as ProLoRA does (arXiv 2506.04244); the smaller of left and right counts. Which direction of the pairing and
which cut-off ProLoRA uses is not stated anywhere: here a target layer takes the best source layer, and a source layer
may serve several.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from loraport.errors import MismatchError, SettingsError
from loraport.files.lora.read import Lora
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.names.blocks import layer_block, layer_role
from loraport.inputs.accelerator import AcceleratedModel, Target
from loraport.methods.subspace import leading, similarity
from loraport.progress import Progress, counter
from loraport.spectral.basis import Basis
from loraport.store.basis_source import BasisSource

LEAST = 0.8
"""ProLoRA's threshold (its §5.3.4)."""
SUBSPACE = "energy:0.5"
"""Half of the energy takes at most half of the directions, so unrelated layers overlap by a half at most."""


@dataclass(frozen=True)
class Group:
    """All layers of one role and shape, and how alike they are: a row a source layer, a column a target layer."""

    role: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    similarity: tuple[tuple[float, ...], ...]

    def best(self, target: str) -> tuple[str, float]:
        """Return the most similar source layer of a target layer; of equal ones the first."""
        column = [row[self.targets.index(target)] for row in self.similarity]
        place = max(range(len(column)), key=column.__getitem__)
        return self.sources[place], column[place]


@dataclass(frozen=True)
class Pairing:
    """Which source layer each target layer corresponds to, by similarity."""

    groups: tuple[Group, ...]
    least: float = LEAST
    alone: tuple[str, ...] = ()
    """Target layers of a role and shape that no source layer has."""

    @property
    def pairs(self) -> dict[str, tuple[str, float]]:
        """Target layer -> its source layer and their similarity, where it is high enough."""
        return {target: best for target, best in self._best() if best[1] >= self.least}

    @property
    def moved(self) -> int:
        """How many target layers correspond to a source layer of another name."""
        return sum(target != origin for target, (origin, _) in self.pairs.items())

    @property
    def unmatched(self) -> dict[str, tuple[str, float]]:
        """Target layers that no source layer is similar enough to, with the best one."""
        return {target: best for target, best in self._best() if best[1] < self.least}

    def _best(self) -> Iterator[tuple[str, tuple[str, float]]]:
        return ((target, group.best(target)) for group in self.groups for target in group.targets)

    def source_view(self, source: Checkpoint) -> Checkpoint:
        """Return the source with its layers under the names of the target layers that correspond to them."""
        return source.renamed({f"{target}.weight": f"{origin}.weight" for target, (origin, _) in self.pairs.items()})

    def of(self, lora: Lora, where: str) -> Lora:
        """Return the LoRA with its layers under the names of the target layers that correspond to theirs.

        Layers without a target layer are dropped with the reason, and so are differences and biases.
        """
        names = {target: origin for target, (origin, _) in self.pairs.items() if origin in lora.layers}
        if not names:
            raise MismatchError(
                f"no layer of {where} is like one of the LoRA's: the best similarity is "
                f"{max((phi for _, (_, phi) in self._best()), default=0.0):.2f}, less than {self.least:g}; give the "
                "models that this LoRA belongs to, or --pairing name"
            )
        lost = [
            (key, f"no layer of {where} is like its own (similarity {self.least:g} or more)")
            for layer in lora.layers.keys() - set(names.values())
            for key in lora.layers[layer].keys
        ]
        beside = {key for key in lora.extras if not lora.parse(key).text_encoder}
        lost += [(key, "differences and biases are not moved to another layer") for key in beside]
        return replace(
            lora,
            layers={target: lora.layers[origin] for target, origin in names.items()},
            extras={key: tensor for key, tensor in lora.extras.items() if key not in beside},
            dropped=(*lora.dropped, *sorted(lost)),
        )

    def reason(self, target: str) -> str | None:
        """Return which source layer a target layer corresponds to, in words."""
        origin, phi = self.pairs.get(target, ("", 0.0))
        return f"from {origin}, similarity {phi:.2f}" if origin else None

    def notes(self) -> list[str]:
        """Return what the user should know before the run."""
        notes = [
            f"the models differ in depth: {len(self.pairs)} target layers are paired by similarity, {self.moved} of "
            "them with a layer of another name (--pairing name pairs by name)"
        ]
        if self.unmatched:
            listed = [f"{target} ({phi:.2f} with {origin})" for target, (origin, phi) in self.unmatched.items()]
            notes.append(
                f"{len(listed)} target layers are like no source layer (similarity below {self.least:g}) and get "
                f"nothing: {', '.join(listed)}"
            )
        if self.alone:
            notes.append(
                f"of {len(self.alone)} target layers the source has none of the same role and shape, so they get "
                f"nothing: {', '.join(self.alone)}"
            )
        return notes

    def as_json(self) -> dict[str, Any]:
        """Return every pair, the layers without one, and the similarities."""
        return {
            "least": self.least,
            "pairs": [[target, origin, phi] for target, (origin, phi) in self.pairs.items()],
            "unmatched": [[target, origin, phi] for target, (origin, phi) in self.unmatched.items()],
            "alone": list(self.alone),
            "groups": [vars(group) for group in self.groups],
        }


def find_pairing(
    lora_layers: Iterable[str],
    source: Checkpoint,
    target: Target,
    mode: str,
    least: float,
    bases: BasisSource,
    progress: Progress,
) -> Pairing | None:
    """Return the pairing by similarity; None if layers are paired by name, as asked or because their names agree.

    Raises SettingsError for targets with an accelerator.
    """
    if mode == "name":
        return None
    roles = {layer_role(layer) for layer in lora_layers}
    if mode == "auto" and not differ_in_depth(roles, source, target):
        return None
    if isinstance(target, AcceleratedModel):
        raise SettingsError(
            f"{target.where} and {source.where} differ in depth, and layers are paired by similarity between two "
            "models; bake the accelerator into its model first (loraport merge), or pair by name (--pairing name)"
        )
    together, alone = comparable(roles, source, target)
    total = sum(len(sources) + len(targets) for _, _, sources, targets in together)
    report = counter(progress, "comparing layers", total)

    def basis(model: Checkpoint, layer: str) -> Basis:
        weight = model.read(layer)
        directions = leading(bases.basis(weight.matrix, weight.fingerprint), SUBSPACE)
        report(1)
        return directions

    groups = []
    for role, shape, sources, targets in together:
        of_source = [basis(source, layer) for layer in sources]
        columns = [
            [similarity(one, other) for one in of_source] for other in (basis(target, layer) for layer in targets)
        ]
        rows = tuple(tuple(column[place] for column in columns) for place in range(len(sources)))
        groups.append(Group(role, shape, tuple(sources), tuple(targets), rows))
    pairing = Pairing(tuple(groups), least, alone)
    if mode == "auto" and pairing.pairs and not pairing.moved:
        _refuse_incomplete(roles, source, target)
        return None
    return pairing


def comparable(
    roles: set[str], source: Checkpoint, target: Target
) -> tuple[list[tuple[str, tuple[int, ...], list[str], list[str]]], tuple[str, ...]]:
    """Return (role, shape, source layers, target layers) of what can be compared, and the target layers that cannot.

    Only names and shapes are looked at.
    """
    sources, targets = _by_role(source, roles), _by_role(target, roles)
    together = [(*group, sources[group], targets[group]) for group in sorted(sources.keys() & targets.keys())]
    alone = [layer for group in sorted(targets.keys() - sources.keys()) for layer in targets[group]]
    return together, tuple(alone)


def differ_in_depth(roles: set[str], source: Checkpoint, target: Target) -> bool:
    """Return whether both models have layers of some of these roles, and not the same ones."""
    sources, targets = _names_by_role(source, roles), _names_by_role(target, roles)
    return any(sources[role] != targets[role] for role in sources.keys() & targets.keys())


def _refuse_incomplete(roles: set[str], source: Checkpoint, target: Target) -> None:
    """Raise MismatchError if one of two models that agree layer by layer lacks whole blocks of the other.

    Taking blocks out of a model renames those behind them. If none has another name, blocks are missing: the file is a
    shard, or incomplete. A few missing layers in blocks that are there do not count.
    """
    blocks = [
        {block for names in _names_by_role(model, roles).values() for layer in names if (block := layer_block(layer))}
        for model in (source, target)
    ]
    models: tuple[Target, ...] = (source, target)
    for model, own, others in zip(models, blocks, reversed(blocks), strict=True):
        if missing := others - own:
            raise MismatchError(
                f"{model.where} lacks {len(missing)} of the other model's {len(others)} blocks and has the others "
                "under their own names: it is a part of a model (a shard, or a download that broke off), not a model "
                "of another depth; give the folder with all of its files, or --pairing name if blocks were cut off its "
                "end"
            )


def _by_role(model: Target, roles: set[str]) -> dict[tuple[str, tuple[int, ...]], list[str]]:
    layers: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for layer in model.layers:
        if (role := layer_role(layer)) in roles:
            layers.setdefault((role, model.shape(f"{layer}.weight")), []).append(layer)
    return layers


def _names_by_role(model: Target, roles: set[str]) -> dict[str, set[str]]:
    """Return role -> its layers, including those in shards that were not opened."""
    inner = model.model if isinstance(model, AcceleratedModel) else model
    layers: dict[str, set[str]] = {}
    for name in (*inner, *inner.absent):
        layer = name.removesuffix(".weight")
        if layer != name and (role := layer_role(layer)) in roles:
            layers.setdefault(role, set()).add(layer)
    return layers
