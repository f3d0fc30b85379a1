"""Image models from files to files: bases as ComfyUI stores them, distilled models as pipelines, LoRAs as trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraport.errors import MismatchError
from loraport.files.lora.read import read_lora
from loraport.files.models.checkpoint import open_checkpoint
from loraport.files.names.families import FAMILIES as TABLES
from loraport.inputs.config import RankRule, TransferConfig
from loraport.inputs.open import prepare
from loraport.transfers.run import transfer
from tests.families import FAMILIES, IMAGE_PIPELINES, delta, factors, write_pipeline
from tests.tiny import drifted

pytest.importorskip("diffusers")

TRAINED = {
    # how the LoRA lies: behind what, in whose names, and the endings of A and B
    "krea2": ("diffusion_model.", "original", ("lora_A.weight", "lora_B.weight")),
    "qwen-image": ("", "diffusers", ("lora_A.default.weight", "lora_B.default.weight")),
    "qwen-image-2.1": ("transformer.", "diffusers", ("lora_A.weight", "lora_B.weight")),
    "z-image": ("diffusion_model.", "diffusers", ("lora_A.weight", "lora_B.weight")),
}


def pair(name: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """(source state, target state, the LoRA's updates by layer), and their files in the folder."""
    model, (prefix, naming, ends) = FAMILIES[name].model(), TRAINED[name]
    source = model.state_dict()
    target = drifted(source)
    save_file(FAMILIES[name].foreign(source), folder / "base.safetensors")
    write_pipeline(folder / "distilled", target, "transformer", IMAGE_PIPELINES[name])
    tensors, deltas = {}, {}
    for layer, (A, B) in factors(model).items():
        rows = TABLES[name].rows(layer, naming)  # type: ignore[arg-type]
        assert rows is not None and rows.whole
        tensors |= {f"{prefix}{rows.name}.{ends[0]}": A, f"{prefix}{rows.name}.{ends[1]}": B / 20}
        deltas[layer] = delta(A, B / 20)
    save_file(tensors, folder / "lora.safetensors")
    return source, target, deltas


def config(folder: Path, target: Path | None = None) -> TransferConfig:
    places = (folder / "lora.safetensors", folder / "base.safetensors", target or folder / "distilled")
    return TransferConfig(
        *map(str, places), str(folder / "o.safetensors"), method="undo:1", rank=RankRule("full"), dtype="fp32",
        format="comfy",
    )  # fmt: skip


@pytest.mark.parametrize("name", TRAINED)
def test_a_lora_is_moved_onto_the_distilled_model(name: str, tmp_path: Path) -> None:
    """By undo, whose answer is known: D − (W_t − W_s); every linear layer, text fusion, refiners, modulation too."""
    source, target, deltas = pair(name, tmp_path)
    result = transfer(config(tmp_path))
    assert result.keys.as_json() == {"in": 2 * len(deltas), "transferred": 2 * len(deltas), "copied": 0, "dropped": []}
    written = read_lora(tmp_path / "o.safetensors")
    assert set(written.layers) == set(deltas) and written.dialect.family == name
    for layer, D in deltas.items():
        wanted = D.double() - (target[f"{layer}.weight"].double() - source[f"{layer}.weight"].double())
        assert float((written.updates[layer].dense().double() - wanted).norm() / wanted.norm()) < 1e-4, layer


def test_two_versions_are_no_pair(tmp_path: Path) -> None:
    """Qwen-Image and 2.1 share the names of attention layers: the reason is said before any shape is."""
    (tmp_path / "old").mkdir()
    pair("qwen-image", tmp_path / "old")
    (tmp_path / "new").mkdir()
    pair("qwen-image-2.1", tmp_path / "new")
    with pytest.raises(MismatchError, match=r"is a model of qwen-image, .*distilled one of qwen-image-2\.1: .*one st"):
        prepare(config(tmp_path / "old", target=tmp_path / "new" / "distilled"))
    with pytest.raises(
        MismatchError, match=r"is a model of qwen-image-2\.1, .* one of qwen-image: .*give two of one family"
    ):
        prepare(config(tmp_path / "new", target=tmp_path / "old" / "distilled"))


def test_models_with_nothing_but_common_names_are_not_kept_apart(tmp_path: Path) -> None:
    """A model cut down to layers that two families call alike is whatever its partner is."""
    pair("qwen-image-2.1", tmp_path)
    attention = {f"transformer_blocks.0.attn.to_{letter}.weight": torch.randn(12, 12) for letter in "qkv"}
    save_file(attention, tmp_path / "cut.safetensors")
    assert open_checkpoint(tmp_path / "cut.safetensors").family is not TABLES["qwen-image-2.1"]
    ready = prepare(config(tmp_path, target=tmp_path / "cut.safetensors"))
    assert {job.name for job in ready.plan.of("transfer")} == {name.removesuffix(".weight") for name in attention}


def test_a_lora_of_another_family_is_told_so(tmp_path: Path) -> None:
    """Attention is called alike in Krea 2 and Qwen-Image: the shapes do not fit, and the reason is the family."""
    for name in ("krea2", "qwen-image"):
        (tmp_path / name).mkdir()
        pair(name, tmp_path / name)
    (tmp_path / "qwen-image" / "lora.safetensors").write_bytes((tmp_path / "krea2" / "lora.safetensors").read_bytes())
    with pytest.raises(MismatchError, match=r"made for krea2, and .*base\.safetensors is qwen-image: give"):
        prepare(config(tmp_path / "qwen-image"))
