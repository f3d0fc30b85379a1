"""The spellings of LoRA keys: what stands before a layer's name, how the name is written, what follows it.

A key is prefix + module + suffix. Each key is taken apart on its own, since files mix dialects; the one that most
factors are written in is the file's, and what is written back.

diffusers' own converters are not used: they are private functions, go one way and need the whole file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from loraport.files.names.clip import encoder_layer, encoder_prefix
from loraport.files.names.families import FAMILIES, Naming, Piece, RowSlice, flattened
from loraport.files.names.lookup import (
    NameMatch,
    find_layer,
    find_parameter,
    find_start,
    known_start,
    without_modules,
    without_wrappers,
)

Pair = tuple[str, str]
"""What follows a module's name in the keys of A (down, [r, in]) and of B (up, [out, r])."""

PEFT_PAIR: Pair = (".lora_A.weight", ".lora_B.weight")
KOHYA_PAIR: Pair = (".lora_down.weight", ".lora_up.weight")
PAIRS: tuple[Pair, ...] = (
    KOHYA_PAIR,
    PEFT_PAIR,
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_A", ".lora_B"),
)
XLABS_PAIR: Pair = (".down.weight", ".up.weight")
_XLABS = re.compile(r"(.+\.processor\.(?:qkv|proj)_lora[12]?)\.(down|up)\.weight")
"""The keys of XLabs' LoRAs of FLUX.1; elsewhere `down` and `up` are layers of models."""
_NAMED_ADAPTER = re.compile(r"(.+)\.lora_(A|B)\.([^.]+)\.weight")
_NAMED_BIAS = re.compile(r"(.+)\.lora_B\.([^.]+)\.bias")
"""The state of a PEFT model in memory carries the adapter's name, mostly `default`."""

_FLAT_PREFIXES = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")
PEFT_PREFIX = "base_model.model."
_NO_COMPONENTS = ("base_model", "model", "module")

SCALES = (".alpha", ".lora_alpha", ".lora_rank")
ADDITIONS = (".diff", ".diff_b", ".diff_m", ".w_norm", ".b_norm", ".lora_B.bias", ".lora_up.bias")
"""Full differences and biases: they are not products of factors, and are carried through."""
PARAMETER_DIFF = ".PARAMETER.diff"
"""The difference of a parameter that is not a `.weight`, by its full name as in ComfyUI: `blocks.0.modulation.diff`."""

WHOLE = (".weight", ".bias")
"""Weights as they stand in a model, beside the factors: no differences. PEFT's wrappers may stand before the ending."""
_WHOLE = re.compile(r"(.+?)(?:\.base_layer|\.modules_to_save(?:\.[^.]+)?)?(\.weight|\.bias)")

LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
MAGNITUDES = ("dora_scale", "lora_magnitude_vector")
VARIANTS = (*LOHA, *LOKR, "lora_mid", *MAGNITUDES)
"""The tensors of other adapters than B·A; the name of the adapter may stand behind them, and `.weight`."""
_VARIANT = re.compile(rf"(.+)\.({'|'.join(VARIANTS)})(?:\.(?!weight$)[^.]+)?(?:\.weight)?")

REFUSED = {
    re.compile(r".*\.lokr_t1(\..+)?"): "a Tucker core on the first factor of LoKr",
    re.compile(r".*\.(oft_.+|boft_.+|lora_oft.*|hoft_.+|road_.+)"): "OFT rotations",
    re.compile(r".*\.(a1|a2|b1|b2|bm)\.weight"): "GLoRA factors",
    re.compile(r".*\.(on_input|ia3_.+)"): "IA3 scales",
    re.compile(r".*\.(vera_(A|B|lambda_[bd])|vblora_.+|randlora_.+)(\..+)?"): "VeRA vectors over shared random factors",
    re.compile(r".*\.(bone_.+|miss_.+|fourierft_.+|lora_E|lora_ga_.+)(\..+)?"): "an adapter of another kind",
    re.compile(r".*\.lora_embedding_[AB](\..+)?"): "factors of an embedding",
    re.compile(r".*\.[qkv]_loras\.(down|up)\.weight"): "LoRAs for the tokens of a reference image alone (Stand-In)",
    re.compile(r".*\.lora_(down|up)\.\d+\.weight"): "factors divided over q, k and v (sd-scripts' split_qkv)",
    re.compile(r".*\.set_weight"): "a weight to replace the model's (.set_weight)",
    re.compile(r".*\.reshape_weight"): "a change of a weight's shape (.reshape_weight)",
}


