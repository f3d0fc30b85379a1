"""The inputs and outputs that several nodes have, and what is chosen in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

import loraport
from loraport import InputError

from .comfy_side import DEVICE_CHOICES, comfy_folders, device_text
from .jobs import METHOD_CHOICES, RECOMMEND, Inputs
from .places import NONE, SAME, AcceleratorLora, file_state, target_place

CATEGORY = "loraport"
Accelerators = io.Custom("LORAPORT_ACCELERATORS")

_LORA_HELP = "The LoRA, as it was trained on the source."
_SOURCE_HELP = "The model that the LoRA was trained on, unquantised (bf16 or fp16) if you have it."
ELSEWHERE_HELP = (
    "Instead of the choice above: a whole path (D:\\models\\wan.safetensors), a preset such as wan2.1-t2v-1.3b, or a "
    "Hub id. Presets and Hub ids are downloaded."
)
_METHOD_HELP = "recommend looks at the weights first and takes what they speak for. direct is the LoRA as it is."
_OWN_METHOD_HELP = "Instead of the choice above: a method with a number, such as undo:0.4."
_PART_HELP = (
    "Of a file with several LoRAs, such as one for each expert: which; the node names them. Empty: the only one."
)
_RANK_HELP = "auto, source, full, a whole number, or a share of the update's energy such as 0.95."
NAME_HELP = "Name in the folder of LoRAs, may have folders: wan/style-fast. Empty: a name that says what it is."


def lora_input(help: str = _LORA_HELP) -> io.Combo.Input:
    """Return the choice of a LoRA."""
    return io.Combo.Input("lora", options=comfy_folders().loras(), tooltip=help)


def source_input() -> io.Combo.Input:
    """Return the choice of the model that the LoRA was trained on."""
    return io.Combo.Input("source", options=[*comfy_folders().models(), NONE], tooltip=_SOURCE_HELP)


def target_input() -> io.Combo.Input:
    """Return the choice of the distilled model."""
    help = f"The distilled model; or, with accelerators, {SAME}."
    return io.Combo.Input("target", options=[SAME, *comfy_folders().models()], tooltip=help)


def elsewhere_inputs(*names: str) -> list[io.Input]:
    """Return the fields that name models outside ComfyUI's folders."""
    return [io.String.Input(f"{name}_elsewhere", default="", optional=True, tooltip=ELSEWHERE_HELP) for name in names]


def method_input() -> io.Combo.Input:
    """Return the choice of a method."""
    return io.Combo.Input("method", options=METHOD_CHOICES, default=RECOMMEND, tooltip=_METHOD_HELP)


def own_method_input() -> io.String.Input:
    """Return the field for a method with a number."""
    return io.String.Input("own_method", default="", optional=True, tooltip=_OWN_METHOD_HELP)


def lora_part_input() -> io.String.Input:
    """Return the field for the one of several LoRAs in a file."""
    return io.String.Input("lora_part", default="", optional=True, tooltip=_PART_HELP)


def rank_input() -> io.String.Input:
    """Return the field for the rank."""
    return io.String.Input("rank", default="auto", tooltip=_RANK_HELP)


def device_input() -> io.Combo.Input:
    """Return the choice of where to compute."""
    help = "auto: the card that ComfyUI uses. The numbers are the same to rounding."
    return io.Combo.Input("device", options=DEVICE_CHOICES, default="auto", optional=True, tooltip=help)


def strength_input(name: str, help: str) -> io.Float.Input:
    """Return a slider."""
    return io.Float.Input(name, default=1.0, min=-10.0, max=10.0, step=0.05, tooltip=help)


def report_output() -> io.String.Output:
    """Return the output of what was done, in words."""
    return io.String.Output("report", display_name="report", tooltip="What was done, in plain sentences.")


def lora_name_output() -> io.AnyType.Output:
    """Return the output of a new file's name, which fits any LoRA loader."""
    help = "The new file as ComfyUI lists it: connect it to lora_name of a LoRA loader."
    return io.AnyType.Output("lora_name", display_name="lora_name", tooltip=help)


def chosen_inputs(
    lora: str, source: str, source_elsewhere: str, target: str, target_elsewhere: str,
    accelerators: Sequence[AcceleratorLora] | None, device: str, lora_part: str,
) -> Inputs:  # fmt: skip
    """Return what the choices mean. Raises InputError for what is no file of ComfyUI's folders."""
    folders = comfy_folders()
    return Inputs(
        folders.lora(lora),
        folders.model(source, source_elsewhere, what="source"),
        target_place(folders, target, target_elsewhere, accelerators or ()),
        device_text(device),
        loraport.default_cache(),
        lora_part.strip() or None,
    )


def states_of(lora: str | None, *models: str | None) -> str:
    """Return what changes when a chosen file does; None is a choice that another node makes."""
    folders = comfy_folders()
    return file_state([_found(folders.lora, lora), *(_found(folders.model, one, what="model") for one in models)])


def _found(find: Any, choice: str | None, **named: str) -> str | None:
    try:
        return None if choice is None else str(find(choice, **named))
    except InputError:  # said when the node is executed
        return None
