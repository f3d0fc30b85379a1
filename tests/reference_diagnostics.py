"""The microscope's statistics with index loops in float64, on NumPy arrays: slow and plain, as `reference.py` is."""

from __future__ import annotations

from itertools import combinations

import numpy as np


def members(labels):
    """The indices of each cluster."""
    return [[i for i, label in enumerate(labels) if label == m] for m in range(max(labels) + 1)]


def spectral_change(S, S_after):
    """Eq. 1."""
    return sum((a - b) ** 2 for a, b in zip(S_after, S, strict=True)) ** 0.5 / sum(s**2 for s in S) ** 0.5


def observed(U, U_after, V, V_after, k, mixed):
    """Footnote 1, by flooding."""

    def linked(i, j):
        pairs = ((U[:, i], U_after[:, j]), (U[:, j], U_after[:, i]), (V[:, i], V_after[:, j]), (V[:, j], V_after[:, i]))
        return any(abs(sum(a * b for a, b in zip(x, y, strict=True))) > mixed for x, y in pairs)

    labels, count = [-1] * k, 0
    for first in range(k):
        if labels[first] < 0:
            labels[first], todo = count, [first]
            while todo:
                i = todo.pop()
                for j in range(k):
                    if labels[j] < 0 and linked(i, j):
                        labels[j] = count
                        todo.append(j)
            count += 1
    return labels


def adjusted_rand(a, b):
    """By counting pairs: together in both, in one, in neither."""
    both = only_a = only_b = neither = 0
    for i, j in combinations(range(len(a)), 2):
        same_a, same_b = a[i] == a[j], b[i] == b[j]
        both += same_a and same_b
        only_a += same_a and not same_b
        only_b += same_b and not same_a
        neither += not same_a and not same_b
    below = (both + only_a) * (only_a + neither) + (both + only_b) * (only_b + neither)
    return 2 * (both * neither - only_a * only_b) / below if below else 1.0


def rms_energy(strength, labels):
    """§3.3, one cluster after the other."""
    whole = sum(strength[i] ** 2 for i in range(len(labels))) / len(labels)
    return [(sum(strength[i] ** 2 for i in some) / len(some) / whole) ** 0.5 for some in members(labels)]


def block_energy(C, labels):
    """RMS entry of each block over that of the whole."""
    k = len(labels)
    whole = sum(C[i, j] ** 2 for i in range(k) for j in range(k)) / k**2
    groups = members(labels)
    return [
        [(sum(C[i, j] ** 2 for i in m for j in n) / (len(m) * len(n)) / whole) ** 0.5 for n in groups] for m in groups
    ]


def gini(x):
    """Half of the relative mean absolute difference."""
    m = len(x)
    return sum(abs(a - b) for a in x for b in x) / (2 * m * sum(x))


def coherence(C, labels):
    """Mean |cosine| over the pairs of each cluster's columns."""
    found = []
    for some in members(labels):
        cosines = [
            abs(float(C[:, i] @ C[:, j])) / (float(C[:, i] @ C[:, i]) * float(C[:, j] @ C[:, j])) ** 0.5
            for i, j in combinations(some, 2)
        ]
        found.append(sum(cosines) / len(cosines) if cosines else float("nan"))
    return found


def variation(strength, labels):
    """Standard deviation over mean."""
    found = []
    for some in members(labels):
        mean = sum(strength[i] for i in some) / len(some)
        spread = (sum((strength[i] - mean) ** 2 for i in some) / len(some)) ** 0.5
        found.append(spread / mean if len(some) > 1 else float("nan"))
    return found


def interference(C_lora, C_fft, labels):
    """Constructive and destructive mass over blocks."""
    groups = members(labels)
    inner = [sum(C_lora[i, j] * C_fft[i, j] for i in m for j in n) for m in groups for n in groups]
    size = (np.sum(C_lora**2) * np.sum(C_fft**2)) ** 0.5
    return sum(max(x, 0) for x in inner) / size, sum(max(-x, 0) for x in inner) / size


def intruders(X, X_after, S_after, k, leading, unlike):
    """(count, share of energy, energy of each tested direction inside the first k)."""
    count, energy, total, inside = 0, 0.0, 0.0, []
    for j in range(min(leading, X_after.shape[1])):
        cosines = [float(X[:, i] @ X_after[:, j]) for i in range(X.shape[1])]
        inside.append(sum(c**2 for c in cosines[:k]))
        total += S_after[j] ** 2
        if max(map(abs, cosines)) < unlike:
            count += 1
            energy += S_after[j] ** 2
    return count, energy / total, inside


def keep_dominant(U, Vh, D, labels, q, quantile):
    """Eq. 17–22 among the directions that have a label, entry by entry: the drift that is kept."""
    n = len(labels)
    C = np.array([[float(U[:, i] @ D @ Vh[j]) for j in range(n)] for i in range(n)])
    groups = members(labels)
    send = [sum(float(np.sum(C[:, j] ** 2)) ** 0.5 for j in m) / len(m) for m in groups]
    receive = [sum(float(np.sum(C[i] ** 2)) ** 0.5 for i in m) / len(m) for m in groups]
    for i in range(n):
        for j in range(n):
            if receive[labels[i]] < quantile(receive, q) and send[labels[j]] < quantile(send, q):
                C[i, j] = 0
    return U[:, :n] @ C @ Vh[:n]


def densest_blocks(C, labels, top):
    """B.2.2: pairs (receiving cluster, sending cluster) of the largest Frobenius norm over the number of entries."""
    groups = members(labels)
    density = {
        (a, b): sum(float(C[i, j]) ** 2 for i in m for j in n) ** 0.5 / (len(m) * len(n))
        for a, m in enumerate(groups)
        for b, n in enumerate(groups)
    }
    return set(sorted(density, key=lambda pair: -density[pair])[: round(top * len(density))])
