"""Parse the keys of a file, and choose one of several LoRAs in it (two experts, two adapters)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraport.errors import MismatchError, SettingsError
from loraport.files.lora.locate import LoraFiles, lora_keys
from loraport.files.names.dialects import (
    VARIANTS,
    LoraKey,
    holds_adapter_name,
    parse_key,
    unlisted_start,
)
from loraport.files.names.evidence import NO_EVIDENCE, Evidence, words_of
from loraport.files.names.families import FAMILIES, Layout
from loraport.files.names.majority import majority_dialect, rival_families

EXPERT_PARTS = {"transformer": "transformer_2", "dit": "dit2"}
"""The component of the high-noise expert -> that of the low-noise one."""

_ADAPTER = re.compile(
    rf".*\.(?:lora_[AB]|{'|'.join(part for part in VARIANTS)})\.(?!weight$|bias$)([^.]+)(?:\.weight|\.bias)?"
)


@dataclass(frozen=True, order=True)
class LoraPart:
    """One LoRA of a file: what its keys begin with, and the name of its adapter as PEFT writes it in memory."""

    component: str
    adapter: str

    @property
    def label(self) -> str:
        """Both names."""
        return f"{self.component}.{self.adapter}" if self.adapter else self.component


def lora_part(key: LoraKey) -> LoraPart:
    """Return the LoRA that a key belongs to; one without an adapter's name has "" there."""
    adapter = _ADAPTER.fullmatch(key.key)
    return LoraPart(key.component, adapter[1] if adapter else "")


def lora_part_names(keys: Sequence[LoraKey]) -> list[str]:
    """Return the names of the LoRAs in a file, where there are several; none where there is one.

    Several are: layers given twice (most of the smaller one), adapters of two names, both experts. Other mixtures are
    one LoRA.
    """
    factors = _factors(keys)
    parts = sorted(set(factors.values()))
    components, adapters = ({getattr(one, name) for one in parts} for name in ("component", "adapter"))
    both = any({high, low} <= components for high, low in EXPERT_PARTS.items())
    if not (both or len(adapters - {""}) > 1 or _given_twice(factors)):
        return []
    if len(adapters) == 1:
        return sorted(components)
    return sorted(adapters) if len(components) == 1 and "" not in adapters else [one.label for one in parts]


def keys_of_part(path: Path, keys: list[LoraKey], name: str | None) -> list[LoraKey]:
    """Return the keys of one LoRA of a file, its text encoders', and those that belong to none (other networks).

    Raises MismatchError, with the names, where there are several and none is chosen; SettingsError for an unknown one.
    """
    names = lora_part_names(keys)
    if name is None:
        if names:
            raise MismatchError(f"{path} holds {len(names)} LoRAs: {_listed(names)}; choose one with --lora-part NAME")
        return keys
    factors = _factors(keys)
    every = set(factors.values())
    chosen = {one for one in every if one.label == name} or {
        one for one in every if name in (one.component, one.adapter)
    }
    if not chosen:
        held = _listed(names) if names else "one LoRA, of no parts; leave out --lora-part"
        raise SettingsError(f"{path} has no LoRA {name!r}: it holds {held}")
    kept = [key for key in keys if _belongs(key, factors.get(key), chosen, every)]
    return keys_of_part(path, kept, None)


def _factors(keys: Sequence[LoraKey]) -> dict[LoraKey, LoraPart]:
    return {key: lora_part(key) for key in keys if not key.text_encoder and key.part in ("A", "B", *VARIANTS)}


def _given_twice(factors: Mapping[LoraKey, LoraPart]) -> bool:
    """Return whether most tensors of the smallest part are in another one, too: then these are several LoRAs."""
    sizes, first = Counter(factors.values()), dict[tuple[str, str], LoraPart]()
    again = sum(first.setdefault((key.layer, key.part), part) != part for key, part in factors.items())
    return 2 * again >= min(sizes.values(), default=0) > 0


