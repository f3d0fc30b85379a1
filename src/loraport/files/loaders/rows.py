"""What rows of the table of loaders share: pairs of endings, and what programs do with every family alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loraport.files.loaders.facts import Spelling
from loraport.files.loaders.rules import Loader
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


def comfyui(source: str, spelled: Mapping[str, frozenset[Spelling]], **more: Any) -> Loader:
    """Return ComfyUI's row for a family: its rules are those of every family, its names are the family's."""
    kinds = frozenset({"LoRA", "LoHa", "LoKr", "DoRA"})
    return Loader("ComfyUI", source, spelled, "comfy", kinds=kinds, extras=COMFYUI_EXTRAS, **more)


def musubi_tuner(source: str, spelled: Mapping[str, frozenset[Spelling]]) -> Loader:
    """Return musubi-tuner's row for a family, likewise."""
    kinds = frozenset({"LoRA", "LoHa", "LoKr"})
    return Loader("musubi-tuner", source, spelled, "kohya", pairs=DOWN_UP, needs_alpha=True, kinds=kinds)
