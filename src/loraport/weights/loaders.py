"""Which loaders take a LoRA file: a table of what each reads, with its source, and the verdict on a file.

A row is what the loader's own code does with keys, endings and scales, not what its page promises. `tests/contracts/`
holds the same rules once more as small programs that merge a file as the loader would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from loraport.weights.dialects import ADDITIONS, KOHYA_PAIR, PAIRS, PEFT_PAIR, Pair
from loraport.weights.loader_facts import Facts

Takes = Literal["yes", "partly", "no"]
Spelling = tuple[str, str]
"""(prefix, whose names); whose names may be `any`."""

DEFAULT_ADAPTER: Pair = (".lora_A.default.weight", ".lora_B.default.weight")
DOTTED_PAIR: Pair = (".lora.down.weight", ".lora.up.weight")
SEVEN = frozenset({*PAIRS, DEFAULT_ADAPTER})
LORA = frozenset({"LoRA"})


@dataclass(frozen=True)
class Loader:
    """What one loader reads."""

    name: str
    source: str
    """Where its rules were read, or what was run."""
    spellings: Mapping[str, frozenset[Spelling]]
    """Family -> (prefix, naming) of the keys that it knows."""
    format: str
    """The format of ours that it takes."""
    pairs: frozenset[Pair] = SEVEN
    kinds: frozenset[str] = LORA
    alphas: frozenset[str] = frozenset({".alpha"})
    """The endings of scales that it reads."""
    needs_alpha: bool = False
    """Whether every layer must have one."""
    header: bool = False
    """Whether it reads a scale from the header or from a configuration."""
    extras: frozenset[str] = frozenset()
    """The endings beside factors that it applies."""
    convolutions: bool = True
    mixed_ranks: str = ""
    """What goes wrong where layers have different ranks."""
    blocks_only: bool = False
    complete_kohya: bool = False
    """Whether a kohya file must have every layer of every block, with its alpha, and no other."""
    folder: bool = False
    more: tuple[str, ...] = field(default=())
    """What a user should know besides."""


@dataclass(frozen=True)
class Verdict:
    """Whether one loader takes a file, and what is lost or wrong there."""

    loader: str
    takes: Takes
    reasons: tuple[str, ...]
    source: str
    format: str
    """What to convert to, where it does not take the file."""


def _wan(*spellings: Spelling) -> dict[str, frozenset[Spelling]]:
    return {"wan": frozenset(spellings)}


_CASA: tuple[Spelling, ...] = tuple(
    (prefix, "original") for prefix in ("diffusion_model.", "generator.", "model.", "module.", "")
)

_FASTVIDEO = ("original", "diffusers", "fastvideo")

LOADERS: tuple[Loader, ...] = (
    Loader(
        "ComfyUI",
        "github.com/comfyanonymous/ComfyUI, comfy/lora.py and comfy/weight_adapter/ (0323d87)",
        _wan(("diffusion_model.", "original"), ("lora_unet_", "original")),
        "comfy",
        kinds=frozenset({"LoRA", "LoHa", "LoKr", "DoRA"}),
        extras=frozenset({".diff", ".diff_b", ".w_norm", ".b_norm"}),
    ),
    Loader(
        "diffusers",
        "huggingface/diffusers 0.42, WanPipeline.load_lora_weights, run on tiny models; mixed ranks: its issue 14409",
        _wan(("transformer.", "diffusers"), ("diffusion_model.", "original"), ("lora_unet_", "original")),
        "diffusers",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR, DOTTED_PAIR}),
        kinds=frozenset({"LoRA", "DoRA of PEFT"}),
        header=True,
        extras=frozenset({".diff_b", ".lora_B.bias"}),
        mixed_ranks="before version 0.40 it scales layers of different ranks wrongly",
        complete_kohya=True,
    ),
    Loader(
        "PEFT",
        "huggingface/peft 0.21, PeftModel.from_pretrained, run on tiny models",
        _wan(("base_model.model.", "any")),
        "peft",
        pairs=frozenset({PEFT_PAIR}),
        kinds=frozenset({"LoRA", "LoHa", "LoKr", "DoRA of PEFT"}),
        alphas=frozenset(),
        header=True,
        extras=frozenset({".lora_B.bias"}),
        folder=True,
    ),
    Loader(
        "musubi-tuner",
        "github.com/kohya-ss/musubi-tuner, src/musubi_tuner/utils/lora_utils.py (0bcd20e)",
        _wan(("lora_unet_", "original")),
        "kohya",
        pairs=frozenset({KOHYA_PAIR}),
        needs_alpha=True,
        kinds=frozenset({"LoRA", "LoHa", "LoKr"}),
    ),
    Loader(
        "LightX2V",
        "github.com/ModelTC/LightX2V, lightx2v/utils/lora_loader.py (0d6b494)",
        _wan(*((prefix, "original") for prefix in ("diffusion_model.", "model.", "unet.", ""))),
        "comfy",
        extras=frozenset({".diff", ".diff_b", ".diff_m"}),
        convolutions=False,
        more=("its dynamic mode reads lora_down and lora_up under diffusion_model.blocks only",),
    ),
    Loader(
        "FastVideo",
        "github.com/hao-ai-lab/FastVideo, fastvideo/pipelines/lora_pipeline.py (008ac86), models/loader/lora_patch.py",
        _wan(*((prefix, name) for prefix in ("diffusion_model.", "") for name in _FASTVIDEO)),
        "comfy",
        pairs=frozenset({PEFT_PAIR}),
        alphas=frozenset({".lora_alpha"}),
        blocks_only=True,
        convolutions=False,
        more=("versions from mid-2026 on also read lora_down, lora_up, .alpha and full differences",),
    ),
    Loader(
        "Krea",
        "github.com/Noahwangyuchen/CASA, Krea/utils/lora.py (45d058d)",
        _wan(("generator.model.", "original"), *_CASA),
        "comfy",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR}),
        alphas=frozenset({".alpha", ".lora_alpha"}),
        convolutions=False,
    ),
    Loader(
        "Rolling Forcing",
        "github.com/Noahwangyuchen/CASA, RollingForcing/utils/lora.py (45d058d)",
        _wan(*_CASA),
        "comfy",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR}),
        alphas=frozenset({".alpha", ".lora_alpha"}),
        convolutions=False,
    ),
)  # fmt: skip


def verdicts(facts: Facts) -> tuple[Verdict, ...]:
    """Every loader that knows the family, and what it makes of a file."""
    known = [loader for loader in LOADERS if facts.family in loader.spellings]
    return tuple(verdict(loader, facts) for loader in known)


def verdict(loader: Loader, facts: Facts) -> Verdict:
    """no: nothing, or a refusal; partly: it loads, and something is left out or scaled wrongly; yes: all of it."""
    if refusals := _refusals(loader, facts):
        return Verdict(loader.name, "no", tuple(refusals), loader.source, loader.format)
    losses = _losses(loader, facts)
    return Verdict(loader.name, "partly" if losses else "yes", (*losses, *loader.more), loader.source, loader.format)


def _refusals(loader: Loader, facts: Facts) -> list[str]:
    spellings = loader.spellings[facts.family]
    found = []
    if loader.folder and not facts.folder:
        found.append("it reads a folder with adapter_config.json")
    if (facts.prefix, facts.naming) not in spellings and (facts.prefix, "any") not in spellings:
        found.append(f"it does not know {facts.naming} names behind {facts.prefix or 'no prefix'}")
    if not facts.pairs & loader.pairs and facts.pairs:
        found.append(f"it does not read {' and '.join(min(facts.pairs))}")
    if alien := sorted(facts.kinds - loader.kinds):
        found.append(f"it does not read {', '.join(alien)}")
    if loader.complete_kohya and facts.flat and not facts.complete:
        found.append("it takes kohya files only with every layer of every block and its alpha, and no other layer")
    if loader.needs_alpha and facts.without_alpha:
        found.append(f"it needs an alpha for every layer, and {facts.without_alpha} have none")
    if loader.name == "diffusers" and facts.prefix == "transformer.":
        if facts.alphas:
            found.append("it refuses .alpha beside the keys of diffusers")
        if facts.pairs - {PEFT_PAIR, DOTTED_PAIR}:
            found.append("behind transformer. it reads lora_A and lora_B, or lora.down and lora.up, only")
    return found


def _losses(loader: Loader, facts: Facts) -> list[str]:
    found = []
    if facts.unspelled:
        found.append(f"{facts.unspelled} layers are spelled otherwise and are left out")
    if facts.pairs - loader.pairs:
        found.append("pairs with other endings are left out")
    if facts.scaled and (ignored := sorted(facts.alphas - loader.alphas)):
        found.append(f"it ignores {', '.join(ignored)}, so the strength is wrong")
    if facts.header_scale and not loader.header:
        found.append("it does not read the scale in the header or configuration, so the strength is wrong")
    if facts.mixed_ranks and loader.mixed_ranks:
        found.append(loader.mixed_ranks)
    if facts.outside and loader.blocks_only:
        found.append(f"layers outside the blocks are left out: {facts.outside[0]}, for one")
    if facts.convolutions and not loader.convolutions:
        found.append("convolutions are left out")
    if lost := sorted(part for part in facts.extras if part in ADDITIONS and part not in loader.extras):
        found.append(f"{', '.join(lost)} are left out")
    return found
