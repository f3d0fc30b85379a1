"""Written files do in diffusers and PEFT what they should: weights are compared after merging, never "it loaded"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loraport.files.lora.read import read_lora
from loraport.files.lora.write import write_lora
from loraport.files.names.families import flattened
from tests.dialects import BLOCKS, CASES, FFN, FORMATS, Case, Written, write
from tests.families import canonical_parameter

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

CONVERTED = ["g1-header-patterns", "g2-header-rslora", "g3-patterns", "g4-alpha", "g5", "g5b", "g8", "g9-bare", "g10"]


def tiny(**config: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=16,
        freq_dim=16,
        ffn_dim=FFN,
        num_layers=BLOCKS,
        **config,
    )


@pytest.fixture
def model() -> Any:
    return tiny()


def weights(model: Any) -> dict[str, Tensor]:
    """Every parameter under its canonical name, in float64."""
    named = {}
    for name, tensor in model.state_dict().items():
        canonical = canonical_parameter(name)
        assert canonical is not None, name
        named[canonical] = tensor.detach().double().clone()
    return named


def merged_by_diffusers(model: Any, path: Path) -> dict[str, Tensor]:
    """The weights after `WanPipeline` has loaded, fused and unloaded a file."""
    pipe = diffusers.WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=model)
    pipe.load_lora_weights(path.parent, weight_name=path.name)
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    return weights(model)


def assert_merged(
    after: dict[str, Tensor], before: dict[str, Tensor], deltas: dict[str, Tensor], atol: float = 2e-6
) -> None:
    """Each weight is W + delta where the LoRA has one, and untouched elsewhere."""
    assert after.keys() == before.keys()
    assert {f"{layer}.weight" for layer in deltas} <= after.keys()
    for name, W in before.items():
        delta = deltas.get(name.removesuffix(".weight"))
        if delta is None or not name.endswith(".weight"):
            assert torch.equal(after[name], W), name
        else:
            assert delta.norm() > 0.1
            torch.testing.assert_close(after[name] - W, delta, rtol=1e-6, atol=atol)


def converted(case: Case, format: str, folder: Path, **settings: Any) -> tuple[Written, Path]:
    (folder / "in").mkdir()
    written = write(case, folder / "in")
    lora = read_lora(written.path)
    result = write_lora(
        folder / "out.safetensors", lora.updates, lora, format=format, **({"dtype": torch.float32} | settings)
    )
    return written, result.path


FOR_DIFFUSERS = ("comfy", "diffusers", "kohya")


@pytest.mark.parametrize(
    ("name", "format"),
    [
        (name, format)
        for i, name in enumerate(CONVERTED)
        for j, format in enumerate(FOR_DIFFUSERS)
        if i < 2 or i % 3 == j
    ],
)
def test_diffusers_merges_every_dialect_once_converted(name: str, format: str, model: Any, tmp_path: Path) -> None:
    written, path = converted(CASES[name], format, tmp_path)
    before = weights(model)
    assert_merged(merged_by_diffusers(model, path), before, written.deltas)


@pytest.mark.parametrize("name", ["g1", "g4", "g4-alpha", "g5"])
def test_diffusers_merges_what_it_reads_in_its_own_dialect(name: str, model: Any, tmp_path: Path) -> None:
    """The file as it came and the file as we write it back give the same weights."""
    written, path = converted(CASES[name], "same", tmp_path)
    before = weights(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    first = merged_by_diffusers(model, written.path)
    model.load_state_dict(state)
    second = merged_by_diffusers(model, path)
    assert_merged(first, before, written.deltas)
    assert_merged(second, before, written.deltas)


@pytest.mark.parametrize("uniform_rank", [True, False])
@pytest.mark.parametrize("format", ["comfy", "diffusers", "kohya"])
def test_mixed_ranks(format: str, uniform_rank: bool, model: Any, tmp_path: Path) -> None:
    written, path = converted(CASES["g4-alpha"], format, tmp_path, uniform_rank=uniform_rank)
    before = weights(model)
    assert_merged(merged_by_diffusers(model, path), before, written.deltas)


def test_part_of_a_model_in_comfy_format(model: Any, tmp_path: Path) -> None:
    written, path = converted(CASES["g9-processor"], "comfy", tmp_path)
    before = weights(model)
    assert_merged(merged_by_diffusers(model, path), before, written.deltas)


def test_bf16_is_the_default_and_costs_only_its_rounding(model: Any, tmp_path: Path) -> None:
    written, path = converted(CASES["g5"], "comfy", tmp_path, dtype=torch.bfloat16)
    rounded = {layer: update.dense().double() for layer, update in read_lora(path).updates.items()}
    for layer, wanted in written.deltas.items():
        assert 0 < (rounded[layer] - wanted).norm() < 0.006 * wanted.norm()
    before = weights(model)
    assert_merged(merged_by_diffusers(model, path), before, rounded)


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_a_wrong_prefix_changes_nothing(prefix: str, model: Any, tmp_path: Path) -> None:
    """Why merged weights are compared: these files load without an error."""
    from safetensors.torch import load_file, save_file

    _, path = converted(CASES["g1"], "diffusers", tmp_path)
    renamed = {prefix + key.removeprefix("transformer."): value for key, value in load_file(path).items()}
    save_file(renamed, tmp_path / "wrong.safetensors")
    before = weights(model)
    pipe = diffusers.WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=model)
    pipe.load_lora_weights(tmp_path, weight_name="wrong.safetensors")
    assert all(torch.equal(W, before[name]) for name, W in weights(model).items())
    with pytest.raises(AssertionError):
        assert_merged(weights(model), before, {"blocks.0.self_attn.q": torch.ones(24, 24, dtype=torch.float64)})


@pytest.mark.parametrize("format", ["comfy", "diffusers", "peft"])
def test_every_linear_layer_of_an_image_to_video_model(format: str, tmp_path: Path) -> None:
    """Image projections, embeddings and the head too: read from a kohya file with alphas, written for each loader."""
    from safetensors.torch import save_file

    model = tiny(image_dim=8, added_kv_proj_dim=24)
    before = weights(model)
    tensors, deltas = {}, {}
    for name, W in before.items():
        layer = name.removesuffix(".weight")
        if layer != name and W.dim() == 2:
            stem = "lora_unet_" + flattened(layer)
            A, B = torch.randn(2, W.shape[1]), torch.randn(W.shape[0], 2)
            tensors |= {f"{stem}.lora_down.weight": A, f"{stem}.lora_up.weight": B, f"{stem}.alpha": torch.tensor(3.0)}
            deltas[layer] = 1.5 * (B.double() @ A.double())
    assert len(deltas) == 2 * 12 + 8
    save_file(tensors, tmp_path / "in.safetensors")
    lora = read_lora(tmp_path / "in.safetensors")
    path = write_lora(tmp_path / "out.safetensors", lora.updates, lora, format=format, dtype=torch.float32).path
    if format == "peft":
        after = weights(peft.PeftModel.from_pretrained(model, str(path)).merge_and_unload())
    else:
        after = merged_by_diffusers(model, path)
    assert_merged(after, before, deltas)


@pytest.mark.parametrize("format", ["comfy", "diffusers", "peft"])
def test_a_bias_difference_arrives(format: str, model: Any, tmp_path: Path) -> None:
    """`.diff_b` of ComfyUI is the bias of lora_B elsewhere."""
    bias = torch.arange(24.0)
    written = write(CASES["g4-alpha"], tmp_path, {"diffusion_model.blocks.0.self_attn.q.diff_b": bias})
    lora = read_lora(written.path)
    path = write_lora(tmp_path / "out.safetensors", lora.updates, lora, format=format, dtype=torch.float32).path
    before = weights(model)
    if format == "peft":
        after = weights(peft.PeftModel.from_pretrained(model, str(path)).merge_and_unload())
    else:
        after = merged_by_diffusers(model, path)
    name = "blocks.0.self_attn.q.bias"
    torch.testing.assert_close(after.pop(name) - before.pop(name), bias.double(), rtol=1e-5, atol=1e-6)
    assert_merged(after, before, written.deltas)


@pytest.mark.parametrize("uniform_rank", [True, False])
@pytest.mark.parametrize("format", ["peft", "same"])
@pytest.mark.parametrize("name", ["g3", "g3-defaults", "g3-patterns", "g3-rslora"])
def test_peft_merges_a_folder(name: str, format: str, uniform_rank: bool, model: Any, tmp_path: Path) -> None:
    written, path = converted(CASES[name], format, tmp_path, uniform_rank=uniform_rank)
    before = weights(model)
    merged = peft.PeftModel.from_pretrained(model, str(path)).merge_and_unload()
    assert_merged(weights(merged), before, written.deltas)


@pytest.mark.parametrize("name", ["g3", "g3-patterns", "g3-rslora"])
def test_peft_reads_its_own_configuration_as_we_do(name: str, model: Any, tmp_path: Path) -> None:
    """Alpha, r, patterns and rank-stabilised scales, as PEFT itself applies them to the folder as it came."""
    case = CASES[name]
    written = write(case, tmp_path)
    config = peft.LoraConfig.from_pretrained(str(tmp_path))
    lora = read_lora(tmp_path)
    ranks = {lora.dialect.module(layer): update.rank for layer, update in lora.updates.items()}
    config.target_modules = sorted(ranks)
    config.rank_pattern = {f"^{module}": rank for module, rank in ranks.items()}
    before = weights(model)
    wrapped = peft.get_peft_model(model, config)
    peft.set_peft_model_state_dict(wrapped, peft.utils.load_peft_weights(str(tmp_path)))
    assert_merged(weights(wrapped.merge_and_unload()), before, written.deltas)


@pytest.mark.parametrize("format", FORMATS)
def test_the_library_reads_what_we_write(format: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    _, path = converted(CASES["g4-alpha"], format, tmp_path, provenance={"method": "casa", "note": "σ²"})
    if path.is_dir():
        path = path / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "loraport.method": "casa", "loraport.note": "σ²"}
        assert all(file.get_tensor(key).is_contiguous() for key in file.keys())


def trained(model: Any, **config: Any) -> Any:
    """A PEFT adapter on the model, with patterns and random factors, as if it had been trained."""
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_out.0", "net.2", "proj_out"],
        rank_pattern={"attn1.to_q": 3},
        alpha_pattern={"attn1.to_q": 5, "^blocks.0.ffn.net.2": 7},
        **config,
    )
    wrapped = peft.get_peft_model(model, settings)
    for name, parameter in wrapped.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter)
    return wrapped


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", ["peft folder", "diffusers pipeline", "diffusers component"])
def test_what_the_trainers_libraries_save_is_read_right(kind: str, rslora: bool, model: Any, tmp_path: Path) -> None:
    """Files saved by PEFT and diffusers themselves: our updates are what their own merge adds."""
    before = weights(model)
    wrapped = trained(model, use_rslora=rslora)
    if kind == "peft folder":
        wrapped.save_pretrained(str(tmp_path))
        merged = wrapped.merge_and_unload()
    else:
        state = peft.get_peft_model_state_dict(wrapped)
        layers = {key.removeprefix("base_model.model."): value for key, value in state.items()}
        fields = wrapped.peft_config["default"].to_dict()
        diffusers.WanPipeline.save_lora_weights(
            tmp_path, transformer_lora_layers=layers, transformer_lora_adapter_metadata=fields
        )
        if kind == "diffusers component":
            save_component(tmp_path, fields)
        merged = wrapped.merge_and_unload()
    lora = read_lora(tmp_path)
    deltas = {layer: update.dense().double() for layer, update in lora.updates.items()}
    assert len(deltas) == 2 * 5 + 1
    assert_merged(weights(merged), before, deltas, atol=1e-5)


def save_component(folder: Path, fields: dict[str, Any]) -> None:
    """What `save_lora_adapter` writes: no prefix on the keys, none in the header."""
    from safetensors.torch import load_file, save_file

    path = folder / "pytorch_lora_weights.safetensors"
    renamed = {key.removeprefix("transformer."): value for key, value in load_file(path).items()}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
    save_file(renamed, path, {"lora_adapter_metadata": json.dumps(plain)})