@dataclass(frozen=True)
class Dialect:
    """One way to write a layer's keys; enough to write a LoRA back as it was.

    `naming` and `family` are None where no table knows the names. `flat`: the dots as underscores, an alpha per layer.
    `processor`: the old attention processors of diffusers (`attn1.processor.to_q_lora`). `folder`: a PEFT folder.
    """

    prefix: str
    naming: Naming | None
    pair: Pair = PEFT_PAIR
    flat: bool = False
    processor: bool = False
    family: str | None = None
    """The name of the family whose table spells the layers."""

    @property
    def folder(self) -> bool:
        """Whether this is PEFT's own format: a folder with a configuration beside the weights."""
        return self.prefix.startswith(PEFT_PREFIX) and self.pair == PEFT_PAIR

    @property
    def label(self) -> str:
        """For people: the grammar by the names of its users."""
        if self.folder:
            return "peft"
        if self.flat:
            return "kohya"
        known = {"diffusion_model.": "comfy", "transformer.": "diffusers", "unet.": "diffusers", "": "no prefix"}
        return known.get(self.prefix, self.prefix)

    def rows(self, layer: str) -> RowSlice:
        """Return the module that holds a canonical layer, and its rows; names outside the tables stay as they are."""
        rows = FAMILIES[self.family].rows(layer, self.naming) if self.family and self.naming else None
        return rows or RowSlice(layer)

    def module(self, layer: str) -> str:
        """Return the module's name as this dialect writes it, without prefix."""
        spelled = self.rows(layer).name
        return flattened(spelled) if self.flat else spelled

    def key(self, layer: str, suffix: str) -> str:
        """Return the key of one part of a layer's module."""
        module = self.module(layer)
        if self.processor:
            attention, _, projection = module.removesuffix(".0").rpartition(".")
            module = f"{attention}.processor.{projection}"
        return f"{self.prefix}{module}{suffix}"


@dataclass(frozen=True)
class LoraKey:
    """One key taken apart. `part` is A, B, one of VARIANTS, SCALES, ADDITIONS or WHOLE, or "" for an unknown ending."""

    key: str
    prefix: str
    module: str
    pieces: tuple[Piece, ...]
    """The layers that the module holds: one under its canonical name, or several that it fuses."""
    part: str
    dialect: Dialect
    text_encoder: bool = False
    bare: bool = False
    """Whether it adds to a parameter outside all layers (`blocks.0.modulation`), which `layer` then names."""
    by_name: bool = False
    """Whether it is spelled by the full name of a parameter that is not a `.weight`."""
    wrapped: bool = False
    """Whether names of wrappers (`_orig_mod`) stood in it; they are in no name here but `key`."""
    clip: bool = False
    """Whether it is a layer of CLIP's, the text encoder whose names are known; `pieces` has its canonical one."""

    @property
    def layer(self) -> str:
        """The canonical name; of a fused module those of its layers."""
        return " + ".join(name for name, _ in self.pieces)

    @property
    def whole(self) -> bool:
        """Whether the module's rows are one layer's rows as they stand."""
        return all(rows.whole for _, rows in self.pieces)

    @property
    def counterpart(self) -> str:
        """The key of the other factor, as the same writer would have called it."""
        mine, other = self.dialect.pair if self.part == "A" else self.dialect.pair[::-1]
        return self.key.removesuffix(mine) + other

    @property
    def ending(self) -> str:
        """What its ending means to a loader."""
        if self.by_name:
            return PARAMETER_DIFF
        return ".diff_m" if self.bare else self.part

    @property
    def module_names(self) -> tuple[str, str]:
        """What patterns of a configuration may call the module: as PEFT's model has it, wrappers and all, or ours."""
        return _split_suffix(self.key)[0].removeprefix(PEFT_PREFIX), self.module

    @property
    def component(self) -> str:
        """The last name before the layer that tells which model it is of: PEFT's prefix and `module` do not."""
        parts = self.prefix.rstrip("._").split(".")
        return next((one for one in reversed(parts) if one not in _NO_COMPONENTS), parts[-1])

    @property
    def unresolved(self) -> bool:
        """Whether the layer's name is known only with its dots lost."""
        return self.dialect.flat and self.dialect.naming is None


