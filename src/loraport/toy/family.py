"""Where the shipped files lie. Imports nothing heavy, so the command line may read it without the extra."""

from pathlib import Path

from loraport.errors import unknown_name

FAMILY = Path(__file__).parent / "weights"
BASE, STUDENT = FAMILY / "base", FAMILY / "student"  # diffusers folders, each with its transformer/
STYLE_FILES = {"noir": "noir", "retro": "retro.safetensors"}  # a PEFT folder; a single file in diffusers' form


def adapter_path(style: str) -> Path:
    """The style's LoRA, trained on the base. Raises SettingsError for a style that is not shipped."""
    return FAMILY / "adapters" / _file(style)


def oracle_path(style: str) -> Path:
    """The same style as a LoRA trained on the student: not a transfer, but what a perfect one could reach."""
    return FAMILY / "oracles" / _file(style)


def _file(style: str) -> str:
    if style not in STYLE_FILES:
        raise unknown_name("style", style, STYLE_FILES)
    return STYLE_FILES[style]
