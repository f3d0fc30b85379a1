"""What rows of the table of loaders share: pairs of endings, what ComfyUI and diffusers do with every family."""

from __future__ import annotations

from loraport.files.loaders.facts import Spelling
from loraport.files.names.dialects import KOHYA_PAIR, PARAMETER_DIFF, PEFT_PAIR, Pair

DOTTED_PAIR: Pair = (".lora.down.weight", ".lora.up.weight")
PROCESSOR_PAIR: Pair = ("_lora.down.weight", "_lora.up.weight")
DOWN_UP = frozenset({KOHYA_PAIR})


def spelled_alike(families: str, *spellings: Spelling) -> dict[str, frozenset[Spelling]]:
    """Return the same spellings for every one of the families."""
    return {family: frozenset(spellings) for family in families.split()}


COMFYUI = "github.com/Comfy-Org/ComfyUI, comfy/lora.py (17358c8), comfy/weight_adapter/ (0323d87)"
COMFYUI_EXTRAS = frozenset({".diff", ".diff_b", ".w_norm", ".b_norm", PARAMETER_DIFF})
DIFFUSERS = "huggingface/diffusers 0.42"
OF_DIFFUSERS = frozenset({PEFT_PAIR, DOTTED_PAIR})
MIXED_RANKS = "before version 0.40 it scales layers of different ranks wrongly"
