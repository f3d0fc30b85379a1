"""Load a LoRA of another model into a pipeline: transfer it onto the pipeline's own weights, then as any LoRA."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from loraport.diagnosis.diagnose import Named
from loraport.diagnosis.recommend import recommended
from loraport.diagnosis.result import Diagnosis
from loraport.diagnosis.rule.advice import RECOMMEND
from loraport.diffusers.adapters import (
    accelerators_in,
    activate,
    active_in,
    adapters_in,
    check_not_merged,
    mark_as_ours,
)
from loraport.diffusers.networks import encoders_of, networks_of, weights_in_memory
from loraport.errors import InputError, SettingsError
from loraport.inputs.accelerator import AcceleratedPlace
from loraport.inputs.config import TransferConfig
from loraport.inputs.experts import EXPERTS, adapters_of_experts, both
from loraport.progress import NO_PROGRESS, Progress, observer
from loraport.store.cache_folder import default_cache
from loraport.transfers.passes import LabelledProgress
from loraport.transfers.state import LoraState, Place, place_of, state_config, transfer_in_memory

Given = Place | Sequence[Place]
"""One place, or that of the high-noise expert and that of the low-noise one."""
_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_PAIR = ("transformer", "transformer_2")
"""Both experts of Wan 2.2, the high-noise one first."""


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA that was transferred and loaded."""

    adapter_name: str
    states: Mapping[str, LoraState]
    """The transferred LoRA by the network that it is loaded in (`transformer`, `transformer_2`, `unet`): its tensors,
    and under `result` what was done layer by layer. `states["transformer"].save(path)` writes it as a file."""
    notes: tuple[str, ...]
    """What the user should know of it."""
    diagnoses: Mapping[str, Diagnosis]
    """What the method was chosen by, where it was `recommend`."""

    @property
    def lost(self) -> bool:
        """Whether something of the input is gone without the user having asked for it."""
        return any(state.result.lost for state in self.states.values())


def load(
    pipe: Any,
    lora: Given,
    source: Given,
    *,
    method: str = "casa",
    adapter_name: str | None = None,
    accelerator: str | Sequence[str] | None = None,
    target: Given | None = None,
    progress: Progress = NO_PROGRESS,
    **settings: Any,
) -> LoadedLora:
    """Transfer a LoRA from `source` onto the weights in a pipeline, and load it by the pipeline's own loader.

    The pipeline's modules are the target: no second copy of it is made or read. `source` is read layer by layer from
    where it lies (a file, a folder, a preset, a Hub id, or tensors by their keys); singular bases are kept in the usual
    cache unless `cache` says otherwise. Of a pipeline with two experts both get theirs: `source` and `lora` may be one
    place that holds both, or (high-noise, low-noise).

    An adapter that is active already, and was not loaded by this function, counts as a part of the target, as an
    accelerator does, and stays active beside the new one. Where several are active, `accelerator` names it, or all that
    do, such as ("few-step", "cfg"), each at the weight that it has; "" says that none does. Several LoRAs are several
    calls: none of them counts for another. `target` names the place of the unquantised model where the pipeline's own
    weights cannot be read.

    `method` is one of the transfer's, or `recommend`: what the weights speak for (`loraport.diagnose`). `settings` are
    further fields of TransferConfig; `dtype` is the network's own unless it is given.

    Raises InputError as `transfer_state` does, for weights that cannot be read, and a name that is taken; the pipeline
    is then as it was.
    """
    if find_spec("peft") is None:
        raise SettingsError("a pipeline loads LoRAs by PEFT, which is not installed: pip install 'loraport[sample]'")
    networks, progress = networks_of(pipe), observer(progress)
    name = _free_name(networks, adapter_name, lora)
    if settings.get("as_diff") or settings.get("format", "diffusers") not in ("diffusers", "comfy", "kohya"):
        raise SettingsError("a pipeline loads factors by diffusers' own names; leave out as_diff and the format")
    settings = {"format": "diffusers", "cache": default_cache(), **settings}
    runs = _runs(networks, lora, source, target, settings)
    states: dict[str, LoraState] = {}
    diagnoses: dict[str, Diagnosis] = {}
    notes: list[str] = []
    for component, run in runs.items():
        inner = LabelledProgress(progress, run.title) if len(runs) > 1 else progress
        for note in run.notes:
            inner.note(note)
        config = run.config(component, networks[component], accelerator)
        if method == RECOMMEND:
            config, diagnoses[component] = recommended(config, named=run.named(config, pipe), progress=inner)
        else:
            config = replace(config, method=method)
        states[component] = transfer_in_memory(config, inner)
        notes += [note for note in (*run.notes, *states[component].result.warnings) if note not in notes]
    _load_all(pipe, networks, name, states)
    return LoadedLora(name, states, tuple(notes), diagnoses)


def unload(pipe: Any, adapter_name: str) -> None:
    """Remove an adapter from all networks and text encoders of a pipeline. Raises SettingsError where none has it."""
    modules = {**networks_of(pipe), **encoders_of(pipe)}
    holding = [module for module in modules.values() if adapter_name in adapters_in(module)]
    if not holding:
        known = list(dict.fromkeys(name for module in modules.values() for name in adapters_in(module)))
        raise SettingsError(f"the pipeline has no adapter {adapter_name!r}; it has: {', '.join(known) or 'none'}")
    if hasattr(pipe, "delete_adapters"):  # text encoders too
        pipe.delete_adapters([adapter_name])
    for module in holding:
        if adapter_name in adapters_in(module):
            module.delete_adapters([adapter_name])  # type: ignore[operator]


