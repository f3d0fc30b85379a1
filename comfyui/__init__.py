"""loraport's nodes for ComfyUI: LoRAs of a base model, moved onto a distilled one."""

from .nodes.extension import comfy_entrypoint as comfy_entrypoint
