"""The networks of a pipeline that a LoRA is for, and their weights, without the adapters that are loaded in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from loraport.errors import InputError
from loraport.files.formats.in_memory import InMemory

COMPONENTS = ("transformer", "transformer_2", "unet")
"""The attributes of diffusers' pipelines that hold them: of two experts the high-noise one comes first."""
ENCODERS = ("text_encoder", "text_encoder_2")
_GROUP_OFFLOADING = "group_offloading"
"""The name of diffusers' hook."""


def networks_of(pipe: Any) -> dict[str, torch.nn.Module]:
    """Return a pipeline's networks by their attributes. Raises InputError for an object that has none."""
    found = {name: getattr(pipe, name, None) for name in COMPONENTS}
    networks = {name: getattr(one, "_orig_mod", one) for name, one in found.items() if isinstance(one, torch.nn.Module)}
    if not networks:
        raise InputError(
            f"a {type(pipe).__name__} has no network in {', '.join(COMPONENTS)}; give a pipeline of diffusers"
        )
    return networks


def encoders_of(pipe: Any) -> dict[str, torch.nn.Module]:
    """Return a pipeline's text encoders, for which a LoRA may have layers too."""
    found = {name: getattr(pipe, name, None) for name in ENCODERS}
    return {name: one for name, one in found.items() if isinstance(one, torch.nn.Module)}


def weights_in_memory(component: str, network: torch.nn.Module) -> InMemory:
    """Return a network's own weights under the names of its class; nothing is copied.

    Weights that accelerate has moved away are taken from where it keeps them. Raises InputError where they cannot be
    read: offloaded by diffusers to a disk, quantised, or not loaded.
    """
    _refuse_disk(component, network)
    away = _offloaded(network)
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if own := _without_adapters(name, network):
            tensors[own] = away.get(name, tensor)
    place = InMemory(f"the pipeline's {component}", tensors)
    _refuse_unreadable(place)
    return place


def _without_adapters(name: str, network: torch.nn.Module) -> str | None:
    """Return a parameter's name as it is without PEFT's layers; None for an adapter's own."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    parts = name.split(".")
    own: list[str] = []
    module: Any = network
    for part in parts[:-1]:
        inner = {BaseTunerLayer: "base_layer", AuxiliaryTrainingWrapper: "original_module"}
        wrapped = next((name for kind, name in inner.items() if isinstance(module, kind)), None)
        if wrapped not in (None, part):
            return None
        own += [part] if wrapped is None else []
        module = getattr(module, part, None)
    if isinstance(module, BaseTunerLayer):  # a parameter of the adapter itself
        return None
    return ".".join([*own, parts[-1]])


def _offloaded(network: torch.nn.Module) -> dict[str, Tensor]:
    """Return the values of parameters that accelerate's hooks keep elsewhere, by the parameters' names."""
    found: dict[str, Tensor] = {}
    for path, module in network.named_modules():
        for hook in _hooks(module):
            values = getattr(hook, "weights_map", None)
            if values is None:
                continue
            for name, tensor in module.named_parameters(recurse=bool(getattr(hook, "place_submodules", False))):
                if tensor.is_meta and name in values:
                    found[f"{path}.{name}" if path else name] = values[name]
    return found


def _hooks(module: torch.nn.Module) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", ()) if hasattr(hook, "hooks") else [hook] if hook is not None else []


def _refuse_disk(component: str, network: torch.nn.Module) -> None:
    """Raise InputError where diffusers has put groups of weights on a disk: what is left in memory is not them."""
    for module in network.modules():
        registry = getattr(module, "_diffusers_hook", None)
        hook = None if registry is None else registry.get_hook(_GROUP_OFFLOADING)
        if hook is not None and getattr(hook.group, "offload_to_disk_path", None):
            raise InputError(
                f"the weights of the pipeline's {component} are offloaded to a disk, where they are not read; load the "
                "LoRA before the offloading, or name the target's own place (target=...)"
            )


def _refuse_unreadable(place: InMemory) -> None:
    """Raise InputError, with what to do, for the first tensor that holds no plain values."""
    for name, tensor in place.tensors.items():
        if tensor.is_meta:
            raise InputError(
                f"{place}: {name} is on the device meta, and nothing says where its values are; load the LoRA before "
                "the offloading, or name the target's own place (target=...)"
            )
        kind = type(tensor)
        if kind not in (Tensor, torch.nn.Parameter) or tensor.is_quantized:
            raise InputError(
                f"{place} is quantised: {name} is a {kind.__module__}.{kind.__name__}, whose codes are not read; name "
                "the place of the unquantised model (target=...), and the result is loaded onto the quantised one"
            )
