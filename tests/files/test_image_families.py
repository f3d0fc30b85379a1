"""Image models' files that need a word of their own: fused attention, other models of the same names, refused codes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraport.conversion import convert
from loraport.errors import FileFormatError, MismatchError
from loraport.files.lora.read import read_lora
from loraport.files.models.checkpoint import open_checkpoint
from tests.families import FAMILIES, IMAGE_PIPELINES, factors

pytest.importorskip("diffusers")

GOLDEN = {
    "krea2": "8955f6cd64777cb2",
    "qwen-image": "4fd6f10288a54165",
    "qwen-image-2.1": "c998ef3e7f166fe9",
    "z-image": "f3ef37506f46cd65",
}


def lora(stem: str, A: Tensor, B: Tensor) -> dict[str, Tensor]:
    return {f"{stem}.lora_A.weight": A.clone(), f"{stem}.lora_B.weight": B.clone()}


@pytest.mark.parametrize("name", IMAGE_PIPELINES)
def test_golden_bytes(name: str, tmp_path: Path) -> None:
    """One digest a family, over what is written of every layer in every format, in bf16."""
    tensors: dict[str, Tensor] = {}
    for number, (layer, (A, B)) in enumerate(factors(FAMILIES[name].model()).items()):
        numbers = torch.arange(A.numel() + B.numel()).remainder(number + 7) / 16 - 0.25
        a, b = numbers.split([A.numel(), B.numel()])
        tensors |= lora(f"transformer.{layer}", a.reshape(A.shape), b.reshape(B.shape))
    save_file(tensors, tmp_path / "in.safetensors")
    digest = hashlib.sha256()
    for format in FAMILIES[name].formats:
        out = tmp_path / ("peft" if format == "peft" else f"{format}.safetensors")
        convert(str(tmp_path / "in.safetensors"), format, str(out), dtype="bf16")
        weights = load_file(out / "adapter_model.safetensors" if out.is_dir() else out)
        for key, tensor in sorted(weights.items()):
            digest.update(key.encode() + json.dumps(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    assert digest.hexdigest()[:16] == GOLDEN[name]


def test_grouped_attention_in_one_adapter_is_six_equal_parts(tmp_path: Path) -> None:
    """As SimpleTuner writes it: q has four of them, k and v one each; those of the text fusion are three."""
    A, B, text = torch.randn(2, 24), torch.randn(36, 2), torch.randn(24, 2)
    tensors = lora("transformer.transformer_blocks.0.attn.to_qkv", A, B)
    tensors |= lora("transformer.text_fusion.refiner_blocks.0.attn.to_qkv", A[:, :8].contiguous(), text)
    save_file(tensors, tmp_path / "in.safetensors")
    convert(str(tmp_path / "in.safetensors"), "comfy", str(tmp_path / "out.safetensors"))
    out = load_file(tmp_path / "out.safetensors")
    stem = "diffusion_model.{}.attn.w{}.lora_B.weight"
    for letter, rows in zip("qkv", B.split([24, 6, 6]), strict=True):
        assert torch.equal(out[stem.format("blocks.0", letter)], rows)
    for letter, rows in zip("qkv", text.chunk(3), strict=True):
        assert torch.equal(out[stem.format("txtfusion.refiner_blocks.0", letter)], rows)


def test_a_name_without_its_last_number_is_the_same_layer(tmp_path: Path) -> None:
    """ComfyUI reads `attn.to_out` of Krea 2, too; both in one file are the layer twice."""
    A, B = torch.randn(2, 24), torch.randn(24, 2)
    short = lora("transformer.transformer_blocks.0.attn.to_out", A, B)
    save_file(short | lora("transformer.time_mod_proj", A, torch.randn(144, 2)), tmp_path / "in.safetensors")
    assert "transformer_blocks.0.attn.to_out.0" in read_lora(tmp_path / "in.safetensors").layers
    save_file(short | lora("transformer.transformer_blocks.0.attn.to_out.0", A, B), tmp_path / "both.safetensors")
    with pytest.raises((FileFormatError, MismatchError), match=r"twice|both"):
        read_lora(tmp_path / "both.safetensors")


def test_a_lora_of_lumina_2_is_not_divided_as_one_of_z_image(tmp_path: Path) -> None:
    """Same names, and a third as many keys and values as queries: thirds of its rows would be nobody's."""
    stem = "diffusion_model.layers.0.attention.qkv"
    save_file(lora(stem, torch.randn(2, 24), torch.randn(40, 2)), tmp_path / "lumina.safetensors")
    with pytest.raises(MismatchError, match=r"attention\.qkv has 40 rows, .* 3 parts of 24 rows; .* another model"):
        read_lora(tmp_path / "lumina.safetensors")
    save_file(lora(stem, torch.randn(2, 24), torch.randn(72, 2)), tmp_path / "z.safetensors")
    assert len(read_lora(tmp_path / "z.safetensors").layers) == 3


def test_a_layer_alone_and_in_its_fused_module_is_refused(tmp_path: Path) -> None:
    A = torch.randn(2, 24)
    tensors = lora("diffusion_model.layers.0.attention.qkv", A, torch.randn(72, 2))
    save_file(
        tensors | lora("diffusion_model.layers.0.attention.to_k", A, torch.randn(24, 2)), tmp_path / "x.safetensors"
    )
    with pytest.raises(MismatchError, match=r"'layers\.0\.attention\.to_k' is given twice"):
        read_lora(tmp_path / "x.safetensors")


LAYER = "blocks.0.mlp.down"
CODES = {
    "int8 with rotated weights": ({"comfy_quant": b'{"format": "int8_convrot"}', "weight_scale": 1.0}, "int8_convrot"),
    "nvfp4": ({"weight_scale": 1.0, "weight_scale_2": 1.0}, "nvfp4"),
}


@pytest.mark.parametrize("kind", CODES)
def test_codes_that_are_not_read_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    beside, named = CODES[kind]
    tensors = {f"blocks.0.attn.{name}.weight": torch.randn(4, 4) for name in ("wq", "wo", "gate")}
    tensors[f"{LAYER}.weight"] = torch.ones(4, 4, dtype=torch.int8 if "int8" in kind else torch.uint8)
    for name, value in beside.items():
        data = torch.tensor(list(value), dtype=torch.uint8) if isinstance(value, bytes) else torch.tensor(value)
        tensors[f"{LAYER}.{name}"] = data
    save_file(tensors, tmp_path / "krea.safetensors")
    with pytest.raises(FileFormatError, match=named):
        open_checkpoint(tmp_path / "krea.safetensors")


def test_scaled_fp8_is_read(tmp_path: Path) -> None:
    W = torch.randn(4, 4)
    scale = W.abs().max() / 448
    tensors = {f"blocks.0.attn.{name}.weight": torch.randn(4, 4) for name in ("wq", "wo", "gate")}
    tensors |= {f"{LAYER}.weight": (W / scale).to(torch.float8_e4m3fn), f"{LAYER}.weight_scale": scale}
    note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    save_file(tensors | {f"{LAYER}.comfy_quant": note}, tmp_path / "krea.safetensors")
    got = open_checkpoint(tmp_path / "krea.safetensors").read("transformer_blocks.0.ff.down")
    assert float((got.matrix - W).norm() / W.norm()) < 0.05
