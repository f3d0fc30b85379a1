"""What ComfyUI imports of torchvision where there is none for this PyTorch: names only. No node of a LoRA uses them."""

from . import transforms as transforms

__version__ = "0"