def _belongs(key: LoraKey, of: LoraPart | None, mine: set[LoraPart], every: set[LoraPart]) -> bool:
    """Return whether a key is of the chosen parts, or of none: scales, biases, text encoders may name no adapter."""
    if of is not None:
        return of in mine
    one, components = lora_part(key), {part.component for part in mine}
    alien = not key.text_encoder and one.component in {part.component for part in every} - components
    return not alien and (not one.adapter or one.adapter in {part.adapter for part in mine})


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def evidence_of(files: LoraFiles) -> Evidence:
    """Return what a file says of its family beside the names of its layers."""
    own = [config.base_model for config in (files.config, files.beside) if config]
    return Evidence({key: tensor.shape for key, tensor in files.tensors.items()}, words_of(files.metadata, *own))


def parsed_keys(
    keys: list[str], evidence: Evidence = NO_EVIDENCE, qkv: Layout | None = None
) -> tuple[str, list[LoraKey]]:
    """Return (a start of the names that is in no list, or "", the keys read as names of the file's own family).

    `qkv`: how the rows of fused layers lie, where names do not tell; None takes what the keys' endings say.
    """
    first = [parse_key(key) for key in keys]
    start = unlisted_start(first)
    if start:
        first = [parse_key(key, start=start) for key in keys]
    dialect = majority_dialect(first, evidence) if keys else None
    if dialect is None:
        return start, []
    twins = FAMILIES[dialect.family].twins if dialect.family else {}
    named = any(map(holds_adapter_name, keys)) if qkv is None else qkv == "interleaved"
    naming = twins.get(dialect.naming) if named and dialect.naming else None
    return start, [parse_key(key, dialect.family, start, naming) for key in keys]


def notes_on_names(
    every: list[LoraKey],
    parsed: list[LoraKey],
    start: str,
    evidence: Evidence = NO_EVIDENCE,
    qkv: Layout | None = None,
) -> list[str]:
    """Say what was left alone of a file, what was taken off its names for the tables, and what was guessed."""
    notes = []
    if rivals := rival_families([key for key in parsed if key.part in ("A", "B", *VARIANTS)], evidence):
        *others, last = rivals
        notes.append(
            f"its layers are called alike in {', '.join(others)} and {last}, and nothing in the file says which it is "
            f"of; it is read as one of {rivals[0]}"
        )
    if len(every) > len(parsed):
        names = ", ".join(lora_part_names(every))
        notes.append(f"the file holds {names}: {len(parsed)} of its {len(every)} keys are of the one that was chosen")
    if start:
        known = sum(key.dialect.family is not None for key in parsed)
        notes.append(
            f"{start!r} was taken off its names, since the rest of {known} of {len(parsed)} is in the table of "
            f"{majority_dialect(parsed).family}; no loader that is known expects it: convert writes them without"
        )
    if wrapped := [key.key for key in parsed if key.wrapped]:
        notes.append(
            f"{len(wrapped)} keys hold the names of PyTorch's wrappers ({wrapped[0]}, for one), which no loader "
            "expects; they are left out of what is written"
        )
    return [*notes, *_layout_notes(parsed, qkv)]


def _layout_notes(parsed: list[LoraKey], qkv: Layout | None) -> list[str]:
    """Say how the rows of fused layers were taken, where their names do not tell."""
    namings = {
        key.dialect.naming
        for key in parsed
        if key.part == "B" and len(key.pieces) > 1 and key.dialect.family and FAMILIES[key.dialect.family].twins
    }
    if not namings or qkv is not None:
        return []
    if "interleaved" in namings:
        return [
            "the rows of its fused q, k and v are taken head by head (interleaved), since its keys hold an adapter's "
            "name, as those of DiffSynth do; --qkv lora=stacked says otherwise"
        ]
    return [
        "the rows of its fused q, k and v are taken as stacked, as every trainer but DiffSynth writes them; the file "
        "does not tell: --qkv lora=interleaved says otherwise"
    ]


def lora_parts_in(place: Path | str) -> list[str]:
    """Return the names of the LoRAs in a file, from its header alone, where there are several."""
    return lora_part_names(parsed_keys(sorted(lora_keys(place)))[1])


def expert_parts(place: Path | str) -> tuple[str, str] | None:
    """Return the names of both experts' LoRAs (high, low) in one file; None where it does not hold both."""
    heads = {name.partition(".")[0] for name in lora_parts_in(place)}
    return next(((high, low) for high, low in EXPERT_PARTS.items() if {high, low} <= heads), None)
