"""Collect what decides whether a loader takes a LoRA file: how its keys are spelled, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from loraport.files.adapters.peft_fields import CONFIG_NAME
from loraport.files.lora.alpha import HEADER_FIELD, OF_HEADER
from loraport.files.lora.kernels import kernel_by_name, same_kernel
from loraport.files.lora.kohya import is_complete
from loraport.files.lora.read import Lora
from loraport.files.names.dialects import ADDITIONS, PAIRS, VARIANTS, LoraKey, Pair
from loraport.files.names.families import Family, Naming
from loraport.files.names.lookup import spellings

Spelling = tuple[str, str]
"""(prefix, whose names); whose names may be `any`, or end with `, fused` for modules in place of a naming's own."""


@dataclass(frozen=True)
class Facts:
    """One file, as its loaders see it."""

    family: str
    prefix: str
    naming: str
    flat: bool
    folder: bool
    pairs: frozenset[Pair]
    kinds: frozenset[str]
    """LoRA, LoHa, LoKr, DoRA (dora_scale), DoRA of PEFT (lora_magnitude_vector); none where there are no factors."""
    alphas: frozenset[str]
    """The endings of the scales that stand as tensors."""
    without_alpha: int
    """Layers that have none."""
    scaled: bool
    """Whether some scale is not 1."""
    header_scale: bool
    """Whether a scale other than 1 stands in PEFT's configuration only, in the header or in a file."""
    mixed_ranks: bool
    """Whether layers have different ranks, and no configuration in the header says which."""
    convolutions: bool
    layers: tuple[str, ...]
    """Canonical names."""
    processor: bool
    """Whether most keys are those of diffusers' old attention processors."""
    complete: bool
    """Whether a kohya file is what diffusers takes."""
    extras: frozenset[str]
    """Endings beside the factors."""
    spelled: Mapping[str, frozenset[Spelling]]
    """Layer -> the ways to spell it that all of its keys agree with: often several namings call it alike.

    None of them, where names of wrappers stand in a key.
    """
    names: tuple[str, ...] = ()
    """Every key of the file."""
    misshapen: tuple[str, ...] = ()
    """Layers whose factors are not of the dimensions that their modules have, though of as many numbers."""
    mid: bool = False
    """Whether some layer has a factor between A and B."""
    network_alpha: bool = False
    """Whether a scale other than 1 stands in the header only, as one alpha for all layers."""
    single_widths: Mapping[str, int] = field(default_factory=dict)
    """Single blocks' layers that hold four -> the width of their input."""


def facts_of(lora: Lora) -> Facts | None:
    """Return the facts of a file; None where its names are of no known family."""
    if lora.dialect.family is None:
        return None
    keys = {name: [lora.parse(key) for key in layer.keys] for name, layer in lora.layers.items()}
    extras = [key for key in map(lora.parse, lora.extras) if not key.text_encoder and key.part]
    spelled = keys or {key.key: [key] for key in extras}
    factors = [key for some in keys.values() for key in some if key.part in ("A", "B")]
    alphas = {layer for layer, some in keys.items() if any(key.part in (".alpha", ".lora_alpha") for key in some)}
    scaled = {name for name, layer in lora.layers.items() if layer.scale != 1}
    of_header = {name for name in scaled if lora.layers[name].scale_source == OF_HEADER}
    return Facts(
        lora.dialect.family,
        lora.dialect.prefix,
        str(lora.dialect.naming),
        lora.dialect.flat,
        lora.path.is_dir() and (lora.path / CONFIG_NAME).is_file(),
        frozenset(pair for key in factors for pair in [key.dialect.pair] if pair in PAIRS or key.part),
        frozenset(_kind(lora, layer, some) for layer, some in keys.items()),
        frozenset(key.part for some in keys.values() for key in some if key.part in (".alpha", ".lora_alpha")),
        len(set(lora.layers) - alphas),
        bool(scaled),
        bool(scaled - alphas - of_header),
        len({layer.outline.rank for layer in lora.layers.values()}) > 1 and HEADER_FIELD not in lora.metadata,
        any(layer.kernel is not None for layer in lora.layers.values()),
        tuple(lora.layers),
        lora.dialect.processor,
        lora.dialect.flat and alphas == set(lora.layers) and is_complete(lora.layers) and not lora.extras,
        frozenset(key.ending for key in extras),
        {layer: _spellings(some, lora.dialect.family) for layer, some in spelled.items()},
        _names(lora),
        tuple(_misshapen(lora)),
        any(key.part == "lora_mid" for some in keys.values() for key in some),
        bool(of_header),
        {
            key.module: lora.layers[layer].outline.shape[1]
            for layer, some in keys.items()
            for key in some
            if any(place.span > 1 for _, place in key.pieces)
        },
    )


def _names(lora: Lora) -> tuple[str, ...]:
    read = {key for layer in (*lora.layers.values(), *lora.encoders.values()) for key in layer.keys}
    return tuple(sorted({*read, *lora.extras, *(key for key, _ in lora.dropped)}))


def _misshapen(lora: Lora) -> Iterator[str]:
    """Yield layers of flat factors for convolutions, or of factors with a kernel of ones for linear layers."""
    for name, layer in lora.layers.items():
        named, stored = kernel_by_name(name, lora), layer.kernel or ()
        if named is not None and named != stored and (not stored or same_kernel(named, stored)):
            yield name


def _kind(lora: Lora, layer: str, keys: list[LoraKey]) -> str:
    of_peft = any(key.part == "lora_magnitude_vector" for key in keys)
    kind = lora.layers[layer].outline.kind
    return "DoRA of PEFT" if kind == "DoRA" and of_peft else kind


def _spellings(keys: list[LoraKey], family: str) -> frozenset[Spelling]:
    factors = [key for key in keys if key.part in ("A", "B", *VARIANTS, *ADDITIONS)]
    if any(key.wrapped for key in factors):
        return frozenset()
    by_key = [
        frozenset(
            (key.prefix, f"{naming}, fused" if one.is_fused(key.module, naming, key.dialect.flat) else naming)
            for one, naming in spellings(key.module, flat=key.dialect.flat)
            if one.name == family and (len(key.pieces) == 1 or naming not in _twins_of(one, key.dialect.naming))
        )
        for key in factors
    ]
    return frozenset.intersection(*by_key) if by_key else frozenset()


def _twins_of(family: Family, naming: Naming | None) -> set[Naming]:
    """Return the namings that call fused layers as this one does, and have their rows in another order."""
    pairs = {(one, other) for one, other in family.twins.items()}
    return {other for one, other in pairs if one == naming} | {one for one, other in pairs if other == naming}
