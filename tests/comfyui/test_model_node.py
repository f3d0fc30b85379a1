"""The node that transfers onto the weights of a MODEL: what the MODEL is sampled with afterwards, weight by weight."""

import pytest
import torch
from safetensors.torch import load_file

import loraport
from tests import tiny
from tests.comfyui.stand_in import LoRAAdapter, Model, ModelPatcher, load_lora

LAYER = "blocks.0.ffn.0"
WAN = {"lora": "style.safetensors", "source": "wan.safetensors", "rank": "full"}


def opened(tmp_path, name="fast", dtype=torch.float32):
    """A MODEL as a loader gives it: its weights are made in inference mode."""
    with torch.inference_mode():
        state = load_file(tmp_path / "models/diffusion_models" / f"{name}.safetensors")
        return ModelPatcher(Model({key: tensor.to(dtype) for key, tensor in state.items()}))


def with_lora(comfy, model, name, strength=1.0):
    """What ComfyUI's own LoRA loader does."""
    clone = model.clone()
    known = comfy.part("comfy_side").name_map(model)
    clone.add_patches(load_lora(load_file(comfy.root / "models/loras" / name), known), strength)
    return clone


def added(before, after):
    """What the node has added to a weight."""
    return after.weight(f"{LAYER}.weight") - before.weight(f"{LAYER}.weight")


def transferred(tmp_path, target="fast.safetensors", **settings):
    """What the same transfer's file adds to the weight."""
    models, output = tmp_path / "models", tmp_path / "expected.safetensors"
    place = target if target.startswith("source") else models / "diffusion_models" / target
    settings = {"rank": "full", "format": "comfy", "dtype": "fp32", **settings}
    loraport.transfer(
        loraport.TransferConfig(
            models / "loras/style.safetensors", models / "diffusion_models/wan.safetensors", place, output, **settings
        )
    )
    tensors = load_file(output)
    down, up = (tensors[f"diffusion_model.{LAYER}.{factor}.weight"] for factor in ("lora_A", "lora_B"))
    return up @ down


def close(found, expected, tolerance=1e-2):
    """bf16 factors agree to their rounding."""
    return (found - expected).norm() <= tolerance * expected.norm()


def test_the_model_gets_what_the_file_of_the_same_transfer_holds(comfy, tmp_path):
    model = opened(tmp_path)
    before = {key: tensor.clone() for key, tensor in model.model.state.items()}
    output = comfy.run("LoraportApply", model=model, **WAN, method="casa", strength=0.7)
    patched, report = output.args
    assert close(added(model, patched), 0.7 * transferred(tmp_path))
    assert report.startswith("style.safetensors by casa: 10 layers transferred\nIt is in the MODEL now.")
    assert not model.patches and all(torch.equal(before[key], tensor) for key, tensor in model.model.state.items())


@pytest.mark.parametrize(("adapter", "counter"), [(1.0, 0.0), (0.5, 2.0)])
def test_adapter_and_counter_drift_have_strengths_of_their_own(comfy, tmp_path, adapter, counter):
    model = opened(tmp_path)
    strengths = {"adapter_strength": adapter, "counter_drift_strength": counter, "strength": 0.5}
    patched, _ = comfy.run("LoraportApply", model=model, **WAN, method="casa", **strengths).args
    parts = adapter * transferred(tmp_path, part="adapter") + counter * transferred(tmp_path, part="counter-drift")
    assert close(added(model, patched), 0.5 * parts)


def test_a_method_without_counter_drift_says_so(comfy, tmp_path):
    model = opened(tmp_path)
    patched, report = comfy.run("LoraportApply", model=model, **WAN, method="direct", counter_drift_strength=0.0).args
    assert close(added(model, patched), transferred(tmp_path, method="direct"))
    assert "counter_drift_strength changes nothing" in report


def test_loras_that_are_loaded_before_are_a_part_of_the_target(comfy, tmp_path):
    model = with_lora(comfy, opened(tmp_path, "wan"), "accelerator.safetensors", 0.8)
    patched, report = comfy.run("LoraportApply", model=model, **WAN, method="casa").args
    accelerator = tmp_path / "models/loras/accelerator.safetensors"
    expected = transferred(tmp_path, f"source+{accelerator}*0.8")
    assert close(added(model, patched), expected)
    assert "what was loaded before this node changes 10 weights" in report and "load the result" not in report
    aside = {**WAN, "source": "fast.safetensors", "method": "casa", "loaded_before": "leave aside"}
    patched, report = comfy.run("LoraportApply", model=model, **aside).args
    assert not close(added(model, patched), expected) and "loaded before" not in report


