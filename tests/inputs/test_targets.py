"""Targets as they are published: each in its exact layout, at a tiny size, through the real reader and a transfer."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.files.models.checkpoint import open_checkpoint
from loraport.inputs.config import RankRule
from loraport.inputs.open import prepare
from loraport.merging import merge
from loraport.transfers.run import transfer
from tests import tiny
from tests.transfers.models import deltas, make_family

GATES = {name: tensor for name, tensor in tiny.tiny_state(5, gates=True).items() if "gate" in name}


@pytest.fixture
def family(tmp_path):
    return make_family(tmp_path)


def fastwan(place, family):
    """diffusers' names, gates of sparse attention in every block, bf16."""
    state = {name: tensor.bfloat16() for name, tensor in (family.target_state | GATES).items()}
    return tiny.write_diffusers(place / "fastwan", state), {}


def anyflow(place, family):
    """diffusers' names, and a second time embedding."""
    delta = {f"condition_embedder.delta_embedder.linear_{n}.weight": torch.ones(24, 24) for n in (1, 2)}
    return tiny.write_diffusers(place / "anyflow", family.target_state | delta), {}


def helios(place, family):
    """diffusers' names, patches of history, the last modulation under a name of its own."""
    own = {"patch_short.weight": torch.ones(24, 4, 1, 2, 2), "norm_out.scale_shift_table": torch.ones(1, 2, 24)}
    return tiny.write_diffusers(place / "helios", family.target_state | own), {}


def self_forcing(place, family):
    parts = {"generator": family.source_state, "generator_ema": family.target_state}
    return tiny.write_pickle(place / "self_forcing_dmd.pt", parts), {}


def self_forcing_raw(place, family):
    """The weights that were trained, and not their moving average."""
    parts = {"generator": family.target_state, "generator_ema": family.source_state}
    return tiny.write_pickle(place / "self_forcing_dmd.pt", parts), {"target_part": "generator"}


def rolling_forcing(place, family):
    """Three networks in one file; the critic is another model."""
    critic = tiny.tiny_state(9)
    parts = {"generator": family.source_state, "generator_ema": family.target_state, "critic": critic}
    return tiny.write_pickle(place / "rolling_forcing_dmd.pt", parts), {}


def causvid(place, family):
    (place / "autoregressive_checkpoint").mkdir()
    parts = {"generator": family.target_state}
    return tiny.write_pickle(place / "autoregressive_checkpoint" / "model.pt", parts, wrapped=False), {}


def self_forcing_gan(place, family):
    """With the branches that a discriminator adds."""
    state = family.target_state | {"_cls_pred_branch.0.weight": torch.ones(2, 2), "_register_tokens": torch.ones(2)}
    return tiny.write_pickle(place / "gan.pt", {"generator_ema": state}), {}


def krea(place, family):
    state = {name: tensor.bfloat16() for name, tensor in family.target_state.items()}
    return tiny.write_original(place / "krea-realtime-video-14b.safetensors", state, "model."), {}


def lightx2v(place, family):
    state = {name: tensor.bfloat16() for name, tensor in family.target_state.items()}
    return tiny.write_original(place / "wan2.1_t2v_14b_lightx2v_4step.safetensors", state), {}


def lightx2v_fp8(place, family):
    name = "wan2.1_t2v_14b_scaled_fp8_e4m3_lightx2v_4step.safetensors"
    return tiny.write_fp8(place / name, family.target_state, "lightx2v"), {}


def experts(place, family):
    for noise, state in (("high", family.target_state), ("low", family.source_state)):
        folder = place / "wan2.2" / f"{noise}_noise_model"
        folder.mkdir(parents=True)
        tiny.write_original(folder / f"wan2.2_i2v_A14b_{noise}_noise_lightx2v_4step.safetensors", state)
    return place / "wan2.2"


def lightx2v_expert(place, family):
    return experts(place, family) / "high_noise_model", {}


def lightx2v_expert_by_part(place, family):
    return experts(place, family), {"target_part": "high_noise_model"}


def comfy(place, family):
    state = {name: tensor.half() for name, tensor in family.target_state.items()}
    return tiny.write_original(place / "wan_fp16.safetensors", state, "model.diffusion_model."), {}


def comfy_fp8(place, family):
    return tiny.write_fp8(place / "wan_fp8_scaled.safetensors", family.target_state, "comfy, older"), {}


TARGETS = {
    anyflow: 0,
    helios: 0,
    # how it is written: how far its weights are from the planted ones, relatively
    fastwan: 2e-3,
    self_forcing: 0,
    self_forcing_raw: 0,
    self_forcing_gan: 0,
    rolling_forcing: 0,
    causvid: 0,
    krea: 2e-3,
    lightx2v: 2e-3,
    lightx2v_fp8: 3e-2,
    lightx2v_expert: 0,
    lightx2v_expert_by_part: 0,
    comfy: 3e-4,
    comfy_fp8: 3e-2,
}


