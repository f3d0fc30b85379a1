"""CASA on whole matrices in float64, written with NumPy from the paper's equations; the fast code must agree with it.

It takes what the files hold, makes its own decomposition and all decisions, and imports nothing of ours. The pages of
index loops (`reference.py`) say the same entry by entry; this one is fast enough for layers of real size.
"""

from __future__ import annotations

import numpy as np


def casa(
    W_s, W_t, B, A, *, energy=0.9, energy_rectangular=0.9, tau=1.0, eps=1e-6, eps_context=1e-8, q_dom=0.5, q_act=0.85,
    restore=1.0, arbitrate=True,
):  # fmt: skip
    """D' of one layer; `W_s`, `W_t` as the files hold them, B·A with its scale."""
    W_s, W_t, B, A = (np.asarray(x, dtype=np.float64) for x in (W_s, W_t, B, A))
    options = {
        "energy": energy, "energy_rectangular": energy_rectangular, "tau": tau, "eps": eps, "eps_context": eps_context,
        "q_dom": q_dom, "q_act": q_act, "restore": restore, "arbitrate": arbitrate,
    }  # fmt: skip
    if W_s.shape[0] < W_s.shape[1]:
        return casa(W_s.T, W_t.T, A.T, B.T, **options).T
    D, F = B @ A, W_t - W_s
    if not W_s.any():
        return D - restore * F
    U, S, Vh = np.linalg.svd(W_s, full_matrices=False)
    n, V = len(S), Vh.T
    certain = S > np.finfo(np.float32).eps * np.linalg.norm(S)
    L, C = U.T @ D @ V, U.T @ F @ V
    share = energy if W_s.shape[0] == W_s.shape[1] else energy_rectangular
    k = min(n, int(np.searchsorted(np.cumsum(S**2), share * np.sum(S**2))) + 1)  # Eq. 3
    labels = _clusters(np.abs(L[:k, :k]) / (np.abs(S[:k, None] - S[None, :k]) + eps) > tau)  # Eq. 4
    senders = _dominant(np.linalg.norm(F @ V, axis=0), labels, n, q_dom)  # Eq. 5–6
    receivers = _dominant(np.linalg.norm(U.T @ F, axis=1), labels, n, q_dom)
    own = receivers[:, None] | senders[None, :]  # Eq. 7
    taken = np.zeros((n, n))
    candidates = own & (L * C > 0) & certain[:, None] & certain[None, :]  # Eq. 9
    if arbitrate and candidates.any():
        risk = L * C * _context(L, C, labels, n, eps_context)
        threshold = np.quantile(risk[candidates], q_act)
        struck = candidates & (risk > threshold)  # Eq. 13
        taken[struck] = (np.sign(L) * np.minimum(np.abs(L), np.abs(C)))[struck]  # Eq. 14
    P_U, P_V = U[:, receivers], V[:, senders]
    weak = F - P_U @ (P_U.T @ F)
    weak = weak - (weak @ P_V) @ P_V.T
    return D - restore * weak - U @ taken @ Vh


def _clusters(linked):
    """Connected components by spreading the smallest member; labels in order of the first member."""
    k = len(linked)
    linked = linked | linked.T | np.eye(k, dtype=bool)
    np.fill_diagonal(linked, True)
    first = np.arange(k)
    while True:
        spread = np.where(linked, first[None, :], k).min(axis=1)
        if (spread == first).all():
            return np.unique(first, return_inverse=True)[1].reshape(-1)
        first = spread


def _dominant(strength, labels, n, q_dom):
    sizes = np.bincount(labels)
    density = np.bincount(labels, weights=strength[: len(labels)]) / sizes
    found = np.zeros(n, dtype=bool)
    found[: len(labels)] = (density >= np.quantile(density, q_dom))[labels]
    return found


def _context(L, C, labels, n, eps):
    """Eq. 10–12: the cosine of the two blocks around an entry, 1 beyond the k leading directions."""
    k = len(labels)
    one = np.eye(labels.max() + 1)[labels]
    inner = one.T @ (L[:k, :k] * C[:k, :k]) @ one
    sizes = np.sqrt((one.T @ L[:k, :k] ** 2 @ one) * (one.T @ C[:k, :k] ** 2 @ one))
    found = np.ones((n, n))
    found[:k, :k] = (inner / (sizes + eps))[labels][:, labels]
    return found
