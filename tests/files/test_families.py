"""Every family from file to file: checkpoints in foreign layouts, LoRAs in every format, merged by diffusers itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraport.conversion import convert
from loraport.errors import SettingsError
from loraport.files.inspect import describe
from loraport.files.lora.read import read_lora
from loraport.files.models.checkpoint import Checkpoint, open_checkpoint
from loraport.files.names.families import FAMILIES as TABLES
from loraport.merging import merge
from tests.families import FAMILIES, Tiny, delta, factors, fused_by_diffusers

pytest.importorskip("diffusers")
pytest.importorskip("peft")

IN_EVERY_FORMAT = [(name, format) for name, tiny in FAMILIES.items() for format in tiny.formats]
LEFT_OUT = {
    ("flux.2", "comfy"): r"norm_out",  # whose halves diffusers does not exchange
    ("flux.2", "kohya"): r"norm_out|.*_modulation|.*guidance_embedder",
}
"""What diffusers leaves out or gets wrong of some formats, as its loader's row says."""
LOADABLE = [
    *LEFT_OUT,
    ("ltx-2", "comfy"),
    *((name, format) for name in FAMILIES for format in ("diffusers", "peft")),
    *((name, "kohya") for name in ("sd1.5", "sdxl")),
]
"""What diffusers and PEFT have loaders for."""


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return request.param  # type: ignore[no-any-return]


def write_lora(model: Any, path: Path, prefix: str, *, some: bool = False, without: str = "$") -> dict[str, Tensor]:
    """A LoRA in diffusers' keys on every linear layer and convolution, or on two of each; the deltas by name."""
    found = {name: pair for name, pair in factors(model).items() if not re.match(without, name)}
    if some:
        lasts = {re.sub(r"\d+", "#", name): name for name in found}
        firsts = {re.sub(r"\d+", "#", name): name for name in reversed(found)}
        found = {name: found[name] for name in {**dict.fromkeys(lasts.values()), **dict.fromkeys(firsts.values())}}
    tensors = {}
    for name, (A, B) in found.items():
        tensors |= {f"{prefix}.{name}.lora_A.weight": A, f"{prefix}.{name}.lora_B.weight": B}
    save_file(tensors, path)
    return {name: delta(A, B) for name, (A, B) in found.items()}


def test_a_foreign_checkpoint_holds_the_same_layers(tiny: Tiny, tmp_path: Path) -> None:
    state = tiny.model().state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "mine.safetensors")
    foreign = tiny.foreign(state) | {"first_stage_model.decoder.conv_in.weight": torch.ones(2, 2)}
    save_file(foreign, tmp_path / "theirs.safetensors")
    mine, theirs = (open_checkpoint(tmp_path / f"{name}.safetensors") for name in ("mine", "theirs"))
    assert mine.family is theirs.family is TABLES[tiny.family] and not mine.extra and not theirs.extra
    known = [name for name in theirs if not name.startswith("first_stage")]
    assert len(known) >= len(foreign) - 1
    for name in known:
        assert torch.equal(theirs.tensor(name), state[name]) and theirs.shape(name) == tuple(state[name].shape), name
        assert theirs.fingerprint(name) == mine.fingerprint(name)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("name", "format"), IN_EVERY_FORMAT)
def test_there_and_back_through_every_format(name: str, format: str, tmp_path: Path) -> None:
    tiny = FAMILIES[name]
    component = TABLES[tiny.family].component
    deltas = write_lora(tiny.model(), tmp_path / "in.safetensors", component, some=True)
    there = tmp_path / ("there" if format == "peft" else "there.safetensors")
    done = convert(str(tmp_path / "in.safetensors"), format, str(there))
    assert not done.lost and done.keys.total == 2 * len(deltas)
    back = convert(str(there), "diffusers", str(tmp_path / "back.safetensors"))
    assert not back.lost
    for place in (there, tmp_path / "back.safetensors"):
        lora = read_lora(place)
        assert lora.layers.keys() == deltas.keys() and lora.dialect.family == tiny.family
        for layer, wanted in deltas.items():
            got = lora.updates[layer].dense().double()
            assert float((got - wanted.flatten(1)).norm()) <= 1e-6 * float(wanted.norm()), layer


