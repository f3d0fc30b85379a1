"""A training loop that can be killed at any moment and gives the same weights after every restart.

Each step draws from a generator seeded by (seed, stage, step) alone, so what happened before a step leaves no trace
but the weights and the optimizer's state, and both are in the checkpoint.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from loraport.files.disk.atomic import new_file

LossReport = Callable[[str, int, int, float], None]  # stage, step, steps, loss


@dataclass(frozen=True)
class Schedule:
    """Warm-up, a constant rate, then a linear fall; the result is a moving average of the weights."""

    steps: int
    rate: float
    batch: int
    average: float = 0.99
    warmup: int = 50
    fall: float = 0.3  # share of the steps over which the rate falls
    save_every: int = 100

    def rate_at(self, step: int) -> float:
        """Return the learning rate of one step."""
        left = (self.steps - step) / max(1.0, self.fall * self.steps)
        return self.rate * min(1.0, (step + 1) / self.warmup, left)


def generator_for(seed: int, *place: str | int) -> Generator:
    """Return randomness that depends on the seed and the named place only."""
    return torch.Generator().manual_seed(zlib.crc32("/".join(map(str, (seed, *place))).encode()))


def save_whole(value: object, path: Path) -> None:
    """Write a torch file so that a reader finds all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as file:
        torch.save(value, file)


def fit(
    stage: str,
    module: nn.Module,
    loss: Callable[[Generator], Tensor],
    schedule: Schedule,
    *,
    seed: int,
    checkpoint: Path,
    progress: LossReport,
    half: bool = False,
) -> None:
    """Train the parameters of `module` that require gradients; leaves their moving average in the module.

    `loss` gets the step's generator; with `half` its matrix products are taken in bfloat16. A checkpoint of the same
    stage is continued, bit for bit.
    """
    weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    device = next(iter(weights.values())).device
    averaged = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=schedule.rate, betas=(0.9, 0.98), weight_decay=0.0)
    start = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        start, averaged = saved["step"], saved["averaged"]
        optimizer.load_state_dict(saved["optimizer"])
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(saved["weights"][name])
    for step in range(start, schedule.steps):
        with _arithmetic(device, half):
            missed = loss(generator_for(seed, stage, step))
            value = _step(missed, optimizer, weights, averaged, schedule, step)
        progress(stage, step + 1, schedule.steps, value)
        if (step + 1) % schedule.save_every == 0:
            state = {"step": step + 1, "averaged": averaged, "optimizer": optimizer.state_dict()}
            save_whole({**state, "weights": {n: w.detach() for n, w in weights.items()}}, checkpoint)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(averaged[name])


@contextmanager
def _arithmetic(device: torch.device, half: bool) -> Iterator[None]:
    """Take matrix products in bfloat16; on a processor attention as plain products, where the fused one is slow.

    The backward pass of the fused attention took half of a step there.
    """
    with ExitStack() as contexts:
        contexts.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=half))
        if half and device.type == "cpu":
            contexts.enter_context(sdpa_kernel([SDPBackend.MATH]))
        yield


def _step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Tensor],
    averaged: Mapping[str, Tensor],
    schedule: Schedule,
    step: int,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = schedule.rate_at(step)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(weights.values(), 1.0)
    optimizer.step()
    keep = min(schedule.average, (step + 1) / (step + 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(averaged.values()), list(weights.values()), 1 - keep)
    return float(loss.detach())
