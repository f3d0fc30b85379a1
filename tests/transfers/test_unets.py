"""SDXL to SSD-1B: layers of a real U-Net class paired by similarity, moved by every method, loaded by diffusers."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.files.models.checkpoint import open_checkpoint
from loraport.files.names.blocks import layer_role
from loraport.inputs.config import TransferConfig
from loraport.inputs.pairing import comparable, differ_in_depth
from loraport.methods.recipes import METHODS
from loraport.reports.transfer_page import write_transfer_page
from loraport.transfers.run import transfer_many
from tests.families import delta, factors, fused_by_diffusers, sdxl_and_pruned, write_pipeline
from tests.files.test_names import shapes_of

pytestmark = pytest.mark.slow

pytest.importorskip("diffusers")

LAYERS = ("attn1.to_q", "downsamplers.0.conv", "time_embedding.linear_2")
"""Square, wide convolutions, and one outside the blocks."""


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """The pair as pipelines, a LoRA of it, and its transfer by every method in one pass."""
    folder = tmp_path_factory.mktemp("unets")
    source, target, origin = sdxl_and_pruned()
    for name, model in (("sdxl", source), ("ssd", target)):
        write_pipeline(folder / name, model.state_dict(), "unet", "StableDiffusionXLPipeline")
    found = {name: some for name, some in factors(source).items() if name.endswith(LAYERS)}
    encoder = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    tensors = {f"{encoder}.lora_A.weight": torch.ones(1, 4), f"{encoder}.lora_B.weight": torch.ones(4, 1)}
    for name, (A, B) in found.items():
        tensors |= {f"unet.{name}.lora_A.weight": A, f"unet.{name}.lora_B.weight": B / 50}
    save_file(tensors, folder / "lora.safetensors")
    configs = [
        TransferConfig(
            str(folder / "lora.safetensors"),
            str(folder / "sdxl"),
            str(folder / "ssd"),
            str(folder / f"{method}.safetensors"),
            method=method,
            dtype="fp32",
            cache=str(folder / "cache"),
        )
        for method in METHODS
    ]
    deltas = {name: delta(A, B / 50) for name, (A, B) in found.items()}
    return folder, target, origin, deltas, transfer_many(configs)


@pytest.mark.slow
def test_every_layer_takes_after_the_one_that_it_was(moved):
    _, target, origin, deltas, batch = moved
    pairing = batch.runs[0].pairing
    wanted = {name: origin[name] for name in factors(target) if name.endswith(LAYERS)}
    assert {name: old for name, old, _ in pairing["pairs"]} == wanted and not pairing["unmatched"]
    assert sum(name != old for name, old in wanted.items()) >= 10 and min(phi for *_, phi in pairing["pairs"]) > 0.8
    assert not any(name.startswith("mid_block.att") for name in wanted)
    gone = {key for key, _ in batch.runs[0].keys.dropped}
    kept = set(wanted.values())
    assert {key.removeprefix("unet.").rpartition(".lora")[0] for key in gone} == set(deltas) - kept
    assert all("no layer of" in reason for _, reason in batch.runs[0].keys.dropped)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_through_a_pairing(moved, method):
    """Each writes every paired layer, at the place of the target's and in its shape; the text encoder is copied."""
    folder, target, origin, deltas, batch = moved
    (run,) = [run for run in batch.runs if run.method == method]
    assert not batch.not_written
    written = load_file(folder / f"{method}.safetensors")
    assert sum(key.startswith("text_encoder.") for key in written) == 2
    rows, cosines = {row.name: row for row in run.layers}, []
    assert set(rows) == {name for name in factors(target) if name.endswith(LAYERS)}
    for name, row in rows.items():
        if row.status == "skipped":
            assert method == "prolora" and "phi_min" in row.reason
            continue
        A, B = (written[f"unet.{name}.lora_{factor}.weight"] for factor in "AB")
        update = delta(A, B)
        assert update.shape == target.get_submodule(name).weight.shape and f"from {origin[name]}," in row.reason
        given = deltas[origin[name]]
        cosines.append(float((update * given).sum() / update.norm().clamp(min=1e-9) / given.norm()))
    assert method == "rollback" or sum(cosines) / len(cosines) > 0.3


