"""Say in one sentence what is missing, before an import fails: ComfyUI shows it when it starts."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

VERSION = "0.1.0"
"""Of these nodes, and of the loraport that they call."""
_COMFYUI = "0.3.48"


def check_loraport() -> None:
    """Raise ImportError where loraport is not installed for ComfyUI's Python, or is of another version."""
    install = f'"{sys.executable}" -m pip install "FOLDER[hub,gguf]", FOLDER being loraport as it was downloaded'
    if find_spec("loraport") is None:
        raise ImportError(f"loraport is not installed for the Python that runs ComfyUI: {install}")
    found = import_module("loraport").__version__
    if found != VERSION:
        raise ImportError(
            f"these nodes are of version {VERSION}, and the installed loraport is {found}: update both to one version, "
            f"{install}"
        )


def check_comfyui() -> None:
    """Raise ImportError where ComfyUI has no nodes of the third schema."""
    try:
        import_module("comfy_api.latest").io  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise ImportError(f"loraport's nodes need ComfyUI {_COMFYUI} or newer; update ComfyUI") from error
