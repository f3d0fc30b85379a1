"""Predict what a loader does that refuses a file for a single key that it does not know.

Read in mmgp's `offload.py`, `load_loras_into_model`, which Wan2GP loads LoRAs by.
"""

from __future__ import annotations

from loraport.files.loaders.facts import Facts, Spelling
from loraport.files.names.dialects import KOHYA_PAIR, PEFT_PAIR

SPELLINGS: frozenset[Spelling] = frozenset(
    {("diffusion_model.", "original"), ("transformer.", "original"), ("", "original"), ("lora_unet_", "original"),
     ("lora_unet__", "original")}
)  # fmt: skip
_ENDINGS = (*PEFT_PAIR, *KOHYA_PAIR, ".alpha", ".diff", ".diff_b", ".dora_scale")
_PREFIXES = ("diffusion_model.", "transformer.")


def of_mmgp(facts: Facts) -> tuple[list[str], list[str]]:
    """Return why Wan2GP refuses a file, and what it leaves out."""
    refused = []
    own = next((prefix for prefix in _PREFIXES if facts.prefix == prefix), "")
    left = [key for key in facts.names if not key.startswith(own)]
    if alien := [key for key in facts.names if key not in left and not key.endswith(_ENDINGS)]:
        refused.append(f"it refuses a file with keys of another ending: {alien[0]}, for one")
    unknown = [layer for layer, ways in facts.spelled.items() if SPELLINGS.isdisjoint(ways)]
    if unknown and len(unknown) < len(facts.spelled):
        refused.append(f"it refuses a file with layers that it does not know: {unknown[0]}, for one")
    if facts.flat and (outside := [layer for layer in facts.layers if not layer.startswith("blocks.")]):
        refused.append(f"it knows flattened names inside the blocks only, and refuses {outside[0]}")
    return refused, [f"{len(left)} keys are left out, such as {left[0]}"] if left else []