# Reading a file and describing it ask for the same keys several times over.
@lru_cache(maxsize=1 << 16)
def parse_key(key: str, family: str | None = None, start: str = "", naming: Naming | None = None) -> LoraKey:
    """Take a key of a LoRA file apart: every ending, every prefix; what is in no table keeps its own name.

    `family` is the file's, where it is known: few names are in the tables of several, and they are read as its own.
    `start` is a prefix in no list, as `unlisted_start` finds it. `naming` is the file's, where names do not tell it.
    """
    found = _parsed(key, family, start)
    twins = {} if found.dialect.family is None else FAMILIES[found.dialect.family].twins
    if naming is None or found.dialect.naming is None or twins.get(found.dialect.naming) != naming:
        return found
    pieces = FAMILIES[str(found.dialect.family)].pieces(found.module, naming, flat=found.dialect.flat)
    return replace(found, pieces=pieces or found.pieces, dialect=replace(found.dialect, naming=naming))


def _parsed(key: str, family: str | None, start: str) -> LoraKey:
    stem, part, pair = _split_suffix(key)
    plain = without_wrappers(stem)
    head = known_start(plain)
    own = encoder_prefix(plain[len(head) :], in_peft=head.endswith(PEFT_PREFIX))
    if own is not None:
        module = plain[len(head + own) :]
        inner = known_start(module) if own.endswith(".") else ""
        clip = encoder_layer(own, module)
        if clip is None and inner and (clip := encoder_layer(own, module[len(inner) :])):
            own, module = own + inner, module[len(inner) :]
        dialect = Dialect(head + own, None, KOHYA_PAIR if own.endswith("_") and part in VARIANTS else pair)
        return LoraKey(
            key, dialect.prefix, module, _unknown(clip or plain), part, dialect, text_encoder=True,
            wrapped=plain != stem, clip=clip is not None,
        )  # fmt: skip
    unlisted = start if start and plain.startswith(start) else ""
    flat = unlisted if unlisted.endswith("_") else next((one for one in _FLAT_PREFIXES if plain.startswith(one)), "")
    if flat:
        dialect = Dialect(flat, None, KOHYA_PAIR if part in VARIANTS else pair, flat=True, family=family)
        found = _layer_key(key, flat, plain.removeprefix(flat), part, dialect)
    else:
        prefix = unlisted or known_start(plain)
        attention, processor, projection = plain.removeprefix(prefix).rpartition(".processor.")
        module = f"{attention}.{projection}" if processor else projection
        if processor and projection == "to_out":
            module += ".0"
        dialect = Dialect(prefix, None, pair, processor=bool(processor), family=family)
        found = _layer_key(key, prefix, module, part, dialect)
    return found if plain == stem else replace(found, wrapped=True)


def unlisted_start(keys: Iterable[LoraKey]) -> str:
    """Return the start before the layers that is in no list; "" where the tables know the names, or cannot tell."""
    stems = {without_wrappers(_split_suffix(key.key)[0]): key for key in keys if not key.text_encoder}
    if 2 * sum(key.dialect.family is not None for key in stems.values()) >= len(stems):
        return ""
    dotted = find_start((stem for stem in stems if "." in stem), lambda name: find_layer(name) is not None)
    flat = (stem for stem in stems if "." not in stem)
    return dotted or find_start(flat, lambda name: find_layer(name, flat=True) is not None, "_")


def _layer_key(key: str, prefix: str, module: str, part: str, dialect: Dialect) -> LoraKey:
    found: NameMatch | None = find_layer(module, flat=dialect.flat, prefer=dialect.family)
    if found is None and f"{module}.".count("module."):
        found = find_layer(without_modules(module), prefer=dialect.family)
        if found is not None:
            own = without_modules(module)
            return replace(_layer_key(key, prefix, own, part, dialect), wrapped=True)
    if found is None and part in (".diff", ".diff_m") and not dialect.flat:
        return _parameter_key(key, prefix, module, part, dialect)
    if found is None:
        return LoraKey(key, prefix, module, _unknown(module), part, replace(dialect, family=None))
    dialect = replace(dialect, naming=found.naming, family=found.family.name)
    return LoraKey(key, prefix, module, found.pieces, part, dialect)


_LEAVES = {"weight": ".diff", "bias": ".diff_b"}


