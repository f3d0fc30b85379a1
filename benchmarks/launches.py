"""What a further LoRA asks of a card, counted without one: the operators of one layer, and how often it waits for them.

    python -m benchmarks.launches [--shape 1536x1536] [--rank 32]

The work runs on the processor, along the way that a card takes (`is_on_card`), and PyTorch's own dispatcher counts. An
operator is what a card is told to do: at small sizes a card spends its time on being told. A wait is where the program
needs a number before it can go on, and the card has nothing to do meanwhile: a number taken to Python, places of true
entries (how many there are says how large the answer is), a decomposition that reports whether it succeeded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from benchmarks.synthetic import LORA, drifted, generator, weight
from torch.utils._python_dispatch import TorchDispatchMode

from loraport.inputs.config import RankRule
from loraport.inputs.plan import LayerJob
from loraport.methods.recipes import find_recipe
from loraport.methods.settings import PUBLISHED_CODE
from loraport.spectral import kernels, krylov
from loraport.spectral.kernels import norm
from loraport.spectral.low_rank import LowRank
from loraport.store.bases import BasisCache
from loraport.store.basis_source import BasisSource
from loraport.transfers.layer import LayerTransfer
from loraport.transfers.layer_source import FileWeights, LayerFacts, LayerWeights

WAITS = {"_local_scalar_dense", "nonzero", "bincount", "equal", "is_nonzero", "masked_select", "unique", "_unique2",
         "_linalg_eigh", "_linalg_svd", "linalg_lstsq", "linalg_inv_ex", "repeat_interleave"}  # fmt: skip
"""Operators after which PyTorch waits for a card; beside them, entries taken by a mask."""


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators while it is entered, and where the program waits."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = 0
        self.waits: Counter[str] = Counter()
        """Operator and function -> how often."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if not _is_view(func):
            self.operators += 1
        if name in WAITS or (name in ("index", "index_put_", "index_put") and _by_mask(args[1])):
            self.waits[f"{name} in {_place()}"] += 1
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    """Tell whether an operator only looks at memory in another way, which launches nothing."""
    return any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns)


def _by_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _place() -> str:
    """Return the innermost function of ours."""
    frame = sys._getframe(2)
    while frame.f_back is not None and "loraport" not in Path(frame.f_code.co_filename).parts:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"


@contextmanager
def as_on_card() -> Iterator[None]:
    """Take the way of a card, on the processor."""
    with patch.object(kernels, "is_on_card", lambda X: True), patch.object(krylov, "is_on_card", lambda X: True):
        yield


def counted(work: Callable[[], object]) -> Launches:
    """Return what the work asks of a card."""
    with as_on_card(), Launches() as launches:
        work()
    return launches


def further_lora(shape: tuple[int, int], rank: int) -> Callable[[], object]:
    """Return the transfer of one more LoRA on a layer of this shape, all that LoRAs share being made."""
    name, cpu = "blocks.0.self_attn.q", torch.device("cpu")
    W = weight(name, shape)
    D = drifted(name, W).bfloat16().float() - W
    facts = LayerFacts("source", "target", norm(W), norm(D), 0.0, False)
    weights = LayerWeights(
        FileWeights(W, D, None, facts), BasisSource(BasisCache(None), cpu), keep_weights=False, force_drift=True
    )
    recipe, rule = find_recipe("casa", PUBLISHED_CODE), RankRule("fixed", rank)
    transfer = LayerTransfer(recipe, rule, rank, as_diff=False, seed=0, lora_sha256="")

    def transferred(salt: int) -> object:
        g = generator(name, salt)
        B, A = torch.randn(shape[0], rank, generator=g), torch.randn(rank, shape[1], generator=g)
        lora = LowRank(B * (LORA * min(shape) ** 0.5 / (B @ A).norm()), A)
        return transfer(LayerJob(name, "transfer", shape, rank), lora, weights)

    transferred(3)
    return lambda: transferred(4)


def main() -> None:
    """Count, and print a line of JSON for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help="1536x1536 and 8960x1536 if not given")
    parser.add_argument("--rank", type=int, default=32)
    given = parser.parse_args()
    for text in given.shape or ["1536x1536", "8960x1536"]:
        rows, columns = map(int, text.split("x"))
        found = counted(further_lora((rows, columns), given.rank))
        total = found.waits.total()
        print(json.dumps({"shape": text, "operators": found.operators, "waits": total, "where": dict(found.waits)}))


if __name__ == "__main__":
    main()
