"""The adapters that are loaded in a network: which of them speed it up, which are ours, which are active."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loraport.errors import SettingsError
from loraport.files.formats.in_memory import InMemory

_OURS = "loraport_transfer"
"""Set on the configuration of an adapter that was loaded by this package."""


@dataclass(frozen=True)
class Accelerator:
    """An adapter that is active in a network, and counts as a part of the target."""

    name: str
    place: InMemory
    strength: float


def adapters_in(network: torch.nn.Module) -> dict[str, Any]:
    """Return the configurations of a network's adapters, by name."""
    return dict(getattr(network, "peft_config", None) or {})


def mark_as_ours(network: torch.nn.Module, name: str) -> None:
    """Remember that an adapter is a transferred LoRA, so that it never counts as an accelerator."""
    setattr(adapters_in(network)[name], _OURS, True)


def active_in(network: torch.nn.Module) -> list[str]:
    """Return the active adapters; none where adapters are switched off."""
    names: dict[str, None] = {}
    for _, layer in _layers(network):
        if not layer.disable_adapters:
            names |= dict.fromkeys(layer.active_adapters)
    return [name for name in names if name in adapters_in(network)]


def activate(network: torch.nn.Module, names: list[str]) -> None:
    """Make these adapters the active ones, at the strengths that they have."""
    for _, layer in _layers(network):
        layer.set_adapter(names)


def accelerators_in(
    component: str, network: torch.nn.Module, wanted: str | Sequence[str] | None
) -> tuple[Accelerator, ...]:
    """Return the adapters that count as the target's accelerators: those named, or the only active one not ours.

    `wanted` "" or () takes none. Raises SettingsError where several are active and none is named, for one that is not
    there or is named twice, and for a kind that is not read.
    """
    active = [name for name in active_in(network) if not getattr(adapters_in(network)[name], _OURS, False)]
    if wanted is None and len(active) > 1:
        raise SettingsError(
            f"{len(active)} adapters are active in the pipeline's {component}: {', '.join(active)}; say which of them "
            f"speed it up (accelerator={active[0]!r}, or accelerator={tuple(active)!r} for several), or that none does "
            "(accelerator='')"
        )
    names = active if wanted is None else [wanted] * bool(wanted) if isinstance(wanted, str) else list(wanted)
    if lacking := [name for name in names if name not in active]:
        known = ", ".join(active) or "none"
        raise SettingsError(
            f"the pipeline's {component} has no active adapter {lacking[0]!r} of yours; active: {known}"
        )
    if len(set(names)) < len(names):
        raise SettingsError(f"accelerator names an adapter twice: {', '.join(names)}; name each once")
    read = (_read(component, network, name) for name in names)
    return tuple(one for one in read if one is not None)


def check_not_merged(component: str, network: torch.nn.Module) -> None:
    """Raise SettingsError where adapters are fused and still there: PEFT takes them out when another one is loaded."""
    fused = sorted({name for _, layer in _layers(network) for name in layer.merged_adapters})
    if fused:
        raise SettingsError(
            f"{', '.join(fused)} is fused into the pipeline's {component}, and would be taken out when another LoRA is "
            "loaded; unfuse it, which leaves it active (unfuse_lora), or let it go into the weights for good "
            "(unload_lora_weights)"
        )


def _read(component: str, network: torch.nn.Module, name: str) -> Accelerator | None:
    """Return an adapter's tensors with its configuration; strengths that differ between layers go into the factors."""
    from peft.tuners.lora import LoraLayer
    from peft.utils import get_peft_model_state_dict

    config = adapters_in(network)[name]
    strengths: dict[str, float] = {}
    for path, layer in _layers(network):
        if not isinstance(layer, LoraLayer):
            raise SettingsError(
                f"{name} in the pipeline's {component} is a {config.peft_type.value}, not a LoRA; fuse it"
            )
        if name in layer.scaling:
            own = layer.lora_alpha[name] / (math.sqrt(layer.r[name]) if config.use_rslora else layer.r[name])
            strengths[path] = layer.scaling[name] / own if own else 0.0
    if not any(strengths.values()):
        return None
    tensors: dict[str, Tensor] = get_peft_model_state_dict(network, adapter_name=name)
    first, *others = strengths.values()
    strength = first
    if not all(math.isclose(one, first, rel_tol=1e-6) for one in others):
        strength, tensors = 1.0, {key: _scaled(key, tensor, strengths) for key, tensor in tensors.items()}
    kind = "unet" if component == "unet" else "transformer"
    named = {f"{kind}.{key}": tensor for key, tensor in tensors.items()}
    return Accelerator(name, InMemory(name, named, config=config.to_dict()), strength)


def _scaled(key: str, tensor: Tensor, strengths: dict[str, float]) -> Tensor:
    """Return a factor B with its layer's strength in it; any other tensor as it is."""
    path, found, _ = key.partition(".lora_B.")
    return tensor.detach().float() * strengths[path] if found else tensor


def _layers(network: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in network.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield path, module