def _parameter_key(key: str, prefix: str, module: str, part: str, dialect: Dialect) -> LoraKey:
    """Read a difference by a parameter's name: `X.bias.diff`, `X.query_norm.scale.diff`, `blocks.0.modulation.diff`.

    LightX2V spells the last `blocks.0.diff_m`, which is the same thing.
    """
    name = f"{module}.modulation" if part == ".diff_m" else module
    found = find_parameter(name, prefer=dialect.family)
    pieces = _unknown(name) if found is None else found.pieces
    family, naming = (None, None) if found is None else (found.family.name, found.naming)
    leaf = pieces[0][0].rpartition(".")[2]
    if leaf in _LEAVES:
        pieces = tuple((canonical.removesuffix(f".{leaf}"), rows) for canonical, rows in pieces)
    return LoraKey(
        key, prefix, module, pieces, _LEAVES.get(leaf, ".diff"), replace(dialect, naming=naming, family=family),
        bare=leaf not in _LEAVES and (found is not None or part == ".diff_m"),
        by_name=part == ".diff" and (found is not None or leaf in _LEAVES),
    )  # fmt: skip


def _unknown(name: str) -> tuple[Piece, ...]:
    return ((name, RowSlice(name)),)


def _split_suffix(key: str) -> tuple[str, str, Pair]:
    """Return (what stands before the ending, the part it names, the pair of endings it belongs to)."""
    if xlabs := _XLABS.fullmatch(key):
        return xlabs[1], "A" if xlabs[2] == "down" else "B", XLABS_PAIR
    for pair in PAIRS:
        for part, suffix in zip("AB", pair, strict=True):
            if key.endswith(suffix):
                return key.removesuffix(suffix), part, pair
    if named := _NAMED_ADAPTER.fullmatch(key):
        return named[1], named[2], (f".lora_A.{named[3]}.weight", f".lora_B.{named[3]}.weight")
    if bias := _NAMED_BIAS.fullmatch(key):
        return bias[1], ".lora_B.bias", PEFT_PAIR
    if variant := _VARIANT.fullmatch(key):
        return variant[1], variant[2], PEFT_PAIR
    for ending in sorted(SCALES + ADDITIONS, key=len, reverse=True):
        if key.endswith(ending):
            return key.removesuffix(ending), ending, PEFT_PAIR
    if (whole := _WHOLE.fullmatch(key)) and not says_lora(key):
        return whole[1], whole[2], PEFT_PAIR
    return key, "", PEFT_PAIR


def holds_adapter_name(key: str) -> bool:
    """Return whether a factor's key has the name of PEFT's adapter in it: `….lora_A.default.weight`."""
    return _NAMED_ADAPTER.fullmatch(key) is not None


def says_lora(key: str) -> bool:
    """Return whether a key calls itself a LoRA's, whatever its ending: no key of a model does."""
    return "lora" in key.lower()


def are_of_lora(keys: Iterable[str]) -> bool:
    """Return whether at least half of the keys are those of an adapter, read or not, and none is a wrapped model's."""
    keys = list(keys)
    count = sum(_split_suffix(key)[1] not in ("", *WHOLE) or bool(refused_kind(key)) or says_lora(key) for key in keys)
    return 0 < count >= len(keys) / 2 and not any(".base_layer." in key for key in keys)


def refused_kind(key: str) -> str | None:
    """Return what a key holds that is not read, or None."""
    return next((kind for pattern, kind in REFUSED.items() if pattern.fullmatch(key)), None)


NO_NAME = "its layer is known by a flattened name only, which this format cannot hold"
_OF_DIFFUSERS = frozenset({PEFT_PREFIX, "transformer.", "transformer_ref.", "unet.", ""})
_OF_COMFYUI = frozenset({"diffusion_model.", "model.diffusion_model.", "lora_unet_", "lora_unet__"})


def no_name(layer: str, was: Dialect, becomes: Dialect) -> str:
    """Return why a layer has no name in another dialect, for people; "" where it has one.

    A name in no table goes along only where both dialects name modules as the same model does.
    """
    if becomes is was:
        return ""
    family = FAMILIES[becomes.family] if becomes.family and becomes.naming else None
    if family and becomes.naming and family.rows(layer, becomes.naming):
        return ""
    if was.naming == becomes.naming and _same_modules(was, becomes):
        return ""
    if family and family.rows(layer, family.canonical):
        return f"the model has no such layer where it has {becomes.naming} names"
    return "its name is in no table, so what the loaders of this format call it is not known"


def _same_modules(was: Dialect, becomes: Dialect) -> bool:
    prefixes = {was.prefix, becomes.prefix}
    if len(prefixes) == 1:
        return was.flat == becomes.flat
    if was.family is None:
        return prefixes <= _OF_DIFFUSERS - {""} or prefixes <= _OF_COMFYUI
    return was.naming == "diffusers" and prefixes <= _OF_DIFFUSERS