@pytest.mark.slow
@pytest.mark.parametrize(("name", "format"), LOADABLE)
def test_diffusers_and_peft_merge_what_is_written_for_them(name: str, format: str, tmp_path: Path) -> None:
    """Every layer exactly, nothing else: pipelines' load_lora_weights, load_lora_adapter, PeftModel.from_pretrained."""
    import peft

    model = FAMILIES[name].model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    left_out = LEFT_OUT.get((name, format), "$")
    deltas = write_lora(model, tmp_path / "in.safetensors", TABLES[name].component, without=left_out)
    out = tmp_path / ("out" if format == "peft" else "out.safetensors")
    convert(str(tmp_path / "in.safetensors"), format, str(out))
    if format == "peft":
        model = peft.PeftModel.from_pretrained(model, str(out)).merge_and_unload()
    else:
        fused_by_diffusers(name, model, out)
    after = model.state_dict()
    assert after.keys() == before.keys()
    for key, W in before.items():
        added = deltas.get(key.removesuffix(".weight")) if key.endswith(".weight") else None
        moved = after[key].double() - W.double()
        if added is None:
            assert not moved.any(), key
        else:
            torch.testing.assert_close(moved, added, rtol=1e-5, atol=1e-5)


def test_a_merge_into_fused_weights_is_the_merge_into_those_apart(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model()
    state = model.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "mine.safetensors")
    save_file(tiny.foreign(state), tmp_path / "theirs.safetensors")
    write_lora(model, tmp_path / "lora.safetensors", TABLES[tiny.family].component)
    for name in ("mine", "theirs"):
        merge(
            str(tmp_path / f"{name}.safetensors"),
            [str(tmp_path / "lora.safetensors")],
            str(tmp_path / f"{name}-merged.safetensors"),
        )
    merged = tiny.foreign(load_file(tmp_path / "mine-merged.safetensors"))
    theirs = load_file(tmp_path / "theirs-merged.safetensors")
    assert theirs.keys() == merged.keys()
    assert all(torch.equal(theirs[key], tensor) for key, tensor in merged.items())
    untouched = tiny.foreign(state)
    assert any(not torch.equal(theirs[key], tensor) for key, tensor in untouched.items())


HEAD = "diffusion_model.double_blocks.0.img_attn"


def test_fused_factors_are_three_times_the_rank_or_share_their_a(tmp_path: Path) -> None:
    """Apart to fused: A stacked, B block by block. Fused to apart and back: one A three times, the same file."""
    write_lora(FAMILIES["hunyuanvideo-1.5"].model(), tmp_path / "in.safetensors", "transformer")
    convert(str(tmp_path / "in.safetensors"), "comfy", str(tmp_path / "fused.safetensors"))
    fused = load_file(tmp_path / "fused.safetensors")
    A, B = fused[f"{HEAD}.qkv.lora_A.weight"], fused[f"{HEAD}.qkv.lora_B.weight"]
    assert A.shape == (6, 8) and B.shape == (24, 6)
    assert not B[:8, 2:].any() and not B[8:16, :2].any() and not B[16:, :4].any() and B[8:16, 2:4].any()
    assert fused[f"{HEAD}.proj.lora_A.weight"].shape == (2, 8), "others keep their rank"
    shared = {f"{HEAD}.qkv.lora_A.weight": torch.randn(2, 8), f"{HEAD}.qkv.lora_B.weight": torch.randn(24, 2)}
    save_file(shared, tmp_path / "shared.safetensors")
    assert len(read_lora(tmp_path / "shared.safetensors").layers) == 3
    convert(str(tmp_path / "shared.safetensors"), "comfy", str(tmp_path / "again.safetensors"))
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == shared.keys() and all(torch.equal(again[key], shared[key]) for key in shared)


def test_a_fused_lokr_is_written_exactly_beside_a_lora_of_rank_one(tmp_path: Path) -> None:
    """Its parts are matrices, and aim at the rank that the whole has, not at their neighbours'."""
    w1, w2 = torch.randn(2, 2), torch.randn(12, 4)
    alone = "transformer.transformer_blocks.0.attn.add_v_proj.lora_"
    tensors = {f"{HEAD}.qkv.lokr_w1": w1, f"{HEAD}.qkv.lokr_w2": w2, f"{alone}A.weight": torch.ones(1, 8)}
    save_file(tensors | {f"{alone}B.weight": torch.ones(8, 1)}, tmp_path / "in.safetensors")
    done = convert(str(tmp_path / "in.safetensors"), "comfy", str(tmp_path / "out.safetensors"), dtype="fp32")
    layers = read_lora(tmp_path / "out.safetensors").updates
    got = torch.cat([layers[f"transformer_blocks.0.attn.to_{letter}"].dense() for letter in "qkv"])
    torch.testing.assert_close(got, torch.kron(w1, w2), rtol=1e-5, atol=1e-5)
    assert not any("keeps" in note for note in done.notes)


