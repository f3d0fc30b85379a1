"""Write updates in 16 bits: balance factors that would underflow, and measure what rounding costs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from loraport.errors import SettingsError
from loraport.spectral.kernels import norm
from loraport.spectral.low_rank import LowRank

USUAL_LOSS = 1e-3
"""Share of an update that fp16 loses at most where its entries are in range: a factor's entries are off by 2^-12."""


def balanced(update: LowRank, dtype: torch.dtype) -> LowRank:
    """Return the update with factors that the dtype holds: unchanged where they fit, else balanced column by column.

    fp16 holds nothing below 6e-8, and little below 6e-5: a scale of alpha / rank folded into B can take it there. The
    balance, √(‖b‖·‖a‖) on both sides, is made by powers of two, so the product stays the same.
    """
    if dtype != torch.float16 or not update.rank or _is_held(update, dtype):
        return update
    b, a = update.B.double().norm(dim=0), update.A.double().norm(dim=1)  # in double: squares of small entries vanish
    both = (b > 0) & (a > 0)
    exponent = torch.where(both, (a / b.where(both, 1)).log2() / 2, 0).nan_to_num(0).round()
    factor = torch.exp2(exponent)
    return LowRank(
        (update.B.double() * factor).to(update.B.dtype),
        (update.A.double() / factor[:, None]).to(update.A.dtype),
        update.lost_energy,
    )


def rounding_loss(update: LowRank | Tensor, dtype: torch.dtype) -> float | None:
    """Return ‖rounded − exact‖ / ‖exact‖ of an update in a dtype; None if it is zero or a value overflows."""
    if isinstance(update, Tensor):
        size, lost = norm(update), norm(update.to(dtype).to(update.dtype) - update)
    else:
        B, A = (X.to(dtype).double() for X in (update.B, update.A))
        exact_B, exact_A = update.B.double(), update.A.double()
        error = LowRank(torch.cat([B - exact_B, exact_B], dim=1), torch.cat([A, A - exact_A]))
        size, lost = update.norm(), error.norm()
    return lost / size if size and math.isfinite(lost) else None


def cast(layer: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor of the layer in a dtype. Raises SettingsError where a value does not fit."""
    converted = tensor.to(dtype).contiguous()
    if torch.isfinite(converted).all():
        return converted
    if torch.isnan(converted).any():
        raise SettingsError(f"the update of {layer} holds NaN; the LoRA or a weight of that layer is damaged")
    remedy = "write bf16 or fp32" if dtype == torch.float16 else "the LoRA or the weights are out of scale"
    raise SettingsError(
        f"the update of {layer} holds values above {torch.finfo(dtype).max:.2g}, the largest of {dtype}; {remedy}"
    )


def _is_held(update: LowRank, dtype: torch.dtype) -> bool:
    loss = rounding_loss(update, dtype)
    return loss is not None and loss <= USUAL_LOSS
