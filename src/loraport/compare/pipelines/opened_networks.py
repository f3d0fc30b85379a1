"""A pipeline with its networks in memory and every column's adapter on them, switched by name."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch

from loraport.compare.grid.columns import Column
from loraport.compare.pipelines.column_adapters import ColumnAdapters
from loraport.compare.pipelines.kinds import Kind
from loraport.compare.pipelines.network_adapters import NetworkAdapters
from loraport.files.models.checkpoint import Checkpoint
from loraport.inputs.experts import adapters_of_both
from loraport.sampling.accelerators import bake, read_accelerators
from loraport.sampling.network import open_network
from loraport.sampling.pipeline_files import opening, read_json
from loraport.sampling.places import SampledModel


class Sampled(Protocol):
    """What is to be known of a model to open its networks."""

    found: SampledModel
    kind: Kind

    checkpoints: Mapping[str, Checkpoint]
    """The networks' headers."""

    @property
    def networks(self) -> tuple[str, ...]:
        """The parts of the pipeline that are sampled."""

    device: torch.device
    dtype: torch.dtype
    offload: str


class OpenNetworks:
    """The networks of one pipeline while they are sampled; nothing of them stays behind."""

    def __init__(self, model: Sampled, vae: Any, adapters: ColumnAdapters) -> None:
        """Open all of it.

        Raises InputError for files that are missing or damaged, MismatchError for an adapter of another model.
        """
        self.model, self.adapters = model, adapters
        self.notes: list[str] = []
        self.disk: tempfile.TemporaryDirectory[str] | None = None
        folder, kind = model.found.folder, model.kind
        self.networks = {part: self._network(part, number) for number, part in enumerate(model.networks)}
        self.pipe = open_parts(folder, kind, {"vae": vae, **{part: one.network for part, one in self.networks.items()}})
        self.pipe.vae = None  # it stays where it is until all latents are made
        self.pipe.set_progress_bar_config(disable=True)
        self._place()

    def __enter__(self) -> OpenNetworks:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.remove_all_hooks()
        del self.pipe, self.networks
        gc.collect()
        if self.disk is not None:
            self.disk.cleanup()

    def _network(self, part: str, number: int) -> NetworkAdapters:
        """Open one network, with the accelerators and the columns' adapters on it."""
        found, folder = self.model.found, self.model.found.folder / part
        several, checkpoint = len(self.model.networks) > 1, self.model.checkpoints[part]
        network = open_network(folder, self.model.dtype, checkpoint)
        opened = NetworkAdapters(network, checkpoint.family)
        for index, (place, strength) in enumerate(found.accelerators):
            own, own_part = adapters_of_both(place)[number] if several else (place, None)
            factors = read_accelerators([(own, 1.0)], checkpoint, own_part)
            bake(network, read_accelerators([(own, strength)], checkpoint, own_part), checkpoint.family)
            self.notes += factors.notes
            if factors.updates:
                opened.load(f"accelerator{index}", factors.updates, own)
        for index, column in enumerate(self.adapters.columns):
            updates = self.adapters.of_networks[column.name, part]
            if updates:
                opened.load(f"column{index}", updates, column.files[0])
        return opened

    def _place(self) -> None:
        """Put the networks where they compute, or what moves them there piece by piece."""
        device, offload = self.model.device, self.model.offload
        if offload == "none":
            for opened in self.networks.values():
                opened.network.to(device)
        elif offload == "model":
            if device.type != "cpu":
                self.pipe.enable_model_cpu_offload(device=device)
        else:
            if offload == "disk":
                self.disk = tempfile.TemporaryDirectory(prefix="loraport-offload-")
            for part, opened in self.networks.items():
                place = None if self.disk is None else str(Path(self.disk.name) / part)
                opened.network.enable_group_offload(
                    onload_device=device, offload_device=torch.device("cpu"), offload_type="block_level",
                    num_blocks_per_group=1, use_stream=device.type == "cuda", offload_to_disk_path=place,
                )  # fmt: skip

    def use(self, column: Column) -> None:
        """Switch to the adapters of a column: the model's accelerators, and its own."""
        own = [
            (f"column{index}", one.strength)
            for index, one in enumerate(self.adapters.columns)
            if one.name == column.name
        ]
        beside = [(f"accelerator{i}", strength) for i, (_, strength) in enumerate(self.model.found.accelerators)]
        for opened in self.networks.values():
            opened.use([*beside, *own])

    @contextmanager
    def counting(self, passed: Callable[[], None]) -> Iterator[None]:
        """Call a function at every pass through a network."""
        hooks = [one.network.register_forward_pre_hook(lambda *_: passed()) for one in self.networks.values()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def open_parts(folder: Path, kind: Kind, parts: dict[str, Any]) -> Any:
    """Return a pipeline of the given parts, and of those without weights that the folder has, but the tokenizers."""
    kept = {*parts, "scheduler", "guider"}
    index = read_json(folder / "model_index.json")
    left_out = {name: None for name, value in index.items() if isinstance(value, list) and name not in kept}
    with opening("pipeline", folder):
        return getattr(diffusers, kind.pipeline).from_pretrained(folder, **parts, **left_out)


def processors(folder: Path, kind: Kind, vae: Any) -> Any:
    """Return a pipeline without networks: what turns the VAE's output into pictures."""
    return open_parts(folder, kind, {"vae": vae})
