"""Find a LoRA's scale where no tensor holds it: in PEFT's configuration, a file's header, a trainer's notes.

`layer_reader.scale_of` comes first: a tensor, else what is found here, else 1.
The rank always comes from the tensor: files are cut and merged after their configuration was written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loraport.errors import FileFormatError, InputError
from loraport.files.adapters.peft_fields import SAVE_AGAIN, Start, start_of

PEFT_ALPHA = 8.0
PEFT_RANK = 8.0
"""PEFT's alpha and rank where its configuration gives none."""

KINDS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""The kinds of PEFT's adapters that are read -> the field of their alpha."""

HEADER_FIELD = "lora_adapter_metadata"
"""Where diffusers keeps PEFT's configuration in a safetensors header."""


BASE_MODEL = "base_model_name_or_path"
"""Where PEFT notes the model that an adapter was trained on."""


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
    start: Start = ""
    """What the adapter took out of its base."""
    base_model: str | None = None

    def scale(self, names: Sequence[str], rank: float | None) -> float:
        """Return alpha / r, or alpha / √r for rank-stabilised LoRA; a pattern is matched at the end of a name."""
        alpha = _chosen(self.alpha_pattern, names, self.alpha)
        rank = _chosen(self.rank_pattern, names, self.rank) if rank is None else rank
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def adapter_config(fields: Mapping[str, Any], origin: str) -> AdapterConfig:
    """Read the configuration from its JSON fields.

    Raises FileFormatError for an adapter of another kind than LoRA, LoHa and LoKr, for fields of the wrong kind, and
    for those that make the factors something else than an update (`files.adapters.peft_fields`).
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
        start_of(fields, origin) if kind == "LORA" else "",
        base if isinstance(base := fields.get(BASE_MODEL), str) and base else None,
    )


def _patterns(fields: Mapping[str, Any], name: str, origin: str) -> dict[str, float]:
    patterns = fields.get(name) or {}
    if not isinstance(patterns, dict):
        raise FileFormatError(f"{origin}: {name} is {patterns!r}, not a table of module names and numbers")
    return {_pattern(key, origin): _number(value, f"{name} of {key}", origin) for key, value in patterns.items()}


def _chosen(patterns: Mapping[str, float], names: Sequence[str], default: float) -> float:
    return next((value for pattern, value in patterns.items() if any(_matches(pattern, one) for one in names)), default)


def parse_json_object(text: str | bytes, origin: str) -> dict[str, Any]:
    """Return a JSON object. Raises FileFormatError naming `origin` for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{origin} is not JSON ({error}); save the LoRA again") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{origin} is not a JSON object; save the LoRA again")
    return value


HEADER_ALPHA = "alpha"
"""The field of a safetensors header that holds one alpha for all layers; few families' loaders look for it."""
OF_HEADER = f"file header ({HEADER_ALPHA})"
"""Where the scale of a layer comes from that this field gives."""

NO_ALPHA = "no alpha anywhere"
"""Where the scale 1 of a layer comes from that nothing gives an alpha for."""


@dataclass(frozen=True)
class UnappliedAlpha:
    """An alpha in a place where the loaders of such a file do not look for it: it is mentioned, and not applied."""

    place: str
    value: str
    readers: str
    """Who reads it, or does not."""
    config: AdapterConfig | None = None

    def scale(self, module: str, rank: int) -> float | None:
        """Return the scale that it would mean for a layer; None where it is not a number."""
        if self.config is not None:
            return self.config.scale((module,), rank)
        try:
            return float(self.value) / rank
        except ValueError:
            return None


@dataclass(frozen=True)
class Scales:
    """What a file says of its scales outside the tensors: a configuration per component, alphas not applied."""

    name: str
    components: Mapping[str, AdapterConfig] = field(default_factory=dict)
    noted: tuple[UnappliedAlpha, ...] = ()
    network_alpha: float | None = None
    """The header's one alpha for all layers, where the family's loaders take it."""

    def config(self, component: str) -> AdapterConfig | None:
        """Return the configuration that is meant for the keys of a component."""
        return self.components.get(component) or self.components.get("") or self._only_model(component)

    def scale(self, component: str, names: Sequence[str], rank: int | None) -> tuple[float, str]:
        """Return (scale, where it came from) of a layer without an alpha tensor; rank None where it has none."""
        config = self.config(component)
        if config is not None:
            return config.scale(names, rank), config.origin
        if self.network_alpha is not None and rank is not None:
            return self.network_alpha / rank, OF_HEADER
        return 1.0, NO_ALPHA if rank is not None else "none: whole factors have the scale 1"

    def notes(self, unscaled: Mapping[str, int], total: int) -> list[str]:
        """Say which alphas were not applied to layers without one ({module: rank}, of `total`) but would matter.

        And that the header's was applied, which few loaders do.
        """
        notes = []
        if self.network_alpha is not None and total:
            notes.append(
                f"{HEADER_ALPHA} in the header is {self.network_alpha:g} and counts for every layer, as in diffusers "
                "and SGLang; loaders that do not read it there load the same file at the scale 1"
            )
        for alpha in self.noted:
            scales = [alpha.scale(module, rank) for module, rank in unscaled.items()]
            meant = sorted({f"{scale:g}" for scale in scales if scale is not None}, key=float)
            if not scales or meant == ["1"]:
                continue
            advice = f"; if it is meant, the strength to load it at is {' to '.join(meant[:: max(1, len(meant) - 1)])}"
            notes.append(f"{alpha.place} is {alpha.value}: not applied, since {alpha.readers}{advice if meant else ''}")
        if 0 < len(unscaled) < total:
            notes.append(
                f"{len(unscaled)} of {total} layers have no alpha where others have one, {next(iter(unscaled))} for "
                "one: their scale is 1, as in ComfyUI and the trainers' own loaders (diffusers gives them the "
                "commonest alpha of the file)"
            )
        return notes

    def _only_model(self, component: str) -> AdapterConfig | None:
        """Return the only model's configuration: keys of converted files carry another prefix than the header."""
        models = [config for name, config in self.components.items() if not name.startswith("text_encoder")]
        return models[0] if len(models) == 1 and not component.startswith("text_encoder") else None


