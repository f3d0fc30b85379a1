"""1×1 convolutions and linear layers are one matrix: every route takes either, and writes what the target has."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.errors import MismatchError
from loraport.inputs.config import TransferConfig
from loraport.merging import merge
from loraport.transfers.run import transfer

LAYER = "mid_block.attentions.0.proj_in"
ONES = {"linear": (), "1×1": (1, 1), "1×1×1": (1, 1, 1)}


def model(path: Path, seed: int, kernel: tuple[int, ...]) -> torch.Tensor:
    """A layer of a U-Net, and one that no LoRA touches; its matrix."""
    W = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    beside = {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": torch.ones(4, 4)}
    save_file({f"{LAYER}.weight": W.reshape(6, 4, *kernel), **beside}, path)
    return W


def lora(path: Path, kernel: tuple[int, ...], seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    A, B = torch.randn(2, 4, generator=generator), torch.randn(6, 2, generator=generator)
    ones = tuple(1 for _ in kernel)
    tensors = {"A": A.reshape(2, 4, *kernel), "B": B.reshape(6, 2, *ones)}
    save_file({f"unet.{LAYER}.lora_{x}.weight": tensor for x, tensor in tensors.items()}, path)
    return B @ A


@pytest.mark.parametrize("factors", ONES)
@pytest.mark.parametrize(("source", "target"), [("linear", "1×1"), ("1×1", "linear"), ("linear", "linear")])
def test_a_transfer_writes_the_kernel_of_the_target(tmp_path, factors, source, target):
    model(tmp_path / "source.safetensors", 0, ONES[source])
    model(tmp_path / "target.safetensors", 1, ONES[target])
    D = lora(tmp_path / "lora.safetensors", ONES[factors])
    out = tmp_path / "out.safetensors"
    places = {name: str(tmp_path / f"{name}.safetensors") for name in ("lora", "source", "target")}
    run = transfer(TransferConfig(**places, output=str(out), method="direct", dtype="fp32", cache=None))
    assert [row.status for row in run.layers] == ["transferred"]
    A, B = (load_file(out)[f"unet.{LAYER}.lora_{x}.weight"] for x in "AB")
    assert A.shape[2:] == B.shape[2:] == ONES[target]
    torch.testing.assert_close(B.flatten(1) @ A.flatten(1), D)


@pytest.mark.parametrize("factors", ONES)
@pytest.mark.parametrize("held", ONES)
def test_merge_and_accelerator_take_either(tmp_path, factors, held):
    W = model(tmp_path / "source.safetensors", 0, ONES[held])
    D = lora(tmp_path / "lora.safetensors", ONES[factors])
    one, two = (str(tmp_path / f"{name}.safetensors") for name in ("source", "lora"))
    merge(one, [two], str(tmp_path / "merged.safetensors"))
    got = load_file(tmp_path / "merged.safetensors")[f"{LAYER}.weight"]
    assert got.shape[2:] == ONES[held]
    torch.testing.assert_close(got.flatten(1), W + D)
    config = TransferConfig(
        two, one, f"source+{two}", str(tmp_path / "out.safetensors"), method="undo:1", dtype="fp32", cache=None
    )
    transfer(config)
    left = load_file(tmp_path / "out.safetensors")
    A, B = (left[f"unet.{LAYER}.lora_{x}.weight"] for x in "AB")
    assert A.shape[2:] == ONES[held]
    assert float((B.flatten(1) @ A.flatten(1)).norm()) < 1e-5 * float(D.norm()), "its own drift taken back is nothing"


def test_a_difference_with_a_kernel_of_ones_is_one_of_a_linear_layer(tmp_path):
    W = model(tmp_path / "model.safetensors", 0, ())
    save_file({"diffusion_model.middle_block.1.proj_in.diff": torch.ones(6, 4, 1, 1)}, tmp_path / "lora.safetensors")
    merge(str(tmp_path / "model.safetensors"), [str(tmp_path / "lora.safetensors")], str(tmp_path / "out.safetensors"))
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")[f"{LAYER}.weight"], W + 1)


def test_a_larger_kernel_is_another_layer(tmp_path):
    for name in ("source", "target"):
        model(tmp_path / f"{name}.safetensors", 0, ())
    A, B = torch.ones(2, 1, 2, 2), torch.ones(6, 2, 1, 1)
    save_file({f"unet.{LAYER}.lora_A.weight": A, f"unet.{LAYER}.lora_B.weight": B}, tmp_path / "lora.safetensors")
    places = {name: str(tmp_path / f"{name}.safetensors") for name in ("lora", "source", "target")}
    with pytest.raises(MismatchError):
        transfer(TransferConfig(**places, output=str(tmp_path / "out.safetensors"), method="direct", cache=None))