def test_two_loras_before_add_up_with_differences_and_biases(comfy, tmp_path):
    model = with_lora(comfy, opened(tmp_path, "wan"), "accelerator.safetensors", 0.5)
    model = with_lora(comfy, model, "accelerator.safetensors", 0.25)
    change = 0.1 * torch.randn(40, 24, generator=torch.Generator().manual_seed(4))
    bias = torch.ones(40)
    model.add_patches(
        {
            f"diffusion_model.{LAYER}.weight": ("diff", (change,)),
            f"diffusion_model.{LAYER}.bias": ("diff", (bias,)),
        },
        2.0,
    )
    target = comfy.part("model_target").target_of(model, with_patches=True)
    ((beside, strength),) = target.place.beside
    tensors = beside.tensors
    assert strength == 1.0
    assert close(
        tensors[f"diffusion_model.{LAYER}.diff"],
        model.weight(f"{LAYER}.weight") - opened(tmp_path, "wan").weight(f"{LAYER}.weight"),
        1e-4,
    )
    assert torch.equal(tensors[f"diffusion_model.{LAYER}.diff_b"], 2 * bias)
    other = (
        tensors["diffusion_model.blocks.0.ffn.2.lora_up.weight"]
        @ tensors["diffusion_model.blocks.0.ffn.2.lora_down.weight"]
    )
    assert close(
        other, model.weight("blocks.0.ffn.2.weight") - opened(tmp_path, "wan").weight("blocks.0.ffn.2.weight"), 1e-4
    )
    patched, report = comfy.run("LoraportApply", model=model, **WAN, method="undo:0.25").args
    assert "changes 11 weights" in report and added(model, patched).norm() > 0


def test_what_this_node_has_added_is_no_part_of_the_target(comfy, tmp_path):
    model = opened(tmp_path)
    once, _ = comfy.run("LoraportApply", model=model, **WAN, method="casa").args
    twice, report = comfy.run("LoraportApply", model=once, **WAN, method="casa").args
    assert torch.allclose(added(once, twice), added(model, once), atol=1e-6) and "loaded before" not in report


@pytest.mark.slow
def test_the_same_is_not_transferred_twice_and_any_change_is(comfy, tmp_path, monkeypatch):
    made = []
    part = comfy.part("applied")
    monkeypatch.setattr(
        part, "transfer_state", lambda *a, **k: made.append(k["part"]) or loraport.transfer_state(*a, **k)
    )

    def run(model, **changes):
        made.clear()
        found = comfy.run("LoraportApply", **{"model": model, **WAN, "method": "casa", **changes}).args
        return len(made), found

    model = opened(tmp_path)
    assert run(model)[0] == 1
    count, (patched, report) = run(model, strength=0.3)
    assert count == 0 and close(added(model, patched), 0.3 * transferred(tmp_path)) and "layers transferred" in report
    assert run(opened(tmp_path))[0] == 0, "the same weights, loaded again"
    assert run(model, counter_drift_strength=0.5)[0] == 2
    assert run(model, counter_drift_strength=0.7, adapter_strength=0.9)[0] == 0
    assert run(model, rank="4")[0] == run(model, method="undo")[0] == run(opened(tmp_path, "wan"))[0] == 1
    tiny.write_lora(tmp_path / "models/loras/style.safetensors", tiny.lora_factors(tiny.tiny_state(0, blocks=1), 8))
    assert run(model)[0] == 1
    kept = list((tmp_path / "user/loraport").glob("*.safetensors"))
    kept[0].write_bytes(b"damaged")
    assert len(kept) == 6 and all(run(model, rank=rank)[0] == 1 for rank in ("2", "3", "5"))
    assert len(list((tmp_path / "user/loraport").iterdir())) == part.KEPT