def test_rows_of_fused_codes_know_their_own_rounding(tmp_path: Path) -> None:
    """fp8 behind one scale: each of q, k and v is read as if it were stored alone, values and rounding."""
    W = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    W[8:16] /= 50
    scale = W.abs().max() / 448
    codes, mark = (W / scale).to(torch.float8_e4m3fn), torch.zeros(2, dtype=torch.float8_e4m3fn)

    def stored(layer: str, rows: Tensor) -> Checkpoint:
        path = tmp_path / f"{layer}.safetensors"
        tensors = {f"double_blocks.0.{layer}.weight": rows.contiguous(), f"double_blocks.0.{layer}.scale_weight": scale}
        save_file(tensors | {"scaled_fp8": mark}, path)
        return open_checkpoint(path)

    fused, roundings = stored("img_attn.qkv", codes), []
    for part, letter in enumerate("qkv"):
        name = f"transformer_blocks.0.attn.to_{letter}"
        got = fused.read(name)
        alone = stored(f"img_attn_{letter}", codes[8 * part : 8 * part + 8]).read(name)
        assert torch.equal(got.matrix, alone.matrix) and got.precision is alone.precision is None
        assert got.rounding == pytest.approx(alone.rounding, rel=1e-6)
        roundings.append(got.rounding)
    assert 0 < roundings[1] < roundings[0] / 10, "smaller values, finer steps"
    assert fused.quantized


def test_only_b_is_moved_where_halves_change_places(tmp_path: Path) -> None:
    A, B = torch.randn(2, 8), torch.randn(16, 2)
    names = ("transformer.norm_out.linear", "diffusion_model.final_layer.adaLN_modulation.1")
    save_file({f"{names[0]}.lora_A.weight": A, f"{names[0]}.lora_B.weight": B}, tmp_path / "in.safetensors")
    convert(str(tmp_path / "in.safetensors"), "comfy", str(tmp_path / "out.safetensors"))
    out = load_file(tmp_path / "out.safetensors")
    assert torch.equal(out[f"{names[1]}.lora_A.weight"], A)
    assert torch.equal(out[f"{names[1]}.lora_B.weight"], torch.cat([B[8:], B[:8]]))


def test_a_part_of_a_fused_layer_is_rows_of_zeros_elsewhere(tmp_path: Path) -> None:
    key = "transformer.transformer_blocks.0.attn.to_k.lora_"
    save_file({f"{key}A.weight": torch.ones(1, 8), f"{key}B.weight": torch.ones(8, 1)}, tmp_path / "in.safetensors")
    convert(str(tmp_path / "in.safetensors"), "comfy", str(tmp_path / "out.safetensors"))
    B = load_file(tmp_path / "out.safetensors")[f"{HEAD}.qkv.lora_B.weight"]
    assert B.shape == (24, 1) and B[8:16].all() and not B[:8].any() and not B[16:].any()


