"""Two versions of a family fit each other by shape; the plan says that they are two trainings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraport.files.inspect import describe
from loraport.inputs.config import TransferConfig
from loraport.inputs.open import prepare

LAYER = "transformer_blocks.0.attn1.to_q"
SIGNS = {
    "LTX-2": {"caption_projection.linear_1.weight": (8, 6)},
    "LTX-2.3": {"prompt_adaln_single.linear.weight": (16, 8)},
    "LTX-2.5": {"prompt_adaln_single.linear.weight": (16, 8), "keyframes_abs_pos_embedding": (1, 8)},
}


def model(folder: Path, version: str, seed: int) -> str:
    """A few layers of one version, by the original names."""
    torch.manual_seed(seed)
    sizes = {f"{LAYER}.weight": (8, 8), "patchify_proj.weight": (8, 4), **SIGNS[version]}
    tensors: dict[str, Tensor] = {f"model.diffusion_model.{name}": torch.randn(size) for name, size in sizes.items()}
    path = folder / f"{version}-{seed}.safetensors"
    save_file(tensors, path)
    return str(path)


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("LTX-2.3", "LTX-2.5", True),
        ("LTX-2", "LTX-2.3", True),
        ("LTX-2.5", "LTX-2.5", False),
    ],
)
def test_a_transfer_between_versions_is_said_to_be_one(source: str, target: str, said: bool, tmp_path: Path) -> None:
    keys = {f"diffusion_model.{LAYER}.lora_A.weight": torch.ones(1, 8),
            f"diffusion_model.{LAYER}.lora_B.weight": torch.ones(8, 1)}  # fmt: skip
    save_file(keys, tmp_path / "lora.safetensors")
    places = {"source": model(tmp_path, source, 1), "target": model(tmp_path, target, 2)}
    plan = prepare(
        TransferConfig(lora=str(tmp_path / "lora.safetensors"), output=str(tmp_path / "out.safetensors"), **places)
    ).plan
    notes = [note for note in plan.warnings if "two trainings" in note]
    assert bool(notes) == said and all(f" is {source}, and " in note and f" {target}: " in note for note in notes)


@pytest.mark.parametrize("version", SIGNS)
def test_inspect_names_the_version(version: str, tmp_path: Path) -> None:
    facts = describe(model(tmp_path, version, 1))
    assert facts["family"] == "ltx-2" and facts["size"].startswith(version)
    assert not facts["size"].startswith(f"{version}.")


@pytest.mark.parametrize("alien", [True, False])
def test_a_lora_of_another_family_that_fits_in_part_is_said_to_be_one(alien: bool, tmp_path: Path) -> None:
    """FLUX.1's attention has the names and, at 3072, the shapes of FLUX.2 klein's."""
    torch.manual_seed(0)
    shapes = {"transformer_blocks.0.attn.to_q": (8, 8), "transformer_blocks.0.attn.to_k": (8, 8)}
    shapes |= {"single_stream_modulation.linear": (24, 8)}
    for name in ("source", "target"):
        save_file(
            {f"{layer}.weight": torch.randn(shape) for layer, shape in shapes.items()}, tmp_path / f"{name}.safetensors"
        )
    adapted = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k"]
    adapted += ["single_transformer_blocks.0.proj_mlp"] if alien else []
    tensors = {}
    for layer in adapted:
        tensors |= {
            f"transformer.{layer}.lora_A.weight": torch.ones(1, 8),
            f"transformer.{layer}.lora_B.weight": torch.ones(8, 1),
        }
    save_file(tensors, tmp_path / "lora.safetensors", {"ss_base_model_version": "flux1"})
    places = {name: str(tmp_path / f"{name}.safetensors") for name in ("lora", "source", "target", "output")}
    notes = [note for note in prepare(TransferConfig(**places)).plan.warnings if "the LoRA is one of flux.1" in note]
    assert bool(notes) == alien and all("proj_mlp" in note and "is flux.2" in note for note in notes)