def test_a_damaged_result_is_made_again(comfy, tmp_path):
    model = opened(tmp_path)
    first, _ = comfy.run("LoraportApply", model=model, **WAN, method="casa").args
    (kept,) = (tmp_path / "user/loraport").iterdir()
    kept.write_bytes(kept.read_bytes()[:-100])
    again, _ = comfy.run("LoraportApply", model=model, **WAN, method="casa").args
    assert torch.equal(added(model, first), added(model, again))


def test_weights_that_another_node_has_written_into_are_seen(comfy, tmp_path):
    model = opened(tmp_path)
    part = comfy.part("model_target")
    before = part.target_of(model, with_patches=True).digest
    assert part.target_of(model, with_patches=True).digest == before
    with torch.inference_mode():
        model.model.state[f"diffusion_model.{LAYER}.weight"] *= 1.01
    assert part.target_of(model, with_patches=True).digest != before


@pytest.mark.slow
def test_recommend_looks_at_the_model(comfy, tmp_path):
    _, report = comfy.run("LoraportApply", model=opened(tmp_path), **WAN, method="recommend").args
    assert "Why this method: " in report


class Codes(torch.Tensor):
    """A tensor of another kind, as those of quantised models are."""


def test_codes_are_refused_unless_the_unquantised_file_is_named(comfy, tmp_path):
    model = opened(tmp_path)
    key = f"diffusion_model.{LAYER}.weight"
    model.model.state[key] = model.model.state[key].clone().as_subclass(Codes)
    with pytest.raises(loraport.InputError, match=r"quantised: blocks\.0\.ffn\.0\.weight .* target_weights"):
        comfy.run("LoraportApply", model=model, **WAN, method="casa")
    known = {**WAN, "method": "casa", "target_weights": "fast.safetensors"}
    patched, _ = comfy.run("LoraportApply", model=model, **known).args
    assert close(added(model, patched), transferred(tmp_path))


def test_fp8_weights_with_scales_are_read_with_them(comfy, tmp_path):
    state = load_file(tmp_path / "models/diffusion_models/fast.safetensors")
    scaled, _ = tiny.in_fp8(state, "comfy, older")
    del scaled["scaled_fp8"]  # ComfyUI takes it away
    model = ModelPatcher(Model(scaled))
    patched, _ = comfy.run("LoraportApply", model=model, **WAN, method="undo:0.25").args
    delta = patched.patches[f"diffusion_model.{LAYER}.weight"][0][1].added()
    exact, coarse = transferred(tmp_path, method="undo:0.25"), transferred(tmp_path, method="direct")
    assert (delta - exact).norm() < 0.3 * (coarse - exact).norm()


@pytest.mark.parametrize(
    "patch",
    [
        ("set", (torch.zeros(40, 24),)),
        ("model_as_lora", (torch.zeros(40, 24),)),
        LoRAAdapter((torch.zeros(40, 2), torch.zeros(2, 24), None, None, torch.ones(40, 1), None)),
    ],
    ids=["set", "model_as_lora", "DoRA"],
)
def test_a_patch_that_is_no_lora_is_refused(comfy, tmp_path, patch):
    model = opened(tmp_path)
    model.add_patches({f"diffusion_model.{LAYER}.weight": patch})
    with pytest.raises(loraport.InputError, match="is not read as an accelerator"):
        comfy.run("LoraportApply", model=model, **WAN, method="casa")
    patched, _ = comfy.run("LoraportApply", model=model, **WAN, method="casa", loaded_before="leave aside").args
    assert len(patched.patches[f"diffusion_model.{LAYER}.weight"]) == 2


def test_what_has_no_place_in_the_model_is_said(comfy, tmp_path):
    model = opened(tmp_path)
    del model.model.state[f"diffusion_model.{LAYER}.weight"]
    assert comfy.part("applied").unplaced(
        {f"diffusion_model.{LAYER}.lora_A.weight": 0, "diffusion_model.blocks.0.ffn.2.lora_A.weight": 0},
        comfy.part("comfy_side").name_map(model),
    ) == [f"diffusion_model.{LAYER}.lora_A.weight"]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [({"loaded_before": "maybe"}, "is no way"), ({"target_weights": "no"}, "is no file"), ({"device": "x"}, "device")],
)
def test_wrong_choices_are_refused(comfy, tmp_path, inputs, says):
    with pytest.raises(loraport.LoraportError, match=says):
        comfy.run("LoraportApply", model=opened(tmp_path), **WAN, method="casa", **inputs)
