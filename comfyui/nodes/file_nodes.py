"""The nodes that read and write files, as ComfyUI sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io, ui

from .comfy_side import as_node, comfy_folders, node_progress
from .inputs import (
    CATEGORY,
    ELSEWHERE_HELP,
    NAME_HELP,
    Accelerators,
    chosen_inputs,
    device_input,
    elsewhere_inputs,
    lora_input,
    lora_name_output,
    lora_part_input,
    method_input,
    own_method_input,
    rank_input,
    report_output,
    source_input,
    states_of,
    strength_input,
    target_input,
)
from .jobs import (
    DTYPE_CHOICES,
    EXISTING_CHOICES,
    FORMAT_CHOICES,
    convert_file,
    diagnose_text,
    inspect_text,
    transfer_file,
)
from .places import NONE, AcceleratorLora, choices_of, place_elsewhere, usual_name


class TransferNode(io.ComfyNode):
    """LoRA + source + target -> a new LoRA file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return what the node takes and gives."""
        return io.Schema(
            node_id="LoraportTransfer",
            display_name="Transfer LoRA",
            category=CATEGORY,
            description="Moves a LoRA from the model that it was trained on to a distilled variant of it, and writes a "
            "new LoRA. Finished layers are kept when it is interrupted.",
            is_output_node=True,
            inputs=[
                lora_input(), source_input(), target_input(), method_input(),
                io.String.Input("name", default="", tooltip=NAME_HELP),
                rank_input(),
                io.Combo.Input("format", options=FORMAT_CHOICES, default="same", tooltip="same: as the LoRA's own."),
                io.Combo.Input("dtype", options=DTYPE_CHOICES, default="bf16", tooltip="Of the new file."),
                io.Combo.Input("existing", options=EXISTING_CHOICES, tooltip="If the file is there already."),
                Accelerators.Input(
                    "accelerators", optional=True, tooltip="LoRAs such as lightx2v's that are loaded with the target."
                ),
                *elsewhere_inputs("source", "target"), own_method_input(), device_input(), lora_part_input(),
            ],
            outputs=[lora_name_output(), io.String.Output("path", display_name="path"), report_output()],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, lora: str = "", source: str = "", target: str = "", **_: Any) -> str:
        """Return what changes when one of the files does, so that the node runs again."""
        return states_of(lora, source, target)

    @classmethod
    @as_node
    def execute(
        cls, lora: str, source: str, target: str, method: str, name: str, rank: str, format: str, dtype: str,
        existing: str, accelerators: Sequence[AcceleratorLora] | None = None, source_elsewhere: str = "",
        target_elsewhere: str = "", own_method: str = "", device: str = "auto", lora_part: str = "",
    ) -> io.NodeOutput:  # fmt: skip
        """Transfer, and say what was done."""
        progress, folders = node_progress(), comfy_folders()
        inputs = chosen_inputs(
            lora, source, source_elsewhere, target, target_elsewhere, accelerators, device, lora_part
        )
        chosen = own_method.strip() or method
        choices_of(format, FORMAT_CHOICES, what="format")
        usual = usual_name(inputs.lora, inputs.target, accelerators or (), chosen)
        place = folders.output(name, usual)
        done = transfer_file(
            inputs, place, folders.relative(place), chosen, existing=existing, progress=progress, rank=rank,
            format=format, dtype=dtype,
        )  # fmt: skip
        return io.NodeOutput(
            folders.relative(done.path), str(done.path), done.text, ui=ui.PreviewText(done.text)
        )  # fmt: skip


class AcceleratorNode(io.ComfyNode):
    """A LoRA that is loaded with the target, at its strength; several in a chain."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return what the node takes and gives."""
        return io.Schema(
            node_id="LoraportAccelerator",
            display_name="Accelerator LoRA",
            category=CATEGORY,
            description="Names a LoRA that makes a model need few steps (lightx2v, CausVid, DMD2), as you load it.",
            inputs=[
                lora_input("The accelerator."),
                strength_input("strength", "The strength at which you load it."),
                Accelerators.Input("accelerators", optional=True, tooltip="Others that are loaded with it."),
            ],
            outputs=[Accelerators.Output("all", display_name="accelerators")],
        )

    @classmethod
    @as_node
    def execute(
        cls, lora: str, strength: float, accelerators: Sequence[AcceleratorLora] | None = None
    ) -> io.NodeOutput:
        """Add it to those that are connected."""
        return io.NodeOutput((*(accelerators or ()), AcceleratorLora(comfy_folders().lora(lora), strength)))