def test_diffusers_loads_the_result_on_the_smaller_model(moved):
    folder, target, origin, deltas, _ = moved
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    save_file(
        {key: value for key, value in load_file(folder / "direct.safetensors").items() if key.startswith("unet.")},
        folder / "unet-only.safetensors",
    )
    fused_by_diffusers("sdxl", target, folder / "unet-only.safetensors")
    after = target.state_dict()
    for name in factors(target):
        change = after[f"{name}.weight"].double() - before[f"{name}.weight"].double()
        wanted = deltas[origin[name]] if name.endswith(LAYERS) else torch.zeros_like(change)
        torch.testing.assert_close(change, wanted, rtol=1e-4, atol=1e-5)
    target.load_state_dict(before)


def test_the_similarities_are_in_the_object_and_on_the_page(moved):
    pytest.importorskip("matplotlib")
    folder, *_, batch = moved
    json.dumps(batch.as_json(), allow_nan=False)
    groups = batch.runs[0].as_json()["pairing"]["groups"]
    assert {layer_role(name) for group in groups for name in group["targets"]} == {group["role"] for group in groups}
    assert all(len(group["similarity"]) == len(group["sources"]) for group in groups)
    write_transfer_page(batch.runs[0], folder / "page.html")
    text = (folder / "page.html").read_text(encoding="utf-8")
    assert "Which layers are alike" in text


def full_size(model: str, path: Path) -> Path:
    """A file with the published names and shapes, and nothing behind its header but a hole."""
    header, place = {}, 0
    for name, shape in shapes_of(model).items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    return path


def test_at_full_size_every_layer_of_ssd_1b_can_be_compared(tmp_path):
    """70 transformer blocks against 34, name by name; only roles that exist in both, and equal shapes."""
    source, target = (open_checkpoint(full_size(name, tmp_path / f"{name}.safetensors")) for name in ("sdxl", "ssd-1b"))
    blocks = [{name.rpartition(".attn1")[0] for name in one if ".attn1.to_q." in name} for one in (source, target)]
    assert [len(some) for some in blocks] == [70, 34]
    roles = {layer_role(layer) for layer in source.layers if ".attentions." in layer or ".resnets." in layer}
    assert differ_in_depth(roles, source, target)
    groups, alone = comparable(roles, source, target)
    assert not alone
    compared = Counter(name for _, _, _, targets in groups for name in targets)
    assert set(compared.values()) == {1}
    assert set(compared) == {name for name in target.layers if layer_role(name) in roles}
    for _, shape, sources, targets in groups:
        assert {source.shape(f"{name}.weight") for name in sources} == {shape}
        assert {target.shape(f"{name}.weight") for name in targets} == {shape}
    deep = max((len(sources), len(targets)) for role, _, sources, targets in groups if role.endswith("attn1.to_q"))
    assert deep == (30, 18)
    middle = {name for role, *_, sources, _ in groups for name in sources if role.startswith("mid_block.attentions")}
    assert not middle, "SSD-1B has no transformer in the middle"


def test_a_target_layer_that_nothing_can_be_compared_with_is_listed(tmp_path):
    """A role that exists in both, in a shape that only the target has."""
    layer = "down_blocks.{}.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    save_file({layer.format(1): torch.randn(8, 8), layer.format(2): torch.randn(6, 6)}, tmp_path / "a.safetensors")
    save_file({layer.format(1): torch.randn(8, 8), layer.format(2): torch.randn(4, 4)}, tmp_path / "b.safetensors")
    source, target = (open_checkpoint(tmp_path / f"{name}.safetensors") for name in "ab")
    roles = {layer_role(name) for name in source.layers}
    assert len(roles) == 1
    groups, alone = comparable(roles, source, target)
    assert alone == (layer.format(2).removesuffix(".weight"),) and len(groups) == 1
