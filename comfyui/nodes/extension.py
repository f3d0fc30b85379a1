"""What ComfyUI asks for when it starts: the list of nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .file_nodes import AcceleratorNode, ConvertNode, DiagnoseNode, InspectNode, TransferNode
from .model_node import ApplyTransferredNode

NODES: list[type[io.ComfyNode]] = [
    TransferNode,
    AcceleratorNode,
    ApplyTransferredNode,
    DiagnoseNode,
    ConvertNode,
    InspectNode,
]


class LoraportExtension(ComfyExtension):
    """loraport's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return them."""
        return NODES


async def comfy_entrypoint() -> LoraportExtension:
    """Return what ComfyUI loads."""
    return LoraportExtension()