class DiagnoseNode(io.ComfyNode):
    """What the weights of a pair and a LoRA speak for; nothing is written."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return what the node takes and gives."""
        return io.Schema(
            node_id="LoraportDiagnose",
            display_name="Diagnose LoRA",
            category=CATEGORY,
            description="Says whether a LoRA belongs to these models, how far the target has drifted, and which method "
            "its weights speak for. Nothing is sampled and nothing written.",
            is_output_node=True,
            inputs=[
                lora_input(), source_input(), target_input(),
                io.Boolean.Input("all_layers", default=False, tooltip="Look at all layers instead of a sample."),
                Accelerators.Input("accelerators", optional=True),
                *elsewhere_inputs("source", "target"), device_input(), lora_part_input(),
            ],
            outputs=[
                io.AnyType.Output("method", display_name="method", tooltip="For own_method of Transfer LoRA."),
                report_output(),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, lora: str = "", source: str = "", target: str = "", **_: Any) -> str:
        """Return what changes when one of the files does, so that the node runs again."""
        return states_of(lora, source, target)

    @classmethod
    @as_node
    def execute(
        cls, lora: str, source: str, target: str, all_layers: bool,
        accelerators: Sequence[AcceleratorLora] | None = None, source_elsewhere: str = "", target_elsewhere: str = "",
        device: str = "auto", lora_part: str = "",
    ) -> io.NodeOutput:  # fmt: skip
        """Look at the weights, and say what they speak for."""
        inputs = chosen_inputs(
            lora, source, source_elsewhere, target, target_elsewhere, accelerators, device, lora_part
        )
        method, text = diagnose_text(inputs, node_progress(), exact=all_layers)
        return io.NodeOutput(method, text, ui=ui.PreviewText(text))


class ConvertNode(io.ComfyNode):
    """A LoRA in another format."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return what the node takes and gives."""
        return io.Schema(
            node_id="LoraportConvert",
            display_name="Convert LoRA",
            category=CATEGORY,
            description="Writes a LoRA under the names of another program, or of another kind (LoHa, LoKr, DoRA) as a "
            "plain LoRA.",
            is_output_node=True,
            inputs=[
                lora_input("The LoRA to convert."),
                io.Combo.Input("format", options=FORMAT_CHOICES[1:], default="comfy"),
                io.Combo.Input("dtype", options=["same", *DTYPE_CHOICES], default="same"),
                rank_input(),
                io.String.Input("name", default="", tooltip=NAME_HELP),
                io.Combo.Input(
                    "source",
                    options=[NONE, *comfy_folders().models()],
                    default=NONE,
                    optional=True,
                    tooltip="Needed for a DoRA alone: the model that it was trained on.",
                ),
            ],
            outputs=[lora_name_output(), io.String.Output("path", display_name="path"), report_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str = "", **_: Any) -> str:
        """Return what changes when the LoRA does, so that the node runs again."""
        return states_of(lora)

    @classmethod
    @as_node
    def execute(
        cls, lora: str, format: str, dtype: str, rank: str, name: str, source: str = NONE
    ) -> io.NodeOutput:  # fmt: skip
        """Convert, and say what was done."""
        folders = comfy_folders()
        place = folders.lora(lora)
        output = folders.output(name, f"{place.stem}-{format}")
        base = None if source == NONE else folders.model(source, what="source")
        done = convert_file(place, output, folders.relative(output), format, dtype, rank, base)
        return io.NodeOutput(
            folders.relative(done.path), str(done.path), done.text, ui=ui.PreviewText(done.text)
        )  # fmt: skip


class InspectNode(io.ComfyNode):
    """What a LoRA or a model is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return what the node takes and gives."""
        folders = comfy_folders()
        return io.Schema(
            node_id="LoraportInspect",
            display_name="Inspect LoRA or model",
            category=CATEGORY,
            description="Says what a file holds: family, layers, ranks, scales, which programs load it, and what "
            "it was made of. Only its header is read.",
            is_output_node=True,
            inputs=[
                io.Combo.Input("file", options=[*folders.loras(), *folders.models()]),
                io.String.Input("elsewhere", default="", optional=True, tooltip=ELSEWHERE_HELP),
            ],
            outputs=[report_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str = "", **_: Any) -> str:
        """Return what changes when the file does, so that the node runs again."""
        return states_of(file, file)

    @classmethod
    @as_node
    def execute(cls, file: str, elsewhere: str = "") -> io.NodeOutput:
        """Look at the file."""
        folders = comfy_folders()
        if elsewhere.strip():
            place: Any = place_elsewhere(elsewhere.strip(), what="file")
        else:
            place = folders.lora(file) if file in folders.loras() else folders.model(file, what="file")
        text = inspect_text(place)
        return io.NodeOutput(text, ui=ui.PreviewText(text))