@dataclass(frozen=True)
class _Run:
    """What is transferred onto one network of the pipeline."""

    lora: str
    source: str
    target: str | None
    settings: Mapping[str, Any]
    title: str = ""
    notes: tuple[str, ...] = ()

    def config(
        self, component: str, network: torch.nn.Module, accelerator: str | Sequence[str] | None
    ) -> TransferConfig:
        """Return the transfer onto a network's weights, with what speeds it up beside it."""
        check_not_merged(component, network)
        beside = accelerators_in(component, network, accelerator)
        place = weights_in_memory(component, network) if self.target is None else self.target
        if beside:
            place = AcceleratedPlace(place, *((one.place, one.strength) for one in beside))
        dtype = _DTYPES.get(getattr(network, "dtype", torch.bfloat16), "bf16")
        return state_config(self.lora, self.source, place, {"dtype": dtype, **self.settings})

    def named(self, config: TransferConfig, pipe: Any) -> Named:
        """Return the names by which a diagnosis tells what source and target are to each other."""
        known = getattr(getattr(pipe, "config", None), "_name_or_path", None) or getattr(pipe, "name_or_path", None)
        return Named(str(config.lora), str(config.source), str(known or config.target), config)


def _runs(
    networks: Mapping[str, torch.nn.Module],
    lora: Given,
    source: Given,
    target: Given | None,
    settings: Mapping[str, Any],
) -> dict[str, _Run]:
    """Return a transfer for each network, two experts each with its own places."""
    if "transformer_2" not in networks:
        component = next(iter(networks))
        one = [_single(given, what) for given, what in ((lora, "LoRA"), (source, "source"))]
        own = None if target is None else _single(target, "target")
        return {component: _Run(one[0], one[1], own, settings)}
    given = [place_of(one, "the LoRA in memory") for one in _listed(lora)]
    adapters, parts, guesses = adapters_of_experts(given)
    sources = _of_experts(source, "source")
    targets = (None, None) if target is None else _of_experts(target, "target")
    runs: dict[str, _Run] = {}
    for at, component in enumerate(_PAIR):
        if component in networks:
            own_part = {"lora_part": parts[at]} if parts[at] else {}
            runs[component] = _Run(
                adapters[at], sources[at], targets[at], {**settings, **own_part}, EXPERTS[at], guesses[at]
            )
    return runs


def _of_experts(given: Given, what: str) -> tuple[str, str]:
    """Return the places of both experts. Raises SettingsError for one model where there are two."""
    places = _listed(given)
    if len(places) == 2:
        high, low = (place_of(one, f"the {what} of the {title}") for one, title in zip(places, EXPERTS, strict=True))
        return high, low
    if len(places) != 1 or isinstance(places[0], Mapping):
        raise SettingsError(
            f"the pipeline has two experts; give one {what} that holds both, or (high-noise, low-noise)"
        )
    return both(os.fspath(places[0]))


def _single(given: Given, what: str) -> str:
    places = _listed(given)
    if len(places) != 1:
        raise SettingsError(f"the pipeline has one network, and takes one {what}; there are {len(places)}")
    return place_of(places[0], f"the {what} in memory")


def _listed(given: Given) -> list[Place]:
    return list(given) if isinstance(given, list | tuple) else [given]  # type: ignore[list-item]


def _free_name(networks: Mapping[str, torch.nn.Module], wanted: str | None, lora: Given) -> str:
    """Return the adapter's name: the one that is wanted, or the file's. Raises SettingsError for one that is taken."""
    first = _listed(lora)[0]
    stem = "" if isinstance(first, Mapping) else Path(os.fspath(first)).stem
    name = wanted if wanted is not None else re.sub(r"[^A-Za-z0-9_-]+", "_", stem) or "transferred"
    if not name or "." in name:
        raise SettingsError(f"adapter_name is {name!r}, but PEFT wants a name without a full stop")
    if any(name in adapters_in(network) for network in networks.values()):
        raise SettingsError(
            f"the pipeline has an adapter {name!r} already; unload it first (loraport.diffusers.unload), or give "
            "another adapter_name"
        )
    return name


def _load_all(pipe: Any, networks: Mapping[str, torch.nn.Module], name: str, states: Mapping[str, LoraState]) -> None:
    """Load every network's adapter beside those that are active; if one is refused, none stays."""
    modules = {**{component: networks[component] for component in states}, **encoders_of(pipe)}
    active = {component: active_in(module) for component, module in modules.items()}
    try:
        for component, state in states.items():
            _load_one(pipe, component, networks[component], name, state)
    except Exception:
        if any(name in adapters_in(module) for module in modules.values()):
            unload(pipe, name)
        for component, module in modules.items():
            activate(module, active[component])
        raise
    for component, module in modules.items():
        if name in adapters_in(module):
            mark_as_ours(module, name)
            activate(module, [*active[component], name])


def _load_one(pipe: Any, component: str, network: torch.nn.Module, name: str, state: LoraState) -> None:
    tensors = dict(state.tensors)
    try:
        if hasattr(pipe, "load_lora_weights"):
            second = {"load_into_transformer_2": True} if component == "transformer_2" else {}
            pipe.load_lora_weights(tensors, adapter_name=name, **second)
        else:  # HunyuanVideo-1.5's pipelines have no loader of their own
            prefix = "unet" if component == "unet" else "transformer"
            network.load_lora_adapter(tensors, prefix=prefix, adapter_name=name, _pipeline=pipe)  # type: ignore[operator]
    except ValueError as error:
        raise InputError(f"diffusers does not load the result into {component}: {error}") from error
    if name not in adapters_in(network):
        raise InputError(f"diffusers has loaded nothing into {component}, of keys such as {next(iter(tensors))}")