def test_inspect_names_the_family(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model()
    save_file(tiny.foreign(model.state_dict()), tmp_path / "model.safetensors")
    write_lora(model, tmp_path / "lora.safetensors", TABLES[tiny.family].component)
    for name in ("model", "lora"):
        assert describe(str(tmp_path / f"{name}.safetensors"))["family"].startswith(tiny.family)


def test_tencents_format_is_for_its_own_model(tmp_path: Path) -> None:
    write_lora(FAMILIES["sd1.5"].model(), tmp_path / "in.safetensors", "unet")
    with pytest.raises(SettingsError, match="tencent"):
        convert(str(tmp_path / "in.safetensors"), "tencent", str(tmp_path / "out.safetensors"))


def fused_attention(model: Any) -> dict[str, Tensor]:
    """Its state with what diffusers' own `fuse_projections` adds, by the names that it saves."""
    for module in model.modules():
        if hasattr(module, "fuse_projections"):
            module.fuse_projections()
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def wan_of_images() -> Any:
    import diffusers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_attention_heads": 1, "attention_head_dim": 12, "text_dim": 8, "freq_dim": 8}
    more: dict[str, Any] = {"ffn_dim": 16, "num_layers": 1, "image_dim": 6, "added_kv_proj_dim": 12}
    return diffusers.WanTransformer3DModel(**sizes, **more)


FUSED = {"wan": wan_of_images} | {
    name: FAMILIES[name].model for name in ("hunyuanvideo-1.5", "hunyuanvideo", "flux.1", "sd1.5", "krea2")
}


@pytest.mark.parametrize("family", FUSED)
def test_what_diffusers_fuses_holds_the_same_layers(family: str, tmp_path: Path) -> None:
    """Alone it is taken apart; beside the layers that it was made of it is a copy, and left alone."""
    model = FUSED[family]()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    both = fused_attention(model)
    copies = both.keys() - state.keys()
    assert len(copies) >= 3
    apart = re.compile(r".*\.(to_[qkv]|add_[qkv]_proj)\.(weight|bias)")
    made_of = {
        name
        for name in state
        if apart.fullmatch(name)
        and any(name.rpartition(".to_")[0] == copy.rpartition(".to_")[0] or "add_" in name for copy in copies)
        and not (name.rpartition(".")[0].endswith("to_q") and f"{name.rpartition('.to_q')[0]}.to_kv.weight" in copies)
    }
    save_file({name: tensor for name, tensor in both.items() if name not in made_of}, tmp_path / "fused.safetensors")
    save_file(both, tmp_path / "both.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "apart.safetensors")
    wanted = open_checkpoint(tmp_path / "apart.safetensors")
    for name in ("fused", "both"):
        got = open_checkpoint(tmp_path / f"{name}.safetensors")
        assert got.family is TABLES[family] and set(got.extra) == (copies if name == "both" else set())
        assert set(wanted) <= set(got)
        assert all(torch.equal(got.tensor(one), wanted.tensor(one)) for one in wanted)


def test_a_lora_on_a_fused_module_is_one_of_its_layers(tmp_path: Path) -> None:
    A, B = torch.randn(2, 8), torch.randn(16, 2)
    stem = "transformer.blocks.0.attn2.to_kv.lora_"
    save_file({f"{stem}A.weight": A, f"{stem}B.weight": B}, tmp_path / "in.safetensors")
    done = convert(str(tmp_path / "in.safetensors"), "comfy", str(tmp_path / "out.safetensors"))
    out = load_file(tmp_path / "out.safetensors")
    assert not done.lost and len(out) == 4
    for letter, rows in zip("kv", B.chunk(2), strict=True):
        assert torch.equal(out[f"diffusion_model.blocks.0.cross_attn.{letter}.lora_B.weight"], rows)


ANIMATE = "diffusion_model.face_adapter.fuser_blocks.0.linear1_kv"


def test_the_face_adapter_of_animate_is_taken_apart_for_diffusers_and_put_together_again(tmp_path: Path) -> None:
    A, B = torch.randn(2, 8), torch.randn(16, 2)
    save_file({f"{ANIMATE}.lora_A.weight": A, f"{ANIMATE}.lora_B.weight": B}, tmp_path / "in.safetensors")
    convert(str(tmp_path / "in.safetensors"), "diffusers", str(tmp_path / "out.safetensors"))
    out = load_file(tmp_path / "out.safetensors")
    for letter, rows in zip("kv", B.chunk(2), strict=True):
        assert torch.equal(out[f"transformer.face_adapter.0.to_{letter}.lora_B.weight"], rows)
    convert(str(tmp_path / "out.safetensors"), "comfy", str(tmp_path / "back.safetensors"))
    back = load_file(tmp_path / "back.safetensors")
    assert torch.equal(back[f"{ANIMATE}.lora_B.weight"], B) and torch.equal(back[f"{ANIMATE}.lora_A.weight"], A)


def test_the_inner_layer_of_a_single_block_is_four_sevenths_of_its_module(tmp_path: Path) -> None:
    """Also where only some of the layers are there, and each has an A of its own."""
    parts = {"attn.to_k": 8, "proj_mlp": 32}
    tensors = {}
    for name, out in parts.items():
        stem = f"transformer.single_transformer_blocks.3.{name}.lora_"
        tensors |= {f"{stem}A.weight": torch.randn(2, 8), f"{stem}B.weight": torch.randn(out, 2)}
    save_file(tensors, tmp_path / "in.safetensors")
    convert(str(tmp_path / "in.safetensors"), "kohya", str(tmp_path / "out.safetensors"))
    written = load_file(tmp_path / "out.safetensors")
    A, B = (written[f"lora_unet_single_blocks_3_linear1.lora_{end}.weight"] for end in ("down", "up"))
    D = B @ A
    assert D.shape == (56, 8) and not D[:8].any() and not D[16:24].any()
    for rows, name in ((D[8:16], "attn.to_k"), (D[24:], "proj_mlp")):
        factors_of = (tensors[f"transformer.single_transformer_blocks.3.{name}.lora_{x}.weight"] for x in "BA")
        torch.testing.assert_close(rows, torch.matmul(*factors_of))
