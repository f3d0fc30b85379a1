"""Every method against index loops in float64, entry by entry: square, tall and wide layers, and a convolution."""

import math

import numpy as np
import pytest
import torch

from loraport.methods.layer import Layer
from loraport.methods.recipes import METHODS, find_recipe
from loraport.methods.settings import LoraxSettings, ProloraSettings
from loraport.spectral.basis import decompose
from loraport.spectral.low_rank import LowRank
from tests import reference
from tests import reference_projections as projections
from tests.layers import SHAPES, random_weights

KERNEL = (3, 2, 2)
"""Of the convolution: 12 outputs, 4 inputs, so a matrix of 12 × 48 whose columns run over (input, t, y, x)."""
CUT = "rank:7"
CASA = {"energy": 0.9, "tau": 1.0, "eps": 1e-6, "q_dom": 0.5, "q_act": 0.85, "restore": 1.0, "arbitrate": True}


def unfolded(kernel: np.ndarray) -> np.ndarray:
    """A kernel out × in × t × y × x as a matrix, entry by entry."""
    out, inn, *size = kernel.shape
    matrix = np.zeros((out, inn * math.prod(size)))
    for o in range(out):
        for i in range(inn):
            for t in range(size[0]):
                for y in range(size[1]):
                    for x in range(size[2]):
                        matrix[o, ((i * size[0] + t) * size[1] + y) * size[2] + x] = kernel[o, i, t, y, x]
    return matrix


def a_layer(kind: str):
    """(W_s, W_t, LoRA) as matrices; those of the convolution come from kernels, as files hold them."""
    if kind != "conv":
        return random_weights(SHAPES[kind], 31)
    W_s, W_t, lora = random_weights((12, 4 * math.prod(KERNEL)), 31, rank=3)
    folded = [X.reshape(-1, 4, *KERNEL) for X in (W_s, W_t, lora.A)]
    W_s, W_t, A = (torch.from_numpy(unfolded(X.numpy())) for X in folded)
    assert all(torch.equal(X, Y.flatten(1)) for X, Y in zip((W_s, W_t, A), folded, strict=True)), "what flatten(1) does"
    return W_s, W_t, LowRank(lora.B, A)


def norm(D: np.ndarray) -> float:
    return math.sqrt(sum(float(x) ** 2 for row in D for x in row))


def inner(D: np.ndarray, F: np.ndarray) -> float:
    return sum(float(x) * float(y) for row, other in zip(D, F, strict=True) for x, y in zip(row, other, strict=True))


def expected(name: str, W_s: np.ndarray, W_t: np.ndarray, B: np.ndarray, A: np.ndarray) -> np.ndarray:
    """The method's update by loops."""
    D, F = projections.product(B, A), W_t - W_s
    basis = np.linalg.svd(W_s, full_matrices=False)

    def casa(**changes):
        return reference.casa(*basis, D, F, **{**CASA, **changes})[0]

    restored = casa(arbitrate=False)
    rules = {
        "casa": casa,
        "direct": lambda: D,
        "direct:1.5": lambda: 1.5 * D,
        "direct-matched": lambda: D * (norm(casa()) / norm(D)),
        "undo": lambda: D - 0.25 * F,
        "undo-orthogonal": lambda: D - F * (0.25 + inner(D, F) / norm(F) ** 2),
        "undo-matched": lambda: D - F * (norm(restored - D) / norm(F)),
        "core": lambda: projections.core(B, A, F),
        "drift-orthogonal": lambda: projections.drift_orthogonal(F, D, min(16, *F.shape)),
        "drift-orthogonal:3": lambda: projections.drift_orthogonal(F, D, 3),
        "prolora": lambda: projections.prolora(W_s, W_t, D, subspace=CUT, null_space=True, cross_terms=False),
        "lora-x": lambda: projections.lorax(W_t, D, subspace=CUT),
        "rollback": lambda: restored - D,
        "restore-only": lambda: restored,
        "arbitrate-only": lambda: casa(restore=0.0),
    }
    return rules[name]()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", [*SHAPES, "conv"])
@pytest.mark.parametrize("name", [*METHODS, "direct:1.5", "drift-orthogonal:3"])
def test_every_method_agrees_with_index_loops(name, kind):
    W_s, W_t, lora = a_layer(kind)
    wanted = expected(name, *(X.numpy() for X in (W_s, W_t, lora.B, lora.A)))
    settings = {"prolora": ProloraSettings(CUT, phi_min=0.0), "lora-x": LoraxSettings(CUT)}
    recipe = find_recipe(name, settings.get(name))
    # rollback has the masks of CASA with the LoRA's clusters
    update = recipe(Layer(lora, W_t - W_s, decompose(W_s), decompose(W_t))).dense().numpy()
    assert norm(update - wanted) <= 1e-5 * max(norm(wanted), 1e-3 * norm(lora.dense().numpy()))
    # and is not what another rule gives
    another = "direct" if name in ("undo", "undo-orthogonal") else "undo"  # a random LoRA hardly leans to the drift
    other = expected(another, *(X.numpy() for X in (W_s, W_t, lora.B, lora.A)))
    assert norm(update - other) > 1e-2 * norm(other)
