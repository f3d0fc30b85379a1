"""The table of loaders: what each does with keys, endings and scales, and where that can be read.

A row is what the loader's own code does, not what its page promises. A loader has several where it treats families or
spellings differently; the one that knows most of a file's layers counts, the first of equal ones.
`tests/contracts/` holds the same rules once more as small programs that merge a file as the loader would, and runs
diffusers and PEFT themselves.
"""

from __future__ import annotations

from loraport.files.loaders.facts import Facts
from loraport.files.loaders.rows import spelled_alike
from loraport.files.loaders.rows_flux import FLUX_1_LOADERS, FLUX_2_LOADERS
from loraport.files.loaders.rows_hunyuan import HUNYUAN_15_LOADERS, HUNYUAN_LOADERS
from loraport.files.loaders.rows_images import IMAGE_LOADERS
from loraport.files.loaders.rows_ltx import LTX_2_LOADERS
from loraport.files.loaders.rows_minimax_h3 import MINIMAX_H3_LOADERS
from loraport.files.loaders.rows_unet import UNET_LOADERS
from loraport.files.loaders.rows_wan import WAN_LOADERS
from loraport.files.loaders.rules import Loader, Verdict, verdict
from loraport.files.names.dialects import PEFT_PAIR, PEFT_PREFIX
from loraport.files.names.families import FAMILIES

LOADERS: tuple[Loader, ...] = (
    *WAN_LOADERS,
    *HUNYUAN_15_LOADERS,
    *HUNYUAN_LOADERS,
    *MINIMAX_H3_LOADERS,
    *UNET_LOADERS,
    *IMAGE_LOADERS,
    *FLUX_1_LOADERS,
    *FLUX_2_LOADERS,
    *LTX_2_LOADERS,
    Loader(
        "PEFT",
        "huggingface/peft 0.21, PeftModel.from_pretrained, run on tiny models",
        spelled_alike(" ".join(FAMILIES), (PEFT_PREFIX, "any")),
        "peft",
        strict=True,
        pairs=frozenset({PEFT_PAIR}),
        kinds=frozenset({"LoRA", "LoHa", "LoKr", "DoRA of PEFT", "PiSSA", "OLoRA"}),
        alphas=frozenset(),
        header=True,
        extras=frozenset({".lora_B.bias"}),
        folder=True,
    ),
)


def verdicts(facts: Facts) -> tuple[Verdict, ...]:
    """Return the verdict of every loader that knows the family."""
    rows: dict[str, list[Loader]] = {}
    for loader in LOADERS:
        if facts.family in loader.spellings:
            rows.setdefault(loader.name, []).append(loader)
    return tuple(verdict(min(some, key=lambda row: len(row.unknown(facts))), facts) for some in rows.values())
