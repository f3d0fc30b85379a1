"""The nodes. The jobs know nothing of ComfyUI: `comfy_side` does, and what shows them as nodes."""
