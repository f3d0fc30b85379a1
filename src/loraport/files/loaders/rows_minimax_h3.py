"""The loaders of LoRAs of MiniMax-H3."""

from __future__ import annotations

from loraport.files.loaders.diffusers_converters import Findings, component_keys, h3_original
from loraport.files.loaders.facts import Facts
from loraport.files.loaders.rows import COMFYUI, DIFFUSERS, OF_DIFFUSERS, comfyui, spelled_alike
from loraport.files.loaders.rules import DEFAULT_ADAPTER, Loader
from loraport.files.loaders.whole_or_nothing import mmgp
from loraport.files.names.dialects import KOHYA_PAIR, PEFT_PAIR

_H3 = "minimax-h3"
_WAN2GP = frozenset({*((prefix, "original") for prefix in ("diffusion_model.", "transformer.", "", "lora_unet_")),
                     ("", "diffusers")})  # fmt: skip


def wan2gp_h3(facts: Facts) -> Findings:
    """Judge what Wan2GP makes of a file: of flattened names it knows attention and feed-forward of the blocks alone."""
    refused, left = mmgp(_WAN2GP, "transformer_blocks.")(facts)
    if facts.flat and (others := [layer for layer in facts.layers if ".adaln_proj." in layer]):
        refused.append(f"of flattened names it knows attention and feed-forward alone, and refuses {others[0]}")
    return refused, left


_PIPELINE = f"{DIFFUSERS}, MiniMaxH3LoraLoaderMixin.load_lora_weights, run on tiny models"

MINIMAX_H3_LOADERS: tuple[Loader, ...] = (
    comfyui(
        f"{COMFYUI}, model_lora_keys_unet for MiniMaxH3",
        spelled_alike(_H3, *((prefix, "original") for prefix in ("diffusion_model.", "lora_unet_", ""))),
    ),
    Loader(
        "diffusers",
        _PIPELINE,
        spelled_alike(_H3, ("transformer.", "diffusers"), ("transformer_ref.", "diffusers")),
        "diffusers",
        pairs=OF_DIFFUSERS,
        kinds=frozenset({"LoRA", "DoRA of PEFT"}),
        header=True,
        network_alpha=True,
        extras=frozenset({".lora_B.bias"}),
        strict=True,
        converter=component_keys,
    ),
    Loader(
        "diffusers",
        _PIPELINE,
        spelled_alike(_H3, *((prefix, "original") for prefix in ("diffusion_model.", "lora_unet_", "")),
            ("", "interleaved")),
        "diffusers",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR, DEFAULT_ADAPTER}),
        header=True,
        network_alpha=True,
        strict=True,
        converter=h3_original,
    ),
    Loader(
        "Wan2GP",
        "github.com/deepbeepmeep/Wan2GP, models/minimax_h3/transformer.py; its library mmgp, offload.py",
        {_H3: _WAN2GP},
        "comfy",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR}),
        kinds=frozenset({"LoRA", "DoRA"}),
        extras=frozenset({".diff_b"}),
        convolutions=False,
        converter=wan2gp_h3,
        remark="it carries modulation layers over between the full model and its own pruned ones while it loads",
    ),
)  # fmt: skip
