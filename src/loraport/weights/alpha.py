"""Where a LoRA's scale is stored when no tensor holds it: PEFT's configuration, a file's header, a trainer's notes.

The rank always comes from the tensor: files are cut and merged after their configuration was written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loraport.errors import FileFormatError, InputError

PEFT_ALPHA = 8.0
PEFT_RANK = 8.0
"""PEFT's alpha and rank where its configuration gives none."""

KINDS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""The kinds of PEFT's adapters that are read -> the field of their alpha."""

HEADER_FIELD = "lora_adapter_metadata"
"""Where diffusers keeps PEFT's configuration in a safetensors header."""


@dataclass(frozen=True)
class AdapterConfig:
    """The fields of a PEFT configuration that fix the scale, and the file or header that they came from."""

    origin: str
    alpha: float = PEFT_ALPHA
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    rank: float = PEFT_RANK
    """Only for LoKr whose factors are whole, which have no rank of their own."""
    rank_pattern: Mapping[str, float] = field(default_factory=dict)

    def scale(self, module: str, rank: float | None) -> float:
        """alpha / r, or alpha / √r for rank-stabilised LoRA; a pattern is matched at the end of the module's name."""
        alpha = _chosen(self.alpha_pattern, module, self.alpha)
        rank = _chosen(self.rank_pattern, module, self.rank) if rank is None else rank
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def adapter_config(fields: Mapping[str, Any], origin: str) -> AdapterConfig:
    """The configuration from its JSON fields.

    Raises FileFormatError for an adapter of another kind than LoRA, LoHa and LoKr, and fields of the wrong kind.
    """
    kind = fields.get("peft_type") or "LORA"
    if kind not in KINDS:
        raise FileFormatError(f"{origin}: peft_type is {kind!r}; only {', '.join(KINDS)} are read")
    word = KINDS[kind]
    alpha, rank = fields.get(word), fields.get("r")
    return AdapterConfig(
        origin,
        PEFT_ALPHA if alpha is None else _number(alpha, word, origin),
        _patterns(fields, "alpha_pattern", origin),
        bool(fields.get("use_rslora")),
        PEFT_RANK if rank is None or kind != "LOKR" else _number(rank, "r", origin),
        _patterns(fields, "rank_pattern", origin) if kind == "LOKR" else {},
    )


def _patterns(fields: Mapping[str, Any], name: str, origin: str) -> dict[str, float]:
    patterns = fields.get(name) or {}
    if not isinstance(patterns, dict):
        raise FileFormatError(f"{origin}: {name} is {patterns!r}, not a table of module names and numbers")
    return {_pattern(key, origin): _number(value, f"{name} of {key}", origin) for key, value in patterns.items()}


def _chosen(patterns: Mapping[str, float], module: str, default: float) -> float:
    return next((value for pattern, value in patterns.items() if _matches(pattern, module)), default)


def parse_json_object(text: str | bytes, origin: str) -> dict[str, Any]:
    """A JSON object. Raises FileFormatError naming `origin` for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{origin} is not JSON ({error}); save the LoRA again") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{origin} is not a JSON object; save the LoRA again")
    return value


@dataclass(frozen=True)
class Scales:
    """What a file says of its scales outside the tensors: a configuration per component, a trainer's alpha, nothing."""

    name: str
    components: Mapping[str, AdapterConfig] = field(default_factory=dict)
    trainer_alpha: str | None = None

    def scale(self, component: str, module: str, rank: int | None) -> tuple[float, str]:
        """(scale, where it came from) of a layer that no tensor gives an alpha for; rank None where it has none."""
        config = self.components.get(component) or self.components.get("") or self._only_model(component)
        if config is not None:
            return config.scale(module, rank), config.origin
        if rank is None:
            return 1.0, "none: whole factors have the scale 1"
        if self.trainer_alpha is not None:
            return _number(self.trainer_alpha, "ss_network_alpha", self.name) / rank, "ss_network_alpha"
        return 1.0, "none: scale 1"

    def _only_model(self, component: str) -> AdapterConfig | None:
        """The one model's configuration, where a file's keys carry another prefix than its header (converted files)."""
        models = [config for name, config in self.components.items() if not name.startswith("text_encoder")]
        return models[0] if len(models) == 1 and not component.startswith("text_encoder") else None


def stored_scales(metadata: Mapping[str, str], config: AdapterConfig | None, name: str) -> Scales:
    """The scales from an `adapter_config.json` (if there is one) and the metadata of a header.

    diffusers writes each field with its component in front (`transformer.lora_alpha`), or plainly for only one.
    Raises FileFormatError for metadata that cannot be read; ss_network_dim is ignored, since the tensors say it.
    """
    if config is not None:
        return Scales(name, {"": config})
    if HEADER_FIELD in metadata:
        fields = parse_json_object(metadata[HEADER_FIELD], f"{name}: {HEADER_FIELD} in the header")
        parts: dict[str, dict[str, Any]] = {}
        for key, value in fields.items():
            component, _, plain = key.rpartition(".")
            parts.setdefault(component, {})[plain] = value
        origin = f"file header ({HEADER_FIELD})"
        return Scales(name, {component: adapter_config(part, origin) for component, part in parts.items()})
    alpha = metadata.get("ss_network_alpha")
    return Scales(name, trainer_alpha=None if alpha in ("", "None") else alpha)


def checked_alpha(value: float, where: str) -> float:
    """The value of an alpha. Raises InputError where it is not finite, or zero: loaders disagree on what zero means."""
    if not math.isfinite(value):
        raise InputError(f"{where} is {value}; the LoRA is damaged")
    if value == 0:
        raise InputError(
            f"{where} is 0, which loaders read as no effect or as alpha = rank; write the alpha that is meant"
        )
    return value


def _number(value: Any, what: str, origin: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError("a truth value")
        number = float(value)
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"{origin}: {what} is {value!r}, not a number") from error
    return checked_alpha(number, f"{origin}: {what}")


def _pattern(text: str, origin: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise FileFormatError(f"{origin}: the pattern {text!r} is no regular expression ({error})") from error
    return text


def _matches(pattern: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None
