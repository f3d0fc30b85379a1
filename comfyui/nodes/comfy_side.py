"""What the nodes need of ComfyUI: its folders, the bar, the interrupt button, the device, and patches of a MODEL."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import comfy.lora
import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from loraport import LoraportError

from .places import Folders, choices_of
from .progress import NodeProgress
from .words import as_inputs

_ROOM = 3 * 1024**3
"""Bytes of a card that a transfer of the largest layers takes: ComfyUI is asked to free them first."""
DEVICE_CHOICES = ["auto", "cpu"]
T = TypeVar("T")


def comfy_folders() -> Folders:
    """Return ComfyUI's folders."""
    return Folders(_names, folder_paths.get_full_path, _roots)


def _names(kind: str) -> list[str]:
    return list(folder_paths.get_filename_list(kind)) if kind in folder_paths.folder_names_and_paths else []


def _roots(kind: str) -> Sequence[str]:
    return list(folder_paths.get_folder_paths(kind)) if kind in folder_paths.folder_names_and_paths else []


def node_progress() -> NodeProgress:
    """Return the progress of the node that is executed."""
    bar = comfy.utils.ProgressBar(1)
    return NodeProgress(
        bar=lambda done, total: bar.update_absolute(done, max(total, 1)),
        check=comfy.model_management.throw_exception_if_processing_interrupted,
        make_room=_make_room,
        say=logging.info,
    )


def kept_folder() -> Path:
    """Return where results for a MODEL are kept from one start of ComfyUI to the next."""
    return Path(folder_paths.get_user_directory()) / "loraport"


def device_text(choice: str) -> str:
    """Return the device as loraport names it: the processor, or the card that ComfyUI uses."""
    choices_of(choice, DEVICE_CHOICES, what="device")
    device = comfy.model_management.get_torch_device()
    return str(device) if choice == "auto" and device.type == "cuda" else "cpu"


def _make_room(device: str) -> None:
    if device != "cpu":
        comfy.model_management.free_memory(_ROOM, torch.device(device))


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Leave the inference mode in which ComfyUI executes nodes: its tensors cannot be written on other threads."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def as_node(function: Callable[..., T]) -> Callable[..., T]:
    """Return a node's function that runs outside of ComfyUI's inference mode, and whose messages name inputs."""

    @wraps(function)
    def run(*arguments: Any, **named: Any) -> T:
        try:
            with _plain_tensors():
                return function(*arguments, **named)
        except LoraportError as error:
            raise type(error)(as_inputs(str(error))) from error

    return run


def name_map(model: Any) -> dict[str, Any]:
    """Return the names that LoRA files give the weights of a MODEL."""
    found: dict[str, Any] = comfy.lora.model_lora_keys_unet(model.model, {})
    return found


def patched(
    model: Any, parts: Sequence[tuple[Mapping[str, Tensor], float]], known: Mapping[str, Any], mark: str
) -> Any:
    """Return a MODEL with LoRAs at their strengths added; its attachment `mark` remembers the patches."""
    clone = model.clone()
    own = list(model.attachments.get(mark, ()))
    for tensors, strength in parts:
        if tensors and strength:
            patches = comfy.lora.load_lora(dict(tensors), known, log_missing=False)
            clone.add_patches(patches, strength)
            own += patches.values()
    clone.set_attachments(mark, tuple(own))
    return clone
