"""How many singular directions of a weight count as its subspace: one rule for every method that projects."""

from __future__ import annotations

from loraport.methods.layer import Update
from loraport.methods.settings import parse_subspace
from loraport.spectral.basis import Basis, SingularBasis, energy_rank
from loraport.spectral.low_rank import LowRank
from loraport.spectral.projections import numerical_rank, overlap


def subspace_rank(basis: Basis, rule: str) -> int:
    """Return k of a weight: the directions that hold a share of ΣS², a fixed number, or all above rounding."""
    kind, value = parse_subspace(rule)
    if kind == "energy":
        return energy_rank(basis.S, value)
    if kind == "rank":
        return min(int(value), len(basis.S))
    return numerical_rank(basis.S, (basis.U.shape[0], basis.Vh.shape[1]))


def leading(basis: Basis, rule: str) -> SingularBasis:
    """Return the directions of a basis that the rule keeps."""
    k = subspace_rank(basis, rule)
    return SingularBasis(basis.U[:, :k], basis.S[:k], basis.Vh[:k])


def without_spectrum(lora: LowRank, **weights: Basis) -> Update | None:
    """Return the LoRA as it is where one of these weights is all zero and has no subspace to project on; else None."""
    empty = [name for name, basis in weights.items() if not len(basis.S) or float(basis.S[0]) == 0]
    if not empty:
        return None
    what = " and ".join(f"the {name}'s weight" for name in empty)
    return Update(lora, note=f"{what} is all zero: there is nothing to project on, and the LoRA stays as it is")


def similarity(one: Basis, other: Basis) -> float:
    """Return Φ of two subspaces, the smaller of left and right: min(Φ(U, U'), Φ(V, V')), from 0 to 1."""
    return min(overlap(one.U, other.U), overlap(one.Vh.mT, other.Vh.mT))
