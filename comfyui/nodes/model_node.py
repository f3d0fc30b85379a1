"""The node that changes a MODEL, as ComfyUI sees it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

import loraport

from .applied import Wanted, applied, unplaced
from .comfy_side import (
    as_node,
    comfy_folders,
    device_text,
    kept_folder,
    name_map,
    node_progress,
    patched,
)
from .inputs import (
    CATEGORY,
    device_input,
    elsewhere_inputs,
    lora_input,
    lora_part_input,
    method_input,
    own_method_input,
    rank_input,
    report_output,
    source_input,
    states_of,
    strength_input,
)
from .model_target import OURS, target_of
from .places import choices_of

FROM_MODEL = "the MODEL's own"
PART_OF_TARGET, ASIDE = "part of the target", "leave aside"
EARLIER_CHOICES = [PART_OF_TARGET, ASIDE]


class ApplyTransferredNode(io.ComfyNode):
    """MODEL -> MODEL with a LoRA that is transferred onto its own weights, in memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return what the node takes and gives."""
        return io.Schema(
            node_id="LoraportApply",
            display_name="Apply transferred LoRA",
            category=CATEGORY,
            description="Transfers a LoRA onto the weights of the MODEL and applies it, without a file. Accelerators "
            "that are loaded before this node count as a part of the target.",
            inputs=[
                io.Model.Input("model", tooltip="The distilled model, or the base with an accelerator loaded."),
                lora_input(),
                source_input(),
                method_input(),
                strength_input("strength", "Of all that is added to the MODEL."),
                strength_input("adapter_strength", "Of what is left of the LoRA."),
                strength_input("counter_drift_strength", "Of what is taken back of the target's drift."),
                rank_input(),
                io.Combo.Input(
                    "loaded_before",
                    options=EARLIER_CHOICES,
                    default=PART_OF_TARGET,
                    optional=True,
                    tooltip="LoRAs that are in the MODEL already. Leave aside those that only add a style.",
                ),
                io.Combo.Input(
                    "target_weights",
                    options=[FROM_MODEL, *comfy_folders().models()],
                    default=FROM_MODEL,
                    optional=True,
                    tooltip="For a quantised MODEL: the target's own unquantised file.",
                ),
                *elsewhere_inputs("source"),
                own_method_input(),
                device_input(),
                lora_part_input(),
            ],
            outputs=[io.Model.Output("patched", display_name="MODEL"), report_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str = "", source: str = "", **_: Any) -> str:
        """Return what changes when one of the files does, so that the node runs again."""
        return states_of(lora, source)

    @classmethod
    @as_node
    def execute(
        cls, model: Any, lora: str, source: str, method: str, strength: float, adapter_strength: float,
        counter_drift_strength: float, rank: str, loaded_before: str = PART_OF_TARGET, target_weights: str = FROM_MODEL,
        source_elsewhere: str = "", own_method: str = "", device: str = "auto", lora_part: str = "",
    ) -> io.NodeOutput:  # fmt: skip
        """Transfer onto the MODEL's weights, and return a MODEL with the result."""
        progress, folders = node_progress(), comfy_folders()
        choices_of(loaded_before, EARLIER_CHOICES, what="way with LoRAs that are loaded before")
        wanted = Wanted(
            folders.lora(lora), folders.model(source, source_elsewhere, what="source"), own_method.strip() or method,
            rank, device_text(device), loraport.default_cache(), adapter_strength != counter_drift_strength,
            lora_part.strip() or None,
        )  # fmt: skip
        own = "" if target_weights == FROM_MODEL else folders.model(target_weights, what="target")
        target = target_of(model, with_patches=loaded_before == PART_OF_TARGET, instead=own)
        made = applied(wanted, target, kept_folder(), progress)
        known = name_map(model)
        missing = unplaced({**made.adapter, **made.counter_drift}, known)
        text = made.text
        if missing:
            text += (
                f"\nNote: {len(missing)} tensors have no place in this MODEL and are not applied, {missing[0]} for one"
            )
        parts = [(made.adapter, strength * adapter_strength), (made.counter_drift, strength * counter_drift_strength)]
        return io.NodeOutput(patched(model, parts, known, OURS), text, ui=ui.PreviewText(text))
