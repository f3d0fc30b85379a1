"""How exact a transferred layer is, as fast as it is made: against the same rule in float64, and against an exact SVD.

    python -m benchmarks.accuracy [--size 1.3b] [--shape square]

`own basis`: the reference has the float64 singular basis of the weight. `same basis`: it has the basis that the cache
gives, so that only arithmetic differs. The rule has thresholds, so an entry at one of them may fall on the other side
where the basis is not exact enough; without arbitration, whose threshold is one for each entry, that part is gone.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import torch
from benchmarks.synthetic import LORA, RANK, config_of, drifted, generator, weight
from torch import Tensor

from loraport.methods.casa import casa
from loraport.methods.layer import Layer
from loraport.methods.settings import PUBLISHED_CODE
from loraport.spectral.basis import SingularBasis, decompose
from loraport.spectral.low_rank import LowRank
from loraport.store.bases import BasisCache, entry_key


def layer(m: int, n: int) -> tuple[Tensor, Tensor, LowRank]:
    """W_s, the drift, and a LoRA, as the suite's files hold them."""
    W, g = weight("accuracy.weight", (m, n)), generator("accuracy", 3)
    B, A = torch.randn(m, RANK, generator=g), torch.randn(RANK, n, generator=g)
    return W, drifted("accuracy.weight", W).bfloat16().float() - W, LowRank(B * LORA * n**0.5 / (B @ A).norm(), A)


def exact(W: Tensor) -> SingularBasis:
    """The basis in float64, from its Gram matrix: LAPACK's SVD takes minutes for the same digits here."""
    values, V = torch.linalg.eigh(W.double().mT @ W.double())
    S, V = values.flip(0).sqrt(), V.flip(1)
    return SingularBasis(W.double() @ V / S, S, V.mT)


def doubled(X: LowRank) -> LowRank:
    """The same factors in float64."""
    return LowRank(X.B.double(), X.A.double())


def errors(m: int, n: int) -> dict[str, dict[str, float]]:
    """Relative error of D' at full rank with and without arbitration, and the energy kept at rank 32 and 64."""
    W, drift, lora = layer(m, n)
    kept = BasisCache(None).get_or_compute(entry_key(""), W, decompose).basis
    same, own = SingularBasis(kept.U.double(), kept.S.double(), kept.Vh.double()), exact(W)
    found: dict[str, dict[str, float]] = {}
    for name, settings in (("casa", PUBLISHED_CODE), ("restore-only", replace(PUBLISHED_CODE, arbitrate=False))):
        update = casa(Layer(lora, drift, kept), settings)
        D = update.dense().double()
        found[name] = {}
        for label, basis in (("same basis", same), ("own basis", own)):
            reference = casa(Layer(doubled(lora), drift.double(), basis), settings).dense()
            found[name][label] = float((D - reference).norm() / reference.norm())
        best = torch.linalg.eigvalsh(D.mT @ D).flip(0)
        for rank in (32, 64):
            low = update.factorized(rank, torch.Generator().manual_seed(0)).dense().double()
            share = 1 - (D - low).square().sum() / best.sum()
            found[name][f"energy kept at rank {rank} less the best"] = float(share - best[:rank].sum() / best.sum())
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1.3b", help="1.3b, 14b or a width")
    parser.add_argument("--shape", choices=["square", "tall"], default="square")
    given = parser.parse_args()
    config = config_of(given.size)
    n = config["num_attention_heads"] * config["attention_head_dim"]
    print(json.dumps(errors(n if given.shape == "square" else config["ffn_dim"], n), indent=1))


if __name__ == "__main__":
    main()
