"""Convolutions through every method, from files to files: an LCM-LoRA of a tiny UNet, made and read by diffusers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.inputs.batch import one_or_many
from loraport.inputs.config import RankRule, TransferConfig
from loraport.methods.layer import Layer
from loraport.methods.recipes import METHODS, find_recipe
from loraport.methods.settings import ProloraSettings
from loraport.spectral.basis import decompose
from loraport.spectral.low_rank import LowRank
from loraport.transfers.run import transfer_many
from tests import tiny
from tests.layers import relative

diffusers = pytest.importorskip("diffusers")

LCM_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1",
               "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")  # fmt: skip
"""The modules that LCM-LoRA was trained on (arXiv 2311.05556, its training script)."""
RANK, ALPHA = 2, 3.0
LINEAR = ("direct", "lora-x", "prolora", "drift-orthogonal:3")
NAMES = [*(name for name in METHODS if name != "drift-orthogonal"), "drift-orthogonal:3"]
PROLORA = ProloraSettings("energy:0.9", phi_min=0.0)


def tiny_unet():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(folder, source, target): the UNet, a drifted one, and two LoRAs of it, the second with twice the alpha."""
    folder = tmp_path_factory.mktemp("unet")
    source = tiny_unet().state_dict()
    target = tiny.drifted(source)
    tiny.write_original(folder / "source.safetensors", source)
    tiny.write_original(folder / "target.safetensors", target)
    generator, tensors, seen = torch.Generator().manual_seed(3), {}, set()
    for name, W in source.items():
        layer = name.removesuffix(".weight")
        kind = next((target for target in LCM_TARGETS if layer.endswith(target)), None)
        if name == layer or kind is None or kind in seen:
            continue
        seen.add(kind)  # one layer of each kind
        down = torch.randn(RANK, *W.shape[1:], generator=generator)
        up = torch.randn(W.shape[0], RANK, *(1 for _ in W.shape[2:]), generator=generator)
        up *= 0.1 * W.norm() / (up.flatten(1) @ down.flatten(1)).norm()
        tensors[f"unet.{layer}.lora_A.weight"], tensors[f"unet.{layer}.lora_B.weight"] = down, up
        tensors[f"unet.{layer}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, folder / "lcm.safetensors")
    twice = {key: tensor * 2 if key.endswith(".alpha") else tensor for key, tensor in tensors.items()}
    save_file(twice, folder / "twice.safetensors")
    return folder, source, target


@pytest.fixture(scope="module")
def moved(pair):
    """{(LoRA, method): the written file}, all in one pass at full rank."""
    folder = pair[0]
    places = (str(folder / f"{name}.safetensors") for name in ("lcm", "source", "target"))
    template = TransferConfig(*places, str(folder / "out"), dtype="fp32", cache=str(folder / "cache"))
    recipes = [find_recipe(name, PROLORA if "prolora" in name else None) for name in NAMES]
    loras = [template.lora, str(folder / "twice.safetensors")]
    configs = one_or_many(template, loras, recipes, rank=RankRule("full"))
    batch = transfer_many(configs)
    assert not batch.lost and all(row.status == "transferred" for run in batch.runs for row in run.layers)
    return {(Path(config.lora).stem, config.method): load_file(config.output) for config in configs}


def updates(tensors) -> dict[str, torch.Tensor]:
    """{layer: B·A as a matrix} of a written file."""
    layers = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    factor = {(layer, x): tensors[f"{layer}.lora_{x}.weight"].flatten(1).double() for layer in layers for x in "AB"}
    return {layer.removeprefix("unet."): factor[layer, "B"] @ factor[layer, "A"] for layer in layers}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_what_the_method_gives_for_its_matrix(pair, moved, name):
    _, source, target = pair
    given, written = load_file(pair[0] / "lcm.safetensors"), moved["lcm", name]
    recipe, kinds = find_recipe(name, PROLORA if name == "prolora" else None), set()
    for layer, update in updates(written).items():
        W_s, W_t = (state[f"{layer}.weight"].double() for state in (source, target))
        A, B = (given[f"unet.{layer}.lora_{x}.weight"].double() for x in "AB")
        assert written[f"unet.{layer}.lora_A.weight"].shape[1:] == W_s.shape[1:], "a kernel is unfolded again"
        assert written[f"unet.{layer}.lora_B.weight"].shape[2:] == (1,) * (W_s.dim() - 2)
        lora = LowRank(B.flatten(1) * (ALPHA / RANK), A.flatten(1))
        flat = [W.flatten(1) for W in (W_s, W_t)]
        exact = recipe(Layer(lora, flat[1] - flat[0], *(decompose(W) for W in flat))).dense()
        size = max(float(exact.norm()), 1e-2 * lora.norm())
        assert float((update - exact).norm()) < 1e-2 * size, layer  # bases are kept in 16 bits
        kinds.add(tuple(W_s.shape[2:]))
    assert kinds == {(), (1, 1), (3, 3)}


def test_doubling_alpha_doubles_what_linear_methods_write_and_nothing_else(moved):
    for name in NAMES:
        if name in ("direct-matched", "rollback"):
            continue
        once, twice = (updates(moved[lora, name]) for lora in ("lcm", "twice"))
        changes = [relative(twice[layer], 2 * update) for layer, update in once.items()]
        assert max(changes) < 1e-4 if name in LINEAR else max(changes) > 1e-2, name


def test_diffusers_merges_what_was_written(pair, moved):
    pytest.importorskip("peft")
    _, source, _ = pair
    unet = tiny_unet()
    unet.load_lora_adapter(
        {key: tensor for key, tensor in moved["lcm", "casa"].items() if not key.endswith(".alpha")}, prefix="unet"
    )
    unet.fuse_lora()
    unet.unload_lora()
    after, expected = unet.state_dict(), updates(moved["lcm", "casa"])
    for name, W in source.items():
        update = expected.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if update is None:
            assert torch.equal(after[name], W), name
        else:
            assert torch.allclose(after[name] - W, update.reshape(W.shape).float(), atol=1e-5), name


def test_a_foura_with_a_frozen_gate_is_an_ordinary_lora_after_folding():
    """D = F_out⁻¹·B·G·A·F_in (arXiv 2406.08798) with a cosine transform and a gate: two factors, and moved as such."""

    def cosine_transform(n: int) -> torch.Tensor:
        i, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)[None]
        X = torch.cos(torch.pi * (j + 0.5) * i / n) * (2 / n) ** 0.5
        X[0] /= 2**0.5
        return X

    generator = torch.Generator().manual_seed(5)
    W_s = torch.randn(18, 24, generator=generator, dtype=torch.float64)
    W_t = W_s + 0.1 * torch.randn(18, 24, generator=generator, dtype=torch.float64)
    B, A = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((18, 4), (4, 24)))
    gate = torch.diag(torch.tensor([1.0, 0.25, 0.5, 1.0], dtype=torch.float64))
    dense = cosine_transform(18).T @ B @ gate @ A @ cosine_transform(24)
    folded = LowRank(cosine_transform(18).T @ B, gate @ A @ cosine_transform(24))
    assert relative(folded.dense(), dense) < 1e-12 and relative(B @ A, dense) > 0.5
    exact = torch.linalg.svd(dense, full_matrices=False)
    plain = LowRank(exact.U[:, :4] * exact.S[:4], exact.Vh[:4])
    for name in METHODS:
        bases = decompose(W_s), decompose(W_t)
        recipe = find_recipe(name, PROLORA if name == "prolora" else None)
        results = [recipe(Layer(one, W_t - W_s, *bases)).dense() for one in (folded, plain)]
        assert float((results[0] - results[1]).norm()) < 1e-9 * float(dense.norm()), name
