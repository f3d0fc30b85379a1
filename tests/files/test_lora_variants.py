"""LoHa, LoKr, mid factors and DoRA: what we add to a weight is what PEFT's modules add, and what the loops say."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loraport.errors import MismatchError
from loraport.files.adapters.dora import Dora
from loraport.files.adapters.full_difference import FullDifference
from loraport.files.adapters.product import Product
from loraport.files.adapters.updates import adapter_kind, aimed_rank, exact_update
from loraport.files.lora.read import read_lora
from loraport.spectral.low_rank import LowRank

peft = pytest.importorskip("peft")

OUT, IN = 12, 20


class Net(nn.Module):
    """Linear layers, square and not, and convolutions of two kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(IN, IN)
        self.wide = nn.Linear(IN, OUT)
        self.conv = nn.Conv2d(8, 6, 3)
        self.point = nn.Conv2d(8, 6, 1)


MODULES = ["q", "wide", "conv", "point"]
CONFIGS: dict[str, Any] = {
    "LoHa": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=MODULES),
    "LoHa with cores": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=MODULES, use_effective_conv2d=True),
    "LoHa with patterns": lambda: peft.LoHaConfig(
        r=3, alpha=5, target_modules=MODULES, rank_pattern={"q": 2, "conv": 4}, alpha_pattern={"q": 7}
    ),
    "LoKr": lambda: peft.LoKrConfig(r=2, alpha=5, target_modules=MODULES),
    "LoKr, both factored": lambda: peft.LoKrConfig(r=1, alpha=5, target_modules=MODULES, decompose_both=True),
    "LoKr, both whole": lambda: peft.LoKrConfig(r=32, alpha=5, target_modules=MODULES, alpha_pattern={"q": 8}),
    "LoKr with cores": lambda: peft.LoKrConfig(
        r=1, alpha=5, target_modules=MODULES, use_effective_conv2d=True, decompose_factor=2
    ),
    "LoRA": lambda: peft.LoraConfig(r=3, lora_alpha=5, target_modules=MODULES),
    "DoRA": lambda: peft.LoraConfig(r=3, lora_alpha=5, target_modules=MODULES, use_dora=True),
}


def trained(config: Any) -> tuple[Any, dict[str, Tensor]]:
    """A PEFT adapter with random factors on the small net, and the net's weights as matrices."""
    torch.manual_seed(0)
    net = Net()
    before = {name: getattr(net, name).weight.detach().clone() for name in MODULES}
    wrapped = peft.get_peft_model(net, config)
    for name, parameter in wrapped.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.randn_like(parameter)
        elif any(part in name for part in (".lora_", ".hada_", ".lokr_")):
            nn.init.normal_(parameter)
    return wrapped, before


@pytest.mark.parametrize("name", CONFIGS)
def test_what_peft_saves_adds_what_peft_adds(name: str, tmp_path: Path) -> None:
    wrapped, before = trained(CONFIGS[name]())
    wrapped.save_pretrained(str(tmp_path))
    lora = read_lora(tmp_path)
    merged = wrapped.merge_and_unload()
    assert set(lora.layers) == set(MODULES) and not lora.extras and not lora.dropped
    for module, W in before.items():
        wanted = (getattr(merged, module).weight.detach() - W).flatten(1).double()
        update = exact_update(lora.updates[module], W.flatten(1))
        got = (update.dense() if isinstance(update, LowRank) else update).double()
        assert float((got - wanted).norm()) <= 1e-5 * float(wanted.norm()), module
        assert adapter_kind(lora.updates[module]) == name.split(",")[0].split(" ")[0]


FLAT = "lora_unet_blocks_0_self_attn_q"


def read(tensors: dict[str, Tensor], folder: Path, **options: Any) -> Any:
    save_file({f"{FLAT}.{part}": value.contiguous() for part, value in tensors.items()}, folder / "x.safetensors")
    return read_lora(folder / "x.safetensors", **options)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def loha(r: int, out: int = OUT, inn: int = IN) -> dict[str, Tensor]:
    return {
        "hada_w1_a": drawn(out, r), "hada_w1_b": drawn(r, inn), "hada_w2_a": drawn(out, r, seed=1),
        "hada_w2_b": drawn(r, inn, seed=1), "alpha": torch.tensor(4.0),
    }  # fmt: skip