@pytest.mark.parametrize("write", TARGETS, ids=lambda write: write.__name__)
def test_a_lora_is_moved_onto_it(family, tmp_path, write):
    """By undo, whose answer is known in closed form: D − β·(W_t − W_s), W_t within the rounding of the file."""
    place, parts = write(tmp_path, family)
    config = family.config(target=str(place), method="undo:0.5", rank=RankRule("full"), **parts)
    result = transfer(config)
    assert result.keys.as_json() == {"in": 40, "transferred": 40, "copied": 0, "dropped": []}
    written = deltas(config.output)
    for name, (B, A) in family.factors.items():
        W_s, W_t = (state[f"{name}.weight"].double() for state in (family.source_state, family.target_state))
        wanted = B.double() @ A.double() - 0.5 * (W_t - W_s)
        error = float((written[name] - wanted).norm() / W_s.norm())
        assert error < 1e-6 + TARGETS[write], name
        assert float((written[name] - B.double() @ A.double()).norm() / W_s.norm()) > 0.04


def test_the_gates_and_branches_are_named_and_left_alone(family, tmp_path):
    ready = prepare(family.config(target=str(fastwan(tmp_path, family)[0])))
    assert any(
        "has layers that the source lacks, left alone: blocks.0.to_gate_compress" in w for w in ready.plan.warnings
    )
    for write, extra in ((anyflow, "condition_embedder.delta_embedder.linear_1"), (helios, "patch_short")):
        ready = prepare(family.config(target=str(write(tmp_path, family)[0])))
        assert any(f"has layers that the source lacks, left alone: {extra}" in w for w in ready.plan.warnings)
    ready = prepare(family.config(target=str(self_forcing_gan(tmp_path, family)[0])))
    assert any("outside its family's table, left alone: _cls_pred_branch" in w for w in ready.plan.warnings)


def test_the_other_expert_is_another_model(family, tmp_path):
    place = experts(tmp_path, family)
    rows = {}
    for noise in ("high", "low"):
        config = family.config(
            f"{noise}.safetensors", target=str(place), target_part=f"{noise}_noise_model", method="undo:1"
        )
        rows[noise] = transfer(config).layers[0].drift
    assert rows["high"] > 0.05 and rows["low"] == 0


@pytest.mark.parametrize("part", [None, "generator"])
def test_a_part_is_merged_too(family, tmp_path, part):
    parts = {"generator": family.target_state, "generator_ema": family.source_state}
    place = tiny.write_pickle(tmp_path / "model.pt", parts)
    merge(str(place), [family.lora], str(tmp_path / "out.safetensors"), part=part)
    model, name = open_checkpoint(tmp_path / "out.safetensors"), "blocks.0.ffn.0"
    B, A = family.factors[name]
    state = parts[part or "generator_ema"]
    assert torch.allclose(model.read_weight(name), state[f"{name}.weight"] + B @ A, atol=1e-6)


def accelerator_of(tmp_path, family):
    """As LightX2V and Kijai publish them: original names, `lora_down` / `lora_up`, alpha, biases and modulation."""
    tensors = {}
    for name, (B, A) in tiny.lora_factors(family.source_state, 7, 3).items():
        head = f"diffusion_model.{name}"
        tensors |= {f"{head}.lora_down.weight": A, f"{head}.lora_up.weight": 3 * B, f"{head}.alpha": torch.tensor(1.0)}
        tensors[f"{head}.diff_b"] = torch.full((B.shape[0],), 0.01)
    for block in ("blocks.0", "blocks.1"):
        tensors[f"diffusion_model.{block}.norm3.diff"] = torch.full((tiny.DIM,), 0.01)
        tensors[f"diffusion_model.{block}.diff_m"] = torch.full((1, 6, tiny.DIM), 0.01)
    save_file(tensors, tmp_path / "Wan21_CausVid_lora_rank32.safetensors")
    return str(tmp_path / "Wan21_CausVid_lora_rank32.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["casa", "direct", "direct:1.3", "direct-matched", "undo-matched", "core", "restore-only"]
)
def test_an_accelerator_beside_and_merged_give_the_same(family, tmp_path, method):
    """Method by method to 1e-4 of each layer's update, from an accelerator in its real dialect, fp32."""
    fast, merged = accelerator_of(tmp_path, family), str(tmp_path / "merged.safetensors")
    merge(family.source, [f"{fast}*0.8"], merged)
    settings = {"method": method, "rank": RankRule("full")}
    transfer(family.config("a.safetensors", target=merged, **settings))
    beside = transfer(family.config("b.safetensors", target=f"source+{fast}*0.8", **settings))
    one, other = (deltas(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert max(float((one[name] - other[name]).norm() / other[name].norm()) for name in other) < 1e-4
    assert all(row.drift > 0.05 and row.floor == 0 for row in beside.layers)
    if method.startswith("direct") and "matched" not in method:
        return
    transfer(family.config("c.safetensors", target=f"source+{fast}*0.4", **settings))
    third = deltas(tmp_path / "c.safetensors")
    assert max(float((third[name] - other[name]).norm() / other[name].norm()) for name in other) > 1e-3
    assert load_file(tmp_path / "c.safetensors").keys() == load_file(tmp_path / "b.safetensors").keys()