def stored_scales(
    metadata: Mapping[str, str],
    config: AdapterConfig | None,
    name: str,
    beside: AdapterConfig | None = None,
    fields: Mapping[str, str] | None = None,
    *,
    of_header: bool = False,
) -> Scales:
    """Collect the scales from an `adapter_config.json` (if there is one) and the metadata of a header.

    diffusers writes each field with its component in front (`transformer.lora_alpha`), or plainly for only one.
    `beside`: a configuration in the same folder that these keys are not PEFT's own for. `fields`: what stands in a
    pickle beside its tensors. `of_header`: whether a number `alpha` in the header counts for all layers, as it does for
    the loaders of few families where no tensor is an alpha. Numbers that stand there, or elsewhere in the header, are
    noted. Who reads which place is in docs/reference/lora-files.md.
    Raises FileFormatError for metadata that cannot be read.
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
        configs = {component: adapter_config(part, origin) for component, part in parts.items()}
        for component, found in configs.items():
            if found.start and component.startswith("text_encoder"):
                raise FileFormatError(
                    f"{name}: the adapter of {component} is a {found.start}, which is for a changed base; {SAVE_AGAIN}"
                )
        return Scales(name, configs)
    alpha = _network_alpha(metadata, name) if of_header else None
    rest = {key: value for key, value in metadata.items() if alpha is None or key != HEADER_ALPHA}
    noted = [_noted(key, value, of_header) for key, value in _alphas_in(rest)]
    readers = "no loader that is known reads it there"
    noted += [
        UnappliedAlpha(f"{key} beside the tensors", value, readers)
        for key, value in (fields or {}).items()
        if names_alpha(key)
    ]
    if beside is not None:
        readers = "PEFT reads it for keys behind base_model.model. only, and ComfyUI and diffusers do not read it"
        noted.append(UnappliedAlpha(f"alpha in {beside.origin} beside it", f"{beside.alpha:g}", readers, beside))
    return Scales(name, noted=tuple(noted), network_alpha=alpha)


def _network_alpha(metadata: Mapping[str, str], name: str) -> float | None:
    """Return the header's one alpha; None where there is none, or no number. Raises InputError for zero and NaN."""
    try:
        alpha = float(metadata[HEADER_ALPHA])
    except (KeyError, ValueError):
        return None
    return checked_alpha(alpha, f"{name}: {HEADER_ALPHA} in the header")


def names_alpha(name: str) -> bool:
    """Return whether a field is an alpha: `alpha`, `lora_alpha`, `ss_network_alpha`, `transformer.lora_alpha`."""
    return re.split(r"[._ -]", name.lower())[-1] in ("alpha", "loraalpha", "networkalpha")


_LONGEST_CONFIGURATION = 100_000
"""Characters of a header's field that are searched for an alpha."""


def _alphas_in(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (field, value) of the alphas in a header, those inside a JSON object too."""
    alphas = [(key, value) for key, value in sorted(metadata.items()) if names_alpha(key)]
    for key, text in sorted(metadata.items()):
        if not text.lstrip().startswith("{") or len(text) > _LONGEST_CONFIGURATION:
            continue
        try:
            inner = json.loads(text)
        except (ValueError, RecursionError):
            continue
        alphas += [(f"{name} of {key}", value) for name, value in _alphas_inside(inner)]
    return [(key, value) for key, value in alphas if value not in ("", "None")]


_INNER_ALPHAS = ("lora_alpha", "network_alpha", "alpha", "linear_alpha")


def _alphas_inside(fields: Any) -> list[tuple[str, str]]:
    """Return (field, value) of the alphas anywhere in a JSON value; a component's (`transformer.lora_alpha`) too."""
    found, waiting = [], [fields]
    while waiting:
        value = waiting.pop()
        for name, inner in value.items() if isinstance(value, dict) else ():
            if isinstance(inner, dict):
                waiting.append(inner)
            elif name.rpartition(".")[2] in _INNER_ALPHAS:
                found.append((name, str(inner)))
    return list(dict.fromkeys(found))


def _noted(key: str, value: str, of_header: bool) -> UnappliedAlpha:
    readers = "ComfyUI, diffusers and LightX2V take alpha from tensors (SGLang reads this one)"
    if key.startswith("ss_"):
        readers = "no loader reads it there, and converters that put alpha into the factors leave it behind"
    elif of_header and key == HEADER_ALPHA:
        readers = "it is no number, and diffusers ignores it then"
    return UnappliedAlpha(f"{key} in the header", value if len(value) <= 40 else f"{value[:40]}…", readers)


def checked_alpha(value: float, where: str) -> float:
    """Return an alpha. Raises InputError where it is not finite, or zero: loaders disagree on what zero means."""
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
        raise FileFormatError(f"{origin}: the pattern {text!r} is not a regular expression ({error})") from error
    return text


def _matches(pattern: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None
