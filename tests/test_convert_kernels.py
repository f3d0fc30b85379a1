"""Convolutions whose file does not tell the kernel, converted: diffusers itself merges what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraport.conversion import convert
from loraport.errors import MismatchError
from loraport.files.lora.read import read_lora
from loraport.files.names.families import FAMILIES as TABLES
from loraport.files.names.families import flattened
from tests.families import FAMILIES, fused_by_diffusers, unet

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

PARTS = (".conv1", "conv_in", "downsamplers.0.conv", "upsamplers.0.conv", "conv_shortcut", ".proj_in", ".proj_out",
         "attentions.0.transformer_blocks.0.attn2.to_k", "add_embedding.linear_1")  # fmt: skip
"""The last is SDXL's alone."""
R = 2


def layers_of(model: Any) -> dict[str, torch.nn.Module]:
    """One layer of every kind."""
    every = {name: module for name, module in model.named_modules() if hasattr(module, "weight")}
    found = (next((name for name in every if name.endswith(part)), "") for part in PARTS)
    return {name: every[name] for name in found if name}


def loha(shape: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """As LyCORIS stores it: a convolution is a matrix of flattened kernels."""
    out, inn = shape[0], int(torch.tensor(shape[1:]).prod())
    a, b, c, d = (torch.randn(*size) for size in ((out, R), (R, inn), (out, R), (R, inn)))
    tensors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
    return tensors, ((a @ b) * (c @ d)).reshape(shape)


def lokr(shape: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    out, inn = shape[0], int(torch.tensor(shape[1:]).prod())
    w1, a, b = torch.randn(2, 1), torch.randn(out // 2, R), torch.randn(R, inn)
    return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, torch.kron(w1, a @ b).reshape(shape)


def flat(shape: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    out, inn = shape[0], int(torch.tensor(shape[1:]).prod())
    A, B = torch.randn(R, inn), torch.randn(out, R)
    return {"lora_down.weight": A, "lora_up.weight": B}, (B @ A).reshape(shape)


def with_ones(shape: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """Every layer as a convolution: linear ones with a kernel of ones."""
    kernel = shape[2:] or (1, 1)
    A, B = torch.randn(R, shape[1], *kernel), torch.randn(shape[0], R, 1, 1)
    return {"lora_down.weight": A, "lora_up.weight": B}, (B.flatten(1) @ A.flatten(1)).reshape(shape)


def write(path: Path, model: Any, kind: Any, prefix: str = "lora_unet_") -> dict[str, Tensor]:
    tensors, deltas = {}, {}
    torch.manual_seed(0)
    for name, module in layers_of(model).items():
        stem = f"{prefix}{flattened(name) if prefix.endswith('_') else name}"
        own, deltas[name] = kind(tuple(module.weight.shape))  # type: ignore[arg-type]
        tensors |= {f"{stem}.{end}": tensor for end, tensor in own.items()}
        tensors[f"{stem}.alpha"] = torch.tensor(float(R))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return deltas


def merged(family: str, model: Any, path: Path, deltas: dict[str, Tensor]) -> None:
    before = {name: model.get_submodule(name).weight.detach().clone() for name in deltas}
    fused_by_diffusers(family, model, path)
    for name, wanted in deltas.items():
        got = model.get_submodule(name).weight.detach() - before[name]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", [loha, lokr, flat, with_ones])
@pytest.mark.parametrize("family", ["sd1.5", "sdxl"])
def test_diffusers_merges_what_is_written_of_a_unet(family: str, kind: Any, tmp_path: Path) -> None:
    model = FAMILIES[family].model()
    deltas = write(tmp_path / "in.safetensors", model, kind)
    assert {len(delta.shape) for delta in deltas.values()} == {2, 4} and len(deltas) >= len(PARTS) - 1
    done = convert(str(tmp_path / "in.safetensors"), "diffusers", str(tmp_path / "out.safetensors"), dtype="fp32")
    assert not done.lost
    merged(family, model, tmp_path / "out.safetensors", deltas)


def test_the_projections_of_stable_diffusion_2_are_linear_but_for_kohya(tmp_path: Path) -> None:
    """kohya's scripts train 1×1 convolutions there; diffusers and PEFT have linear layers of the same names."""
    model = unet(4, use_linear_projection=True, cross_attention_dim=1024)
    deltas = write(tmp_path / "in.safetensors", model, with_ones)
    convert(str(tmp_path / "in.safetensors"), "kohya", str(tmp_path / "kohya.safetensors"), dtype="fp32")
    written = load_file(tmp_path / "kohya.safetensors")
    assert all(tensor.dim() == 4 for key, tensor in written.items() if "proj_in.lora" in key)
    convert(str(tmp_path / "kohya.safetensors"), "diffusers", str(tmp_path / "out.safetensors"), dtype="fp32")
    merged("sd1.5", model, tmp_path / "out.safetensors", deltas)


@pytest.mark.parametrize("kind", [loha, flat])
def test_a_patch_embedding_of_wan_has_its_five_dimensions(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, text_dim=8, freq_dim=8, ffn_dim=16, num_layers=1
    )
    own, delta = kind(tuple(model.patch_embedding.weight.shape))
    save_file({f"diffusion_model.patch_embedding.{end}": x for end, x in own.items()}, tmp_path / "in.safetensors")
    convert(str(tmp_path / "in.safetensors"), "diffusers", str(tmp_path / "out.safetensors"), dtype="fp32")
    assert load_file(tmp_path / "out.safetensors")["transformer.patch_embedding.lora_A.weight"].shape[1:] == (
        16,
        1,
        2,
        2,
    )
    merged("wan", model, tmp_path / "out.safetensors", {"patch_embedding": delta})


def of_no_family(path: Path, kind: Any) -> Tensor:
    own, delta = kind((4, 3, 3, 3))
    save_file({f"unet.stage.0.mix.{end}": tensor for end, tensor in own.items()}, path)
    return delta  # type: ignore[no-any-return]


def test_the_source_tells_what_no_table_knows_and_without_it_a_loha_is_refused(tmp_path: Path) -> None:
    delta = of_no_family(tmp_path / "in.safetensors", loha)
    place, out = str(tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    with pytest.raises(MismatchError, match=r"stage.0.mix .* --source"):
        convert(place, "diffusers", str(out))
    assert not out.exists()
    save_file({"stage.0.mix.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "model.safetensors")
    convert(place, "diffusers", str(out), source=str(tmp_path / "model.safetensors"), dtype="fp32")
    A, B = (load_file(out)[f"unet.stage.0.mix.lora_{x}.weight"] for x in "AB")
    assert A.shape[1:] == (3, 3, 3) and B.shape[2:] == (1, 1)
    torch.testing.assert_close((B.flatten(1) @ A.flatten(1)).reshape(delta.shape), delta, rtol=1e-4, atol=1e-4)
    save_file({"stage.0.mix.weight": torch.zeros(4, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(MismatchError, match=r"4 × 27, the weight in .* 4 × 3"):
        convert(place, "diffusers", str(out), source=str(tmp_path / "model.safetensors"))


def test_columns_that_are_no_kernels_are_refused(tmp_path: Path) -> None:
    tensors = {f"unet.down_blocks.0.resnets.0.conv1.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    save_file(tensors, tmp_path / "in.safetensors")
    with pytest.raises(MismatchError, match="a convolution of 3 × 3 by its name, but the LoRA has 2 columns"):
        convert(str(tmp_path / "in.safetensors"), "comfy", str(tmp_path / "out.safetensors"))


def test_a_kernel_that_the_file_tells_is_kept_beside_a_name_that_says_another(tmp_path: Path) -> None:
    """A 5×5 convolution under the name of a 3×3 one belongs to somebody's own model."""
    assert TABLES["sd1.5"].kernel("conv_in") == (3, 3)
    A, B = torch.ones(2, 4, 5, 5), torch.ones(4, 2, 1, 1)
    save_file({"unet.conv_in.lora_A.weight": A, "unet.conv_in.lora_B.weight": B}, tmp_path / "in.safetensors")
    convert(str(tmp_path / "in.safetensors"), "comfy", str(tmp_path / "out.safetensors"))
    assert load_file(tmp_path / "out.safetensors")["diffusion_model.input_blocks.0.0.lora_A.weight"].shape == A.shape


@pytest.mark.parametrize(
    ("name", "width", "family"),
    [
        ("double_blocks.3.img_attn_qkv", 3072, "hunyuanvideo"),
        ("double_blocks.3.img_attn_qkv", 2048, "hunyuanvideo-1.5"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 768, "sd1.5"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 2048, "sdxl"),
    ],
)
def test_the_width_tells_the_family_where_names_do_not(name: str, width: int, family: str, tmp_path: Path) -> None:
    tensors = {f"{name}.lora_A.weight": torch.ones(1, width), f"{name}.lora_B.weight": torch.ones(3, 1)}
    save_file({f"diffusion_model.{key}": tensor for key, tensor in tensors.items()}, tmp_path / "in.safetensors")
    assert read_lora(tmp_path / "in.safetensors").dialect.family == family
