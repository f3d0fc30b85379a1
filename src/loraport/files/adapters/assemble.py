"""Build one layer's update from its tensors: LoRA, LoCon with a mid factor, LoHa, LoKr, each perhaps with a magnitude.

A convolution is a matrix [out, in·kernel] everywhere, as its kernel lies in memory. PEFT's `convert_to_lora` does the
like, but needs the loaded model and a dense singular value decomposition; this is exact, from the file alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch
from torch import Tensor

from loraport.errors import FileFormatError, MismatchError
from loraport.files.adapters.dora import Dora
from loraport.files.adapters.product import Product
from loraport.files.adapters.residual import Residual
from loraport.files.names.dialects import LOHA, LOKR, MAGNITUDES, LoraKey
from loraport.spectral.low_rank import LowRank

LARGEST_LAYER = 2**28
"""Numbers in a layer that LoHa or LoKr announce, 1 GB in float32; the largest real ones have a quarter of that."""
LARGEST_CORE = 2**26
"""Numbers in a core times its factor, which real files have under a million of."""

LayerTensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class UnscaledUpdate:
    """One layer without its scale; `rank` is what alpha is divided by, None where LoKr has no factor of a rank."""

    update: LowRank | Product
    kernel: tuple[int, ...]
    rank: int | None


def assemble(parts: LayerTensors, keys: Mapping[str, LoraKey], where: str) -> UnscaledUpdate:
    """Return B·A, (B₁·A₁) ∘ (B₂·A₂) or (B₁·A₁) ⊗ (B₂·A₂), made of a layer's tensors by the names of their parts.

    Raises MismatchError, naming a key, where a tensor is missing or the shapes do not fit; FileFormatError for rank 0,
    and for sizes that no layer has, before anything of that size is made.
    """
    kinds = {kind for part in parts if (kind := _kind(part))}
    first_key = f"{where}: {next(iter(keys.values())).key!r}"
    if len(kinds) > 1:
        raise MismatchError(
            f"{first_key} belongs to a layer with tensors of {' and '.join(sorted(kinds))}; keep one of them"
        )
    if not kinds:
        raise MismatchError(f"{first_key} stands alone: a DoRA magnitude without factors")
    _check_complete(parts, keys, where)
    try:
        if "hada_w1_a" in parts:
            return _loha(parts)
        return _lokr(parts) if kinds == {"LoKr"} else _lora(parts)
    except OverflowError as error:
        raise FileFormatError(f"{first_key} belongs to a layer of a size that no model has: {error}") from error
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = ", ".join(
            f"{key.key.rpartition(key.module)[2]} {list(parts[part].shape)}" for part, key in keys.items()
        )
        raise MismatchError(f"{first_key} and its layer's other tensors do not fit together: {shapes}") from error


def with_scale(update: LowRank | Product, scale: float) -> LowRank | Product:
    """Return the update times a number."""
    if isinstance(update, Product):
        return replace(update, first=update.first.scaled(scale))
    return LowRank((update.B * scale).contiguous(), update.A.contiguous())


def adds_nothing(update: LowRank | Product) -> bool:
    """Return whether one of its factors is zero, and so all of it: an adapter as it is before training."""
    halves = (update,) if isinstance(update, LowRank) else (update.first, update.second)
    return not all(half.B.any() and half.A.any() for half in halves)


def with_magnitude(
    update: LowRank | Product, part: str, m: Tensor, kernel: tuple[int, ...], key: str, where: str
) -> Dora:
    """Return the DoRA with a magnitude: [out, 1] is by rows, [1, in] by columns (LyCORIS); PEFT's is always by rows.

    Raises MismatchError for any other shape.
    """
    out, inn = update.shape
    channels = inn // prod(kernel)
    by_columns = part == "dora_scale" and m.dim() > 1 and m.shape[0] == 1 and m.shape[1] == channels and channels > 1
    if m.numel() != (channels if by_columns else out):
        raise MismatchError(
            f"{where}: {key!r} has shape {list(m.shape)}, but a magnitude of this layer has {out} numbers, one a row"
        )
    return Dora(update, m.reshape(-1), "columns" if by_columns else "rows")


def with_start(
    update: LowRank | Product,
    start: Literal["PiSSA", "OLoRA"],
    scale: float,
    kernel: tuple[int, ...],
    key: str,
    where: str,
) -> Residual:
    """Return an adapter of a changed base (PiSSA, OLoRA). Raises FileFormatError where PEFT would not make one."""
    if kernel or not isinstance(update, LowRank):
        raise FileFormatError(
            f"{where}: {key!r} does not belong to a linear layer, and no other can start as {start}; save it again"
        )
    return Residual(update, start, scale)


def _kind(part: str) -> str:
    if part in LOHA:
        return "LoHa"
    return "LoKr" if part in LOKR else "" if part in MAGNITUDES else "LoRA"


_NEEDED = {"LoHa": LOHA[:4], "LoRA": ("A", "B")}


def _check_complete(parts: LayerTensors, keys: Mapping[str, LoraKey], where: str) -> None:
    """Raise MismatchError naming the tensor that is missing of its kind, FileFormatError for rank 0."""
    kind = next(kind for part in parts if (kind := _kind(part)))
    needed = _NEEDED.get(kind) or (*_halves(parts, "lokr_w1"), *_halves(parts, "lokr_w2"))
    if kind == "LoHa" and {"hada_t1", "hada_t2"} & parts.keys():
        needed = LOHA
    for part in needed:
        if part not in parts:
            present = next(keys[one] for one in parts if _kind(one))
            missing = present.counterpart if part in ("A", "B") else present.key.replace(present.part, part)
            raise MismatchError(f"{where}: {present.key!r} stands alone; {missing!r} is missing")
    for part, tensor in parts.items():
        if 0 in tensor.shape:
            raise FileFormatError(
                f"{where}: {keys[part].key!r} {tuple(tensor.shape)} holds nothing (rank 0); remove the layer"
            )


def _halves(parts: LayerTensors, factor: str) -> tuple[str, ...]:
    return (factor,) if factor in parts else (f"{factor}_a", f"{factor}_b")


def _lora(parts: LayerTensors) -> UnscaledUpdate:
    A, B, mid = parts["A"], parts["B"], parts.get("lora_mid")
    if A.dim() < 2 or B.dim() not in (2, A.dim()) or any(size != 1 for size in B.shape[2:]):
        raise ValueError("no shapes of factors")
    down = A.flatten(1) if mid is None else _core(mid, A.reshape(A.shape[0], -1))
    kernel = tuple((A if mid is None else mid).shape[2:])
    up = B.flatten(1)
    if up.shape[1] != down.shape[0]:
        raise ValueError("ranks differ")
    return UnscaledUpdate(LowRank(up, down), kernel, A.shape[0])


def _loha(parts: LayerTensors) -> UnscaledUpdate:
    """Return (w1_a·w1_b) ∘ (w2_a·w2_b); with cores t: Σ_ij w_a[i, out]·t[i, j, …]·w_b[j, in] on either side."""
    halves: list[LowRank] = []
    kernel: tuple[int, ...] = ()
    for number in "12":
        a, b, t = (parts.get(f"hada_{part}") for part in (f"w{number}_a", f"w{number}_b", f"t{number}"))
        halves.append(_factored(a, b, t))
        kernel = () if t is None else tuple(t.shape[2:])
    product = Product("LoHa", *halves)
    if halves[0].shape != halves[1].shape:
        raise ValueError("shapes differ")
    _check_size(product.shape)
    return UnscaledUpdate(product, kernel, parts["hada_w1_b"].shape[0])


def _lokr(parts: LayerTensors) -> UnscaledUpdate:
    """Return w1 ⊗ w2, each whole or w_a·w_b, the second perhaps with a core; alpha goes with a factored side's rank."""
    sides: list[LowRank] = []
    ranks: list[int] = []
    kernel: tuple[int, ...] = ()
    for number in "12":
        whole = parts.get(f"lokr_w{number}")
        a, b, t = (parts.get(f"lokr_{part}") for part in (f"w{number}_a", f"w{number}_b", f"t{number}"))
        if whole is not None:
            if whole.dim() < 2:
                raise ValueError("no matrix")
            kernel = tuple(whole.shape[2:]) or kernel
            sides.append(_unit_factored(whole.flatten(1)))
        else:
            kernel = kernel if t is None else tuple(t.shape[2:])
            sides.append(_factored(a, b, t))
            ranks.append(sides[-1].rank)
    product = Product("LoKr", *sides)
    _check_size(product.shape)
    return UnscaledUpdate(product, kernel, ranks[-1] if ranks else None)


