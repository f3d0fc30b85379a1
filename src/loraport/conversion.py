"""Write a LoRA in another format: the same updates under other names, every key of the input accounted for."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from loraport.compute import TORCH_DTYPES, layer_generator
from loraport.errors import MismatchError, SettingsError, unknown_name
from loraport.files.adapters.updates import LayerUpdate, adapter_kind, aimed_rank, needs_weight
from loraport.files.conversion_kernels import with_kernels
from loraport.files.disk.protect_inputs import protect_inputs
from loraport.files.formats.quantized import FP8
from loraport.files.formats.safetensors_read import dtype_of
from loraport.files.inspect import layer_lines
from loraport.files.lora.encoders import prefix_is_guessed
from loraport.files.lora.extras import respell_extras
from loraport.files.lora.key_account import KeyAccount
from loraport.files.lora.kohya import missing_layers, outside_layers, with_missing_layers
from loraport.files.lora.provenance import converted_from
from loraport.files.lora.read import Lora, read_lora
from loraport.files.lora.write import FORMATS, WrittenLora, check_form, nameless_layers, output_dialect, write_lora
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.models.layout import parse_layouts
from loraport.files.models.presets import open_model
from loraport.files.names.families import MINIMAX_H3, WAN, Layout
from loraport.files.whole_weights import as_differences, carried_note, check_without_base, whole_weights
from loraport.inputs.config import DTYPES, RankRule
from loraport.parametrizations.port import carry_over
from loraport.parametrizations.time_path import read_time_path
from loraport.spectral.low_rank import LowRank
from loraport.transfers.encoders import encoder_factors
from loraport.transfers.method_input import factors_at_rule

_GUESSED_PREFIX = (
    "nothing says which model the text encoder is of: lora_te_ is that of Stable Diffusion 1.5, and sd-scripts wants "
    "lora_te1_ for SDXL; ComfyUI and diffusers read both"
)


@dataclass(frozen=True)
class Conversion:
    """A finished conversion."""

    output: str
    format: str
    dtype: str
    rank: int
    layers: int
    keys: KeyAccount
    """Factors, those of text encoders too, under `transferred`; biases and differences under `copied`."""
    notes: tuple[str, ...]

    @property
    def lost(self) -> bool:
        """Whether something of the input has no place in the output."""
        return bool(self.keys.dropped)

    def as_json(self) -> dict[str, Any]:
        """Return the one object that `--json` prints."""
        return {**vars(self), "keys": self.keys.as_json(), "notes": list(self.notes)}


def convert(
    place: str | os.PathLike[str],
    to: str,
    output: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    rank: str | float = "auto",
    source: str | os.PathLike[str] | None = None,
    target: str | os.PathLike[str] | None = None,
    lora_part: str | None = None,
    qkv: Sequence[str] = (),
    each: Callable[[str], None] | None = None,
) -> Conversion:
    """Write a LoRA in another format. The scale goes into the factors; dtype None is the input's own.

    LoHa, LoKr and DoRA become plain LoRAs: exactly where `rank` allows it, by default up to 128, else at that rank.
    Full differences become factors in a file that has nothing else, if a `rank` is named; beside factors they are
    copied. DoRA needs the model that it was trained on, as `source`. Convolutions have the kernels of the source, else
    those that follow from their names. `target`: the model that it is to fit, where that stores layers in another
    form (a pruned MiniMax-H3, or the full one), which the form of the `source` is carried over to. `qkv`: how the
    rows of fused layers lie in the file, where it does not tell: `interleaved` or `stacked`. `each` gets a line
    about every layer. `lora_part`: which of several LoRAs in the file. Ranks are padded with zeros to the largest;
    what is not a factor keeps its dtype.

        done = loraport.convert("style.safetensors", "kohya", "style-kohya.safetensors", rank=8)
        print(done.rank, done.keys.dropped, done.notes)

    Raises InputError for what cannot be read, SettingsError for an unknown format or dtype, MismatchError if nothing
    has a place in the format, OutputError for a place that cannot be written.
    """
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    output, rule = os.path.expanduser(os.fspath(output)), RankRule.parse(str(rank))
    place = os.fspath(place)
    trained_on, fits = (None if one is None else os.fspath(one) for one in (source, target))
    lora = _read(place, rule, lora_part, parse_layouts(qkv, ("lora",)).get("lora"))
    # to carry layers over, only what they see is read of the model that they were made for
    base = None if fits is not None and not _needs_base(lora) else trained_on
    if base is None:
        check_without_base(lora)
    else:
        lora = as_differences(lora, open_model(base))
    if each is not None:
        for line in layer_lines(lora):
            each(line)
    dialect = output_dialect(lora, to)
    nameless = nameless_layers(lora, dialect)
    kept = [layer for layer in lora.layers if layer not in nameless]
    if not kept and not respell_extras(lora, dialect, kept)[0] and (dialect.folder or not lora.encoders):
        raise MismatchError(f"{place}: nothing in it can be written as {to}, {_why_nothing(lora, nameless)}")
    chosen = dtype or own_dtype(lora)
    _check_output(Path(output), lora, dialect.folder, (trained_on, fits))
    layers = plain_layers(lora, base, rule)
    model = None if base is None else open_model(base)
    lora = with_kernels(lora, kept, model, flat=dialect.flat)
    if fits is not None:
        lora, layers = _carried(lora, layers, trained_on, fits)
    if model is None:
        _check_encoders(lora)
    encoders = encoder_factors(lora, rule, model, plain=True)
    written = write_lora(
        output, layers, lora, format=to, dtype=TORCH_DTYPES[chosen], provenance=converted_from(lora),
        uniform_rank=not rule.varies, encoders=encoders,
    )  # fmt: skip
    of_wan = lora.dialect.family in (WAN.name, None)
    notes = (
        *lora.notes,
        *([_GUESSED_PREFIX] if prefix_is_guessed(lora, dialect) else []),
        *carried_note(lora, dialect, "are of no layer that is known"),
        *_loss_note(lora, {**layers, **encoders}),
        *_rounding_note(lora, chosen, dtype),
        *(_kohya_notes(lora, layers) if to == "kohya" and of_wan else ()),
    )
    count = len(kept) + (0 if dialect.folder else len(encoders))
    return Conversion(output, to, chosen, written.rank, count, account(lora, written), notes)


def _read(place: str, rule: RankRule, part: str | None, qkv: Layout | None) -> Lora:
    """Read a LoRA; full differences are layers where there is nothing else and a rank for their factors."""
    lora = read_lora(place, dense=True, part=part, qkv=qkv)
    of_matrices = not lora.layers and any(key.endswith(".diff") for key in lora.extras)
    if of_matrices and rule.kind in ("fixed", "energy", "full"):
        return read_lora(place, diffs=True, part=part, qkv=qkv)
    return lora


def _needs_base(lora: Lora) -> bool:
    """Return whether weights of the model that it was trained on are needed to tell what it adds."""
    return bool(whole_weights(lora)) or any(map(needs_weight, lora.updates.values()))


def _check_encoders(lora: Lora) -> None:
    for layer in lora.encoders.values():
        if needs_weight(layer.update):
            raise SettingsError(_needs_source(lora, adapter_kind(layer.update)))


def _carried(
    lora: Lora, layers: Mapping[str, LowRank], source: str | None, target: str
) -> tuple[Lora, dict[str, LowRank]]:
    """Return a LoRA and its factors with the modulation layers in the form of the target.

    Raises SettingsError for a target of another family, MismatchError where they cannot be carried over.
    """
    to, of = read_time_path(target), None if source is None else read_time_path(source)
    if to is None or lora.dialect.family != MINIMAX_H3.name:
        raise SettingsError(
            f"a target is for models that store layers in several forms, as MiniMax-H3 does; {target} and this LoRA "
            f"({lora.dialect.family or 'of an unknown family'}) are not such: leave out --target"
        )
    try:
        done = carry_over(lora, of, to, layers)
    except MismatchError as error:
        raise MismatchError(f"{lora.path}: {error}") from error
    notes = done.notes or (f"its layers are in the form that {target} has; nothing was carried over",)
    return replace(done.lora, notes=(*done.lora.notes, *notes)), {**layers, **done.layers}


def plain_layers(lora: Lora, source: str | None, rule: RankRule) -> dict[str, LowRank]:
    """Return every layer as B·A: a LoRA's own factors, other adapters' at the rule's rank, on the weights of `source`.

    Raises SettingsError for a DoRA without a source, MismatchError for a source that it does not belong to.
    """
    model = None if source is None else open_model(source)
    aim = int(rule.value) if rule.kind == "fixed" else max(map(aimed_rank, lora.updates.values()), default=0)
    layers = {}
    for name, update in lora.updates.items():
        W = _weight(name, update, lora, model) if needs_weight(update) else None
        layers[name] = factors_at_rule(update, W, rule, aim, layer_generator(0, name))
    return layers


def _weight(name: str, update: LayerUpdate, lora: Lora, model: Checkpoint | None) -> torch.Tensor:
    if model is None:
        raise SettingsError(_needs_source(lora, adapter_kind(update)))
    if f"{name}.weight" not in model:
        raise MismatchError(f"{model.where} has no layer {name}; give the model that this LoRA was trained on")
    W = model.read(name).matrix
    if tuple(W.shape) != update.shape:
        raise MismatchError(
            f"layer {name}: the LoRA is {update.shape[0]} × {update.shape[1]}, the weight in {model.where} "
            f"{W.shape[0]} × {W.shape[1]}; give the model that this LoRA was trained on"
        )
    return W


def _needs_source(lora: Lora, kind: str) -> str:
    return f"{lora.path} is a {kind}, whose update depends on the weights; name the model it was trained on: --source"


def own_dtype(lora: Lora) -> str:
    """Return the smallest of fp32, bf16 and fp16 that holds every stored factor of the input exactly; bf16 for fp8."""
    stored = lora.kinds or [tensor.kind for tensor in lora.extras.values()]
    dtypes = [torch.bfloat16 if kind in FP8 else dtype_of(kind) for kind in stored]
    widest = functools.reduce(torch.promote_types, dtypes)
    return next((name for name, dtype in TORCH_DTYPES.items() if dtype == widest), "fp32")


def account(lora: Lora, written: WrittenLora) -> KeyAccount:
    """Return where each key of the input went: written again, copied, or dropped with the reason."""
    of_layers = (key for layer in lora.layers.values() for key in layer.keys)
    return KeyAccount.of(
        (*lora.dropped, *written.dropped), transferred=(*of_layers, *written.encoders), copied=written.copied
    )


def _why_nothing(lora: Lora, nameless: Mapping[str, str]) -> str:
    if lora.encoders:
        return "since it is of text encoders alone, and PEFT's folder is one network's; use comfy, diffusers or kohya"
    if set(nameless) <= lora.unresolved and nameless:
        return "since its layers are known by flattened names only; use kohya"
    if nameless:
        layer, reason = next(iter(nameless.items()))
        return f"since of {layer}, for one, {reason}"
    return "since it holds full differences and no factors; use comfy or kohya, or make factors of them with --rank 64"


def _check_output(output: Path, lora: Lora, folder: bool, models: Iterable[str | None]) -> None:
    check_form(output, folder)
    protect_inputs(output, (lora.path, *models))


def _loss_note(lora: Lora, layers: Mapping[str, LowRank]) -> list[str]:
    """Return a note on what other adapters lost as factors of limited rank."""
    lost = {name: low.lost_energy for name, low in layers.items() if low.lost_energy > 1e-7}
    if not lost:
        return []
    worst = max(lost, key=lambda name: lost[name])
    kind = adapter_kind((lora.layers.get(worst) or lora.encoders[worst]).update)
    return [
        f"{len(lost)} of {len(layers)} layers ({kind}) fit no rank of {layers[worst].rank}: the "
        f"worst, {worst}, keeps {1 - lost[worst]:.1%} of its energy; a higher --rank keeps more"
    ]


def _rounding_note(lora: Lora, chosen: str, asked: str | None) -> list[str]:
    """Return a note if a scale that is not a power of two is folded into 16-bit factors, which rounds them once."""
    if asked is not None or chosen == "fp32" or all(_exact(layer.scale) for layer in lora.layers.values()):
        return []
    return [f"alpha / rank is folded into the factors, which rounds them once to {chosen}; --dtype fp32 keeps them"]


def _exact(scale: float) -> bool:
    return scale == 0 or abs(math.frexp(scale)[0]) == 0.5


def _kohya_notes(lora: Lora, layers: Mapping[str, LowRank]) -> list[str]:
    """Return notes on what was added for diffusers, or why it would refuse the file all the same."""
    notes = []
    added = len(with_missing_layers(layers)) - len(layers)
    if added:
        notes.append(f"{added} layers of zeros were added, without which diffusers refuses kohya files of Wan")
    elif missing := missing_layers(layers):
        notes.append(
            f"diffusers reads kohya files of Wan only with every layer of every block, and {len(missing)} are missing "
            f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}); for diffusers convert to comfy"
        )
    outside = outside_layers(layers) if lora.dialect.naming else []
    if outside:
        notes.append(f"diffusers reads no kohya file with layers outside the blocks, such as {outside[0]}")
    return notes
