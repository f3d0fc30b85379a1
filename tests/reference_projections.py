"""The rules that project, with index loops in float64: slow, plain, one line an equation. The fast code must agree.

Takes and returns NumPy arrays; uses NumPy only for storage and for singular value decompositions. Projectors are dense.
"""

from __future__ import annotations

import numpy as np


def kept(S, shape, rule):
    """k of a weight under energy:x, rank:k or exact."""
    kind, _, value = rule.partition(":")
    if kind == "rank":
        return min(int(value), len(S))
    if kind == "exact":
        return sum(1 for s in S if s > S[0] * max(shape) * np.finfo(S.dtype).eps)
    total, running = sum(float(s) ** 2 for s in S), 0.0
    for i, s in enumerate(S):
        running += float(s) ** 2
        if running >= float(value) * total * (1 - 1e-15):
            return i + 1
    return len(S)


def projector(vectors):
    """Σ_i x_i·x_iᵀ over the given orthonormal vectors, entry by entry."""
    m = len(vectors[0]) if len(vectors) else 0
    P = np.zeros((m, m))
    for x in vectors:
        for a in range(m):
            for b in range(m):
                P[a, b] += x[a] * x[b]
    return P


def product(*matrices):
    """The product of several matrices, entry by entry."""
    result = matrices[0]
    for right in matrices[1:]:
        new = np.zeros((result.shape[0], right.shape[1]))
        for a in range(new.shape[0]):
            for b in range(new.shape[1]):
                new[a, b] = sum(result[a, c] * right[c, b] for c in range(right.shape[0]))
        result = new
    return result


def subspaces(W, rule):
    """(P, Q, k): projectors on the kept left and right singular directions."""
    U, S, Vh = np.linalg.svd(W, full_matrices=False)
    k = kept(S, W.shape, rule)
    return projector([U[:, i] for i in range(k)]), projector([Vh[i] for i in range(k)]), k


def prolora(W_s, W_t, D, *, subspace, null_space, cross_terms):
    """ProLoRA's Eq. 3, without its null-space block, or with the two mixed blocks."""
    (P_s, Q_s, _), (P_t, Q_t, _) = subspaces(W_s, subspace), subspaces(W_t, subspace)
    left, right = np.eye(D.shape[0]), np.eye(D.shape[1])
    inside = product(P_t, P_s, D, Q_s, Q_t)
    outside = product(left - P_t, left - P_s, D, right - Q_s, right - Q_t)
    if cross_terms:
        moved_left = product(P_t, P_s) + product(left - P_t, left - P_s)
        moved_right = product(Q_s, Q_t) + product(right - Q_s, right - Q_t)
        return product(moved_left, D, moved_right)
    return inside + outside if null_space else inside


def overlap(W_s, W_t, subspace):
    """Φ: the smaller of left and right mean squared cosines between kept directions."""
    (U_s, S_s, Vh_s), (U_t, S_t, Vh_t) = (np.linalg.svd(W, full_matrices=False) for W in (W_s, W_t))
    ks, kt = kept(S_s, W_s.shape, subspace), kept(S_t, W_t.shape, subspace)
    left = right = 0.0
    for i in range(ks):
        for j in range(kt):
            left += float(U_s[:, i] @ U_t[:, j]) ** 2
            right += float(Vh_s[i] @ Vh_t[j]) ** 2
    return min(left, right) / max(ks, kt)


def lorax(W_t, D, *, subspace):
    """LoRA-X's third equation."""
    P_t, Q_t, _ = subspaces(W_t, subspace)
    return product(P_t, D, Q_t)


def core(B, A, F):
    """Core undo: Gram–Schmidt bases of B's columns and A's rows, no pseudo-inverse."""
    P, Q = projector(gram_schmidt(B.T)), projector(gram_schmidt(A))
    return product(B, A) - product(P, F, Q)


def gram_schmidt(vectors):
    """Orthonormal vectors of the same span; what is only rounding is left out."""
    found = []
    for v in vectors:
        rest = v.astype(float)
        for _ in range(2):
            for x in found:
                rest = rest - sum(a * b for a, b in zip(x, rest, strict=True)) * x
        size = np.sqrt(sum(a * a for a in rest))
        if size > 1e-9 * np.sqrt(sum(a * a for a in v)) and size > 0:
            found.append(rest / size)
    return found


def drift_orthogonal(F, D, k):
    """D without the k leading directions of the drift, on both sides."""
    U, _, Vh = np.linalg.svd(F, full_matrices=False)
    left = np.eye(F.shape[0]) - projector([U[:, i] for i in range(k)])
    right = np.eye(F.shape[1]) - projector([Vh[i] for i in range(k)])
    return product(left, D, right)


def basis_change(W_s, W_t, D, U_s=None, V_s=None):
    """U_t·U_sᵀ·D·V_s·V_tᵀ, which is nobody's method: a negative control that depends on the signs of the vectors."""
    U, _, Vh = np.linalg.svd(W_s, full_matrices=False)
    U_t, _, Vh_t = np.linalg.svd(W_t, full_matrices=False)
    U_s, V_s = U if U_s is None else U_s, Vh.T if V_s is None else V_s
    return U_t @ U_s.T @ D @ V_s @ Vh_t