def _check_size(shape: tuple[int, int]) -> None:
    """Raise OverflowError for a layer larger than any model has."""
    if prod(shape) > LARGEST_LAYER:
        raise OverflowError(f"{shape[0]} × {shape[1]}; {LARGEST_LAYER} numbers are the most that is read")


def _factored(a: Tensor | None, b: Tensor | None, core: Tensor | None) -> LowRank:
    if a is None or b is None or a.dim() != 2 or b.dim() != 2:
        raise ValueError("no matrices")
    B, A = (a, b) if core is None else (a.mT, _core(core, b))
    if B.shape[1] != A.shape[0]:
        raise ValueError("ranks differ")
    return LowRank(B.contiguous(), A.contiguous())


def _core(core: Tensor, down: Tensor) -> Tensor:
    """Return Σ_j t[i, j, …]·down[j, n] as a matrix [i, n·kernel]. Raises OverflowError where that is too large."""
    if core.dim() < 2 or core.shape[1] != down.shape[0]:
        raise ValueError("ranks differ")
    size = core.numel() // core.shape[1] * down.shape[1]
    if size > LARGEST_CORE:
        raise OverflowError(f"its core and factor make {size} numbers; {LARGEST_CORE} are the most that is read")
    return torch.tensordot(core, down, dims=([1], [0])).movedim(-1, 1).flatten(1)


def _unit_factored(W: Tensor) -> LowRank:
    """Return a whole matrix as a product with the unit matrix of its shorter side."""
    unit = torch.eye(min(W.shape))
    return LowRank(W, unit) if W.shape[1] <= W.shape[0] else LowRank(unit, W)
