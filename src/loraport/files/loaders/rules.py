"""Decide which loaders accept a LoRA file: what a row of the table says of a loader, and its verdict on a file.

The rows are in `table.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from loraport.files.loaders.diffusers_converters import Converter
from loraport.files.loaders.facts import Facts, Spelling
from loraport.files.names.dialects import ADDITIONS, PAIRS, PARAMETER_DIFF, Pair

Takes = Literal["yes", "partly", "no"]
DEFAULT_ADAPTER: Pair = (".lora_A.default.weight", ".lora_B.default.weight")
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
    """The format of ours that it takes; empty where there is none."""
    pairs: frozenset[Pair] = SEVEN
    kinds: frozenset[str] = LORA
    alphas: frozenset[str] = frozenset({".alpha"})
    """The endings of scales that it reads."""
    needs_alpha: bool = False
    """Whether every layer must have one."""
    header: bool = False
    """Whether it reads a scale from PEFT's configuration, in the header or in a file."""
    network_alpha: bool = False
    """Whether it takes a number `alpha` in the header for all layers, where no tensor is an alpha."""
    extras: frozenset[str] = frozenset()
    """The endings beside factors that it applies."""
    convolutions: bool = True
    mixed_ranks: str = ""
    """What goes wrong where layers have different ranks."""
    inside: tuple[str, ...] = ()
    """How the canonical names begin that it has adapters for; empty where it has them for all."""
    processors: bool = False
    """Whether keys of attention must be those of diffusers' old processors (`attn1.processor.to_q`)."""
    complete_kohya: bool = False
    """Whether a kohya file must have every layer of every block, with its alpha, and no other."""
    strict: bool = False
    """Whether factors of other dimensions than the module's, or one between A and B, make it raise an error."""
    converter: Converter | None = None
    """What it makes of the keys of a file before it loads them."""
    folder: bool = False
    more: tuple[str, ...] = ()
    """What a user should know besides."""
    remark: str = ""
    """What the reference says besides: Markdown."""

    def unknown(self, facts: Facts) -> list[str]:
        """Return the layers that it does not know by their names."""
        spellings = self.spellings[facts.family]
        whatever = {prefix for prefix, naming in spellings if naming == "any"}
        return [
            layer
            for layer, ways in facts.spelled.items()
            if spellings.isdisjoint(ways) and whatever.isdisjoint(prefix for prefix, _ in ways)
        ]


@dataclass(frozen=True)
class Verdict:
    """Whether one loader takes a file, and what is lost or wrong there."""

    loader: str
    takes: Takes
    reasons: tuple[str, ...]
    source: str
    format: str
    """What to convert to, where it does not take the file; empty where no format of ours is its own."""


def verdict(loader: Loader, facts: Facts) -> Verdict:
    """Judge a file: no is nothing or a refusal, partly leaves something out or scales it wrongly, yes is all of it."""
    if refusals := _refusals(loader, facts):
        return Verdict(loader.name, "no", tuple(refusals), loader.source, loader.format)
    losses = _losses(loader, facts)
    return Verdict(loader.name, "partly" if losses else "yes", (*losses, *loader.more), loader.source, loader.format)


def _refusals(loader: Loader, facts: Facts) -> list[str]:
    reasons = []
    if loader.folder and not facts.folder:
        reasons.append("it reads a folder with adapter_config.json")
    if len(loader.unknown(facts)) == len(facts.spelled):
        reasons.append(f"it does not know {facts.naming} names behind {facts.prefix or 'no prefix'}")
    if not facts.pairs & loader.pairs and facts.pairs:
        reasons.append(f"it does not read {' and '.join(min(facts.pairs))}")
    if alien := sorted(facts.kinds - loader.kinds):
        reasons.append(f"it does not read {', '.join(alien)}")
    if loader.complete_kohya and facts.flat and not facts.complete:
        reasons.append("it takes kohya files only with every layer of every block and its alpha, and no other layer")
    if not facts.kinds and loader.extras.isdisjoint(facts.extras):
        reasons.append("it reads factors only, and this file has none")
    if loader.needs_alpha and facts.without_alpha:
        reasons.append(f"it needs an alpha for every layer, and {facts.without_alpha} have none")
    if loader.strict and facts.misshapen:
        reasons.append(f"factors of other dimensions than the module's are refused: {facts.misshapen[0]}")
    if loader.strict and facts.mid:
        reasons.append("a factor between A and B (lora_mid) is refused")
    if loader.converter is not None:
        reasons += loader.converter(facts)[0]
    if loader.processors and not facts.processor and len(_attention(facts)) == len(facts.layers):
        reasons.append(_PROCESSORS)
    return reasons


_PROCESSORS = "it knows the dotted names of attention layers in the spelling of old processors only"


def _attention(facts: Facts) -> list[str]:
    return [layer for layer in facts.layers if ".to_" in layer]


def _losses(loader: Loader, facts: Facts) -> list[str]:
    reasons = []
    if unknown := loader.unknown(facts):
        reasons.append(f"{len(unknown)} of {len(facts.spelled)} layers are spelled otherwise and are left out")
    if facts.pairs - loader.pairs:
        reasons.append("pairs with other endings are left out")
    if facts.scaled and (ignored := sorted(facts.alphas - loader.alphas)):
        reasons.append(f"it ignores {', '.join(ignored)}, so the strength is wrong")
    if facts.header_scale and not loader.header:
        reasons.append("it does not read the scale in the header or configuration, so the strength is wrong")
    if facts.network_alpha and not loader.network_alpha:
        reasons.append("it does not read alpha in the header, so the strength is wrong")
    if facts.mixed_ranks and loader.mixed_ranks:
        reasons.append(loader.mixed_ranks)
    if loader.inside and (outside := [layer for layer in facts.layers if not layer.startswith(loader.inside)]):
        reasons.append(f"layers that it has no adapters for are left out: {outside[0]}, for one")
    if loader.processors and not facts.processor and _attention(facts):
        reasons.append(_PROCESSORS)
    if facts.convolutions and not loader.convolutions:
        reasons.append("convolutions are left out")
    if loader.converter is not None:
        reasons += loader.converter(facts)[1]
    if lost := sorted(
        part for part in facts.extras if part in (*ADDITIONS, PARAMETER_DIFF) and part not in loader.extras
    ):
        reasons.append(f"{', '.join(lost)} are left out")
    return reasons
