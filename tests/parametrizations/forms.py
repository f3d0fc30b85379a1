"""MiniMax-H3 tiny, in every form that it is published in, and LoRAs for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from loraport.parametrizations.curve import time_curve
from tests.families import State, minimax_h3, original_h3

WIDTH, RANK, TIMES = 24, 10, 65
GRID = torch.linspace(0, 1, TIMES, dtype=torch.float64)
LAYERS = ("transformer_blocks.0.adaln_proj.linear", "norm_out.linear")
ORIGINAL = {LAYERS[0]: "blocks.0.adaln_proj.linear", LAYERS[1]: "final_layer.adaln_proj.linear"}


def full(seed: int = 0) -> State:
    """A model with a time curve as bent as the real one's, which eight coordinates hold up to 1e-5."""
    model = minimax_h3(time_embed_dim=WIDTH, time_embed_hidden_dim=40, freq_dim=16)
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name in state:
        if name.startswith("time_embedder") and name.endswith("weight"):
            size = 16.0 if "linear_1" in name else 1.0
            state[name] = size * torch.randn(state[name].shape, generator=generator) / state[name].shape[1] ** 0.5
    return {name: value.contiguous().clone() for name, value in state.items()}


def curve(state: State) -> Tensor:
    names = [f"time_embedder.linear_{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")]
    W1, b1, W2, b2 = (state[name] for name in names)
    return time_curve(W1, b1, W2, b2, GRID)


def pruned(state: State, *, keep: bool = False) -> State:
    """As ComfyUI's files are pruned; `keep`: in diffusers' names, with basis, mean and biases folded, as others do."""
    u = curve(state)
    mean = u.mean(dim=0)
    left, s, Vh = torch.linalg.svd(u - mean, full_matrices=False)
    table, V = (left[:, :RANK] * s[:RANK]).float(), Vh[:RANK]
    out = {name: value for name, value in state.items() if not name.startswith("time_embedder")}
    for layer in LAYERS:
        W = state[f"{layer}.weight"].double()
        out[f"{layer}.weight"] = (W @ V.mT).float().contiguous()
        out[f"{layer}.bias"] = (state[f"{layer}.bias"].double() + W @ mean).float()
    if not keep:
        return original_h3(out) | {"adaln_t_table": table.contiguous()}
    folded = {name.replace(".linear.bias", ".folded_bias"): value for name, value in out.items() if value.dim() == 1}
    matrices = {name: value for name, value in out.items() if value.dim() > 1}
    kept = {"time_embedder.table": table, "adaln_basis": V.float(), "adaln_mean": mean.float()}
    return matrices | folded | {name: value.contiguous() for name, value in kept.items()}


def reduced(state: State) -> State:
    """As FastVideo reduces the rank: the time embedder stays, a basis stands beside it."""
    V = torch.linalg.svd(curve(state), full_matrices=False)[2][:RANK].mT
    narrow = {f"{layer}.weight": (state[f"{layer}.weight"].double() @ V).float().contiguous() for layer in LAYERS}
    return state | narrow | {"adaln_basis.weight": V.mT.float().contiguous()}


FORMS: dict[str, Callable[[State], State]] = {
    "full": lambda state: dict(state),
    "full, original names": original_h3,
    "pruned": pruned,
    "pruned, basis kept": lambda state: pruned(state, keep=True),
    "reduced": reduced,
}


def modulation(state: State) -> dict[str, Tensor]:
    """What the modulation layers of a stored model give at each time, by canonical layer, in float64."""
    if "adaln_t_table" in state:
        inputs, names, bias = state["adaln_t_table"].double(), ORIGINAL, "linear.bias"
    elif "time_embedder.table" in state:
        inputs, names, bias = state["time_embedder.table"].double(), dict.fromkeys(LAYERS, ""), "folded_bias"
    elif "blocks.0.adaln_proj.linear.weight" in state:
        renamed = {f"time_embedder.linear_{i}.{leaf}": state[f"time_embedder.proj_{way}.{leaf}"]
                   for i, way in ((1, "in"), (2, "out")) for leaf in ("weight", "bias")}  # fmt: skip
        inputs, names, bias = curve(renamed), ORIGINAL, "linear.bias"
    else:
        inputs, names, bias = curve(state), dict.fromkeys(LAYERS, ""), "linear.bias"
        if "adaln_basis.weight" in state:
            inputs = inputs @ state["adaln_basis.weight"].double().mT
    out = {}
    for layer, other in names.items():
        name = other or layer
        out[layer] = inputs @ state[f"{name}.weight"].double().mT + state[name.replace("linear", bias) if bias[0] == "f"
                                                                      else f"{name}.bias"].double()  # fmt: skip
    return out


def write_lora(path: Path, width: int, *, names: str = "comfy") -> None:
    """A LoRA of two modulation layers, rank 3, and of one other layer, rank 2."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    for layer, (out, inn, rank) in {LAYERS[0]: (216, width, 3), LAYERS[1]: (24, width, 3),
                                    "transformer_blocks.0.ff.net.2": (12, 10, 2)}.items():  # fmt: skip
        A, B = torch.randn(rank, inn, generator=generator), torch.randn(out, rank, generator=generator)
        other = {**ORIGINAL, "transformer_blocks.0.ff.net.2": "blocks.0.mlp.fc2"}[layer]
        stem = f"diffusion_model.{other}" if names == "comfy" else f"transformer.{layer}"
        tensors |= {f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B}
    save_file(tensors, path)
