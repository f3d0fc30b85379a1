"""CASA with index loops in float64: slow, plain, one loop an equation. The fast code must agree with this page.

Takes and returns lists of lists or NumPy arrays; uses NumPy only for storage and for the given thin SVD.
The complement of the thin basis is handled by explicit projectors, as dense matrices.
"""

from __future__ import annotations

import numpy as np


def energy_rank(S, energy):
    """Eq. 3."""
    total = sum(float(s) ** 2 for s in S)
    running = 0.0
    for i, s in enumerate(S):
        running += float(s) ** 2
        if running >= energy * total * (1 - 1e-15):
            return i + 1
    return len(S)


def quantile(values, q):
    """Linear interpolation between order statistics."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def clusters(C_lora, S, k, tau, eps):
    """Eq. 4 and connected components by flooding; labels in order of the first member."""

    def linked(i, j):
        gap = abs(S[i] - S[j]) + eps
        return i != j and (abs(C_lora[i, j]) / gap > tau or abs(C_lora[j, i]) / gap > tau)

    labels = [-1] * k
    count = 0
    for first in range(k):
        if labels[first] >= 0:
            continue
        labels[first], todo = count, [first]
        while todo:
            i = todo.pop()
            for j in range(k):
                if labels[j] < 0 and linked(i, j):
                    labels[j] = count
                    todo.append(j)
        count += 1
    return labels


def dominant(strength, labels, q_dom):
    """Eq. 5–6 and the quantile rule: the dominant directions' indices."""
    count = max(labels) + 1
    density = []
    for m in range(count):
        members = [i for i, label in enumerate(labels) if label == m]
        density.append(sum(strength[i] for i in members) / len(members))
    threshold = quantile(density, q_dom)
    return {i for i, label in enumerate(labels) if density[label] >= threshold}


def alignment(C_lora, C_fft, labels, m, n):
    """Eq. 10–11: cosine of one pair of blocks."""
    inner = left = right = 0.0
    for i, a in enumerate(labels):
        for j, b in enumerate(labels):
            if a == m and b == n:
                inner += C_lora[i, j] * C_fft[i, j]
                left += C_lora[i, j] ** 2
                right += C_fft[i, j] ** 2
    return inner / (left**0.5 * right**0.5 + 1e-8)


def casa(U, S, Vh, D_lora, D_fft, *, energy, tau, eps, q_dom, q_act, restore, arbitrate, densities="whole"):
    """(D_casa, facts): method steps 1–8, entry by entry."""
    n = len(S)
    V = Vh.T
    C_lora, C_fft = np.zeros((n, n)), np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            C_lora[i, j] = float(U[:, i] @ D_lora @ V[:, j])
            C_fft[i, j] = float(U[:, i] @ D_fft @ V[:, j])
    k = energy_rank(S, energy)
    labels = clusters(C_lora, S, k, tau, eps)
    if densities == "whole":
        send = [float(np.sqrt(sum((D_fft @ V[:, j])[a] ** 2 for a in range(D_fft.shape[0])))) for j in range(k)]
        receive = [float(np.sqrt(sum((U[:, i] @ D_fft)[b] ** 2 for b in range(D_fft.shape[1])))) for i in range(k)]
    else:
        send = [float(np.sqrt(sum(C_fft[i, j] ** 2 for i in range(k)))) for j in range(k)]
        receive = [float(np.sqrt(sum(C_fft[i, j] ** 2 for j in range(k)))) for i in range(k)]
    senders, receivers = dominant(send, labels, q_dom), dominant(receive, labels, q_dom)

    count = max(labels) + 1
    cosine = [[alignment(C_lora, C_fft, labels, m, o) for o in range(count)] for m in range(count)]
    risk = {}
    for i in range(n):
        for j in range(n):
            if (i in receivers or j in senders) and C_lora[i, j] * C_fft[i, j] > 0:  # Eq. 7, 9
                around = cosine[labels[i]][labels[j]] if i < k and j < k else 1.0  # Eq. 12
                risk[i, j] = C_lora[i, j] * C_fft[i, j] * around  # Eq. 13
    threshold = quantile(list(risk.values()), q_act) if risk else 0.0
    arbitrated = {entry for entry, value in risk.items() if value > threshold} if arbitrate else set()

    C_casa = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if not (i in receivers or j in senders):
                C_casa[i, j] = C_lora[i, j] - restore * C_fft[i, j]  # Eq. 8
            elif (i, j) in arbitrated:  # Eq. 14
                C_casa[i, j] = C_lora[i, j] - C_fft[i, j] if abs(C_lora[i, j]) > abs(C_fft[i, j]) else 0.0
            else:
                C_casa[i, j] = C_lora[i, j]

    left, right = np.eye(U.shape[0]) - U @ U.T, np.eye(V.shape[0]) - V @ V.T
    outside_lora = D_lora - U @ C_lora @ Vh
    D_casa = U @ C_casa @ Vh + outside_lora
    for j in range(n):  # tall: the complement of the column space, column by column
        if j not in senders:
            D_casa = D_casa - restore * np.outer(left @ D_fft @ V[:, j], V[:, j])
    for i in range(n):  # wide: the complement of the row space, row by row
        if i not in receivers:
            D_casa = D_casa - restore * np.outer(U[:, i], U[:, i] @ D_fft @ right)
    sizes = [labels.count(m) for m in range(count)]
    facts = {"k": k, "clusters": count, "largest_cluster": max(sizes) / k, "arbitrated": len(arbitrated)}
    return D_casa, facts
