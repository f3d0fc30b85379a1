"""Predict what a loader does that refuses a file for a single key that it does not know.

Read in mmgp's `offload.py`, `load_loras_into_model`, which Wan2GP loads LoRAs by.
"""

from __future__ import annotations

from loraport.files.loaders.diffusers_converters import Converter, Findings
from loraport.files.loaders.facts import Facts, Spelling
from loraport.files.names.dialects import KOHYA_PAIR, PEFT_PAIR

SPELLINGS: frozenset[Spelling] = frozenset(
    {("diffusion_model.", "original"), ("transformer.", "original"), ("", "original"), ("lora_unet_", "original"),
     ("lora_unet__", "original")}
)  # fmt: skip
"""Of Wan's LoRAs, once its model has respelled kohya's."""
_ENDINGS = (*PEFT_PAIR, *KOHYA_PAIR, ".alpha", ".diff", ".diff_b", ".dora_scale")
_PREFIXES = ("diffusion_model.", "transformer.")


def mmgp(spellings: frozenset[Spelling], inside: str = "", more_endings: tuple[str, ...] = ()) -> Converter:
    """Return why Wan2GP refuses a file of a family, and what it leaves out.

    `spellings` are those that it knows once the family's model has respelled them; of flattened names it may know
    those `inside` the blocks alone. `more_endings`: what the model respells besides.
    """

    def judge(facts: Facts) -> Findings:
        refused = []
        own = next((prefix for prefix in _PREFIXES if facts.prefix == prefix), "")
        left = [key for key in facts.names if not key.startswith(own)]
        if alien := [key for key in facts.names if key not in left and not key.endswith((*_ENDINGS, *more_endings))]:
            refused.append(f"it refuses a file with keys of another ending: {alien[0]}, for one")
        unknown = [layer for layer, ways in facts.spelled.items() if spellings.isdisjoint(ways)]
        if unknown and len(unknown) < len(facts.spelled):
            refused.append(f"it refuses a file with layers that it does not know: {unknown[0]}, for one")
        if facts.flat and (outside := [layer for layer in facts.layers if not layer.startswith(inside)]):
            refused.append(f"it knows flattened names inside the blocks only, and refuses {outside[0]}")
        return refused, [f"{len(left)} keys are left out, such as {left[0]}"] if left else []

    return judge