def test_loha_by_loops(tmp_path: Path) -> None:
    parts = loha(2)
    update = read(parts, tmp_path).updates["blocks.0.self_attn.q"]
    wanted = torch.zeros(OUT, IN, dtype=torch.float64)
    for i, j in itertools.product(range(OUT), range(IN)):
        first = sum(parts["hada_w1_a"][i, p].double() * parts["hada_w1_b"][p, j].double() for p in range(2))
        second = sum(parts["hada_w2_a"][i, p].double() * parts["hada_w2_b"][p, j].double() for p in range(2))
        wanted[i, j] = 4.0 / 2 * first * second
    assert update.rank == 4
    for got in (update.dense(), update.low_rank().dense()):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.linalg.matrix_rank(wanted) == 4


def test_lokr_by_loops(tmp_path: Path) -> None:
    w1, a, b = drawn(3, 4), drawn(4, 2), drawn(2, 5)
    update = read({"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(6.0)}, tmp_path)
    update = update.updates["blocks.0.self_attn.q"]
    wanted = torch.zeros(12, 20, dtype=torch.float64)
    for i, j, k, l in itertools.product(range(3), range(4), range(4), range(5)):  # noqa: E741
        wanted[4 * i + k, 5 * j + l] = 3 * w1[i, j].double() * (a[k].double() @ b[:, l].double())
    assert update.rank == 6
    for got in (update.dense(), update.low_rank().dense()):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 9999220736.0, 0.5])
