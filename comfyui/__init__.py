"""loraport's nodes for ComfyUI: LoRAs of a base model, moved onto a distilled one."""

from .needs import check_comfyui, check_loraport

check_loraport()
check_comfyui()

from .nodes.extension import comfy_entrypoint as comfy_entrypoint  # noqa: E402  # what it needs is there
