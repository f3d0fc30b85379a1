"""Reduce the text encoders' LoHa, LoKr and DoRA to LoRA factors, as the network's are."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from loraport.compute import layer_generator
from loraport.errors import MismatchError
from loraport.files.adapters.lora_layer import Updates
from loraport.files.adapters.updates import aimed_rank, needs_weight
from loraport.files.lora.read import Lora
from loraport.files.models.checkpoint import Checkpoint, open_checkpoint
from loraport.files.models.encoders import held_encoders, pipeline_folder, with_encoders
from loraport.files.names.clip import encoder_of
from loraport.inputs.config import RankRule
from loraport.spectral.low_rank import LowRank
from loraport.transfers.method_input import factors_at_rule

EncoderWeights = Callable[[str], Tensor | None]
"""Layer of a text encoder -> its weight, or None if no file at hand has it."""


def encoder_weights(model: Checkpoint) -> EncoderWeights:
    """Return the weights of text encoders in the file of a model, or in the pipeline around it."""
    opened: dict[str, Checkpoint | None] = {}

    def weight(layer: str) -> Tensor | None:
        encoder = encoder_of(layer)
        if encoder not in opened:
            opened[encoder] = _holding(model, encoder)
        holder = opened[encoder]
        return holder.read(layer).matrix if holder is not None and f"{layer}.weight" in holder else None

    return weight


def _holding(model: Checkpoint, encoder: str) -> Checkpoint | None:
    """Return what holds an encoder: the model's own file, or the folder beside the network's in a pipeline."""
    own = with_encoders(model)
    if encoder in held_encoders(own):
        return own
    folder = pipeline_folder(model, encoder)
    return None if folder is None else with_encoders(open_checkpoint(str(folder)))


def encoder_factors(lora: Lora, rule: RankRule, model: Checkpoint | None, *, plain: bool) -> dict[str, LowRank]:
    """Return the layers of a LoRA's text encoders as factors at the rule's rank; plain LoRA layers only if `plain`.

    Left out are those that depend on a weight which is neither in `model` nor beside it. Raises MismatchError for a
    weight of another shape.
    """
    weights = None if model is None else encoder_weights(model)
    own: dict[str, int] = {}
    updates = Updates(lora.encoders)
    for layer, update in updates.items():
        own[encoder_of(layer)] = max(own.get(encoder_of(layer), 0), aimed_rank(update))
    factors = {}
    for layer, update in updates.items():
        W = weights(layer) if weights is not None and needs_weight(update) else None
        if (isinstance(update, LowRank) and not plain) or (needs_weight(update) and W is None):
            continue
        if W is not None and tuple(W.shape) != update.shape:
            raise MismatchError(
                f"layer {layer}: the LoRA is {update.shape[0]} × {update.shape[1]}, the weight {W.shape[0]} × "
                f"{W.shape[1]}; give the model that this LoRA was trained on"
            )
        aim = int(rule.value) if rule.kind == "fixed" else own[encoder_of(layer)]
        factors[layer] = factors_at_rule(update, W, rule, aim, layer_generator(0, layer))
    return factors