def test_alpha_means_nothing_where_both_factors_of_lokr_are_whole(alpha: float, tmp_path: Path) -> None:
    """LyCORIS sets alpha to the rank there, and some trainers write a rank of ten thousand million."""
    w1, w2 = drawn(3, 4), drawn(4, 5)
    lora = read({"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(alpha)}, tmp_path)
    torch.testing.assert_close(lora.updates["blocks.0.self_attn.q"].dense(), torch.kron(w1, w2))
    assert lora.layers["blocks.0.self_attn.q"].scale == 1.0
    assert "whole" in lora.layers["blocks.0.self_attn.q"].scale_source


def test_a_mid_factor_by_loops(tmp_path: Path) -> None:
    down, mid, up = drawn(3, 5, 1, 1), drawn(3, 3, 2, 2), drawn(4, 3, 1, 1)
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(6.0)}
    lora = read(parts, tmp_path)
    update = lora.updates["blocks.0.self_attn.q"]
    wanted = torch.zeros(4, 5, 2, 2, dtype=torch.float64)
    for i, j, y, x, m, n in itertools.product(range(4), range(5), range(2), range(2), range(3), range(3)):
        wanted[i, j, y, x] += 2 * up[i, m, 0, 0].double() * mid[m, n, y, x].double() * down[n, j, 0, 0].double()
    torch.testing.assert_close(update.dense().double(), wanted.flatten(1), rtol=1e-5, atol=1e-5)
    assert lora.layers["blocks.0.self_attn.q"].kernel == (2, 2) and isinstance(update, LowRank) and update.rank == 3


W = drawn(OUT, IN, seed=9)
LORA = {"lora_down.weight": drawn(3, IN), "lora_up.weight": 0.1 * drawn(OUT, 3), "alpha": torch.tensor(6.0)}
D = 2 * LORA["lora_up.weight"] @ LORA["lora_down.weight"]


@pytest.mark.parametrize(("shape", "axis"), [((OUT, 1), 1), ((OUT,), 1), ((1, IN), 0)])
def test_dora_of_lycoris_by_rows_or_by_columns(shape: tuple[int, ...], axis: int, tmp_path: Path) -> None:
    m = 1 + drawn(*shape).abs()
    update = read({**LORA, "dora_scale": m}, tmp_path).updates["blocks.0.self_attn.q"]
    merged = W + D
    column = m if len(shape) == 2 else m[:, None]
    wanted = merged * column / merged.norm(dim=axis, keepdim=True)
    torch.testing.assert_close(update.merged(W), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(exact_update(update, W), wanted - W, rtol=1e-5, atol=1e-5)
    assert isinstance(update, Dora) and adapter_kind(update) == "DoRA" and update.rank == 3
    with pytest.raises(MismatchError, match="depends on the weight"):
        exact_update(update, None)


def test_dora_over_loha(tmp_path: Path) -> None:
    update = read({**loha(2), "dora_scale": torch.ones(OUT, 1)}, tmp_path).updates["blocks.0.self_attn.q"]
    assert isinstance(update, Dora) and isinstance(update.inner, Product)
    merged = W + update.inner.dense()
    torch.testing.assert_close(update.merged(W), merged / merged.norm(dim=1, keepdim=True))


def test_a_dora_with_the_weights_own_magnitudes_is_nearly_its_lora(tmp_path: Path) -> None:
    """m = ‖W + D‖ adds D exactly; m = ‖W‖ does not."""
    for m, same in (((W + D).norm(dim=1, keepdim=True), True), (W.norm(dim=1, keepdim=True), False)):
        update = read({**LORA, "dora_scale": m}, tmp_path).updates["blocks.0.self_attn.q"]
        assert torch.allclose(update.difference(W), D, atol=1e-5) is same


def test_columns_of_a_convolution_are_its_input_channels(tmp_path: Path) -> None:
    V, m = drawn(4, 5, 3, 3), 1 + drawn(1, 5, 1, 1).abs()
    parts = {"lora_down.weight": drawn(2, 5, 3, 3), "lora_up.weight": drawn(4, 2, 1, 1), "dora_scale": m}
    update = read(parts, tmp_path).updates["blocks.0.self_attn.q"]
    X = V + update.inner.dense().reshape(V.shape)
    wanted = X * m / X.transpose(0, 1).flatten(1).norm(dim=1)[None, :, None, None]
    torch.testing.assert_close(update.merged(V.flatten(1)).reshape(V.shape), wanted)


def test_magnitudes_for_another_weight_follow_its_rows(tmp_path: Path) -> None:
    update = read({**LORA, "dora_scale": 1 + drawn(OUT, 1).abs()}, tmp_path).updates["blocks.0.self_attn.q"]
    factors = 1 + drawn(OUT, 1, seed=3).abs()
    torch.testing.assert_close(update.carried(W, factors * W).magnitude, update.magnitude * factors[:, 0])
    torch.testing.assert_close(update.carried(W, W).magnitude, update.magnitude)


def test_full_differences_are_layers_where_they_are_asked_for(tmp_path: Path) -> None:
    parts = {**LORA, "diff": drawn(OUT, IN, seed=5), "diff_b": drawn(OUT)}
    plain, asked = read(parts, tmp_path), read(parts, tmp_path, diffs=True)
    assert set(plain.extras) == {f"{FLAT}.diff", f"{FLAT}.diff_b"} and set(asked.extras) == {f"{FLAT}.diff_b"}
    update = asked.updates["blocks.0.self_attn.q"]
    assert isinstance(update, FullDifference)
    torch.testing.assert_close(update.dense(), parts["diff"] + D, rtol=1e-5, atol=1e-5)
    alone = read({"diff": parts["diff"].bfloat16()}, tmp_path, diffs=True)
    torch.testing.assert_close(alone.updates["blocks.0.self_attn.q"].dense(), parts["diff"].bfloat16().float())
    with pytest.raises(MismatchError, match="does not go with"):
        read({**LORA, "dora_scale": torch.ones(OUT, 1), "diff": parts["diff"]}, tmp_path, diffs=True)


def test_the_smaller_form_is_taken_and_the_rank_aimed_at_is_bounded(tmp_path: Path) -> None:
    small = read(loha(2, 64, 64), tmp_path).updates["blocks.0.self_attn.q"]
    large = read(loha(12, 64, 64), tmp_path).updates["blocks.0.self_attn.q"]
    assert small.is_low_rank and not large.is_low_rank
    assert isinstance(exact_update(small, None), LowRank) and isinstance(exact_update(large, None), Tensor)
    assert (aimed_rank(small), aimed_rank(large)) == (4, 64)
    wide = Product("LoHa", *(LowRank(drawn(400, 16), drawn(16, 400)) for _ in "12"))
    assert aimed_rank(wide) == 128 and wide.rank == 256
    assert aimed_rank(Dora(LowRank(drawn(400, 16), drawn(16, 400)), torch.ones(400))) == 32


def test_peft_in_memory_names_the_adapter(tmp_path: Path) -> None:
    wrapped, before = trained(CONFIGS["DoRA"]())
    state = {key.removeprefix("base_model.model."): value for key, value in wrapped.state_dict().items()}
    state = {key: value for key, value in state.items() if "lora_" in key}
    assert any(".default" in key for key in state)
    save_file(state, tmp_path / "memory.safetensors", {"lora_adapter_metadata": '{"lora_alpha": 5, "r": 3}'})
    lora = read_lora(tmp_path / "memory.safetensors")
    merged = wrapped.merge_and_unload()
    for module, V in before.items():
        wanted = getattr(merged, module).weight.detach().flatten(1)
        torch.testing.assert_close(lora.updates[module].merged(V.flatten(1)), wanted, rtol=1e-5, atol=1e-5)
    assert load_file(tmp_path / "memory.safetensors").keys() == {
        key for layer in lora.layers.values() for key in layer.keys
    }
