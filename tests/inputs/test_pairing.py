"""Models of different depth: every surviving block is found among its elders, and nothing is made up for a stranger."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.errors import InputError, MismatchError, SettingsError
from loraport.files.names.blocks import layer_role
from loraport.inputs.open import prepare
from loraport.methods.settings import ProloraSettings
from loraport.reports.transfer_page import write_transfer_page
from loraport.transfers.run import transfer
from tests import tiny
from tests.transfers.models import deltas, make_family

SURVIVORS = {0: 0, 1: 2, 2: 5}
"""Block of the pruned model -> the block of the source that it was."""
STRANGER = 3


def without_numbers(name: str) -> tuple[int, str]:
    _, number, rest = name.split(".", 2)
    return int(number), rest


@pytest.fixture
def pruned(tmp_path):
    """A source of six blocks; a target of three of them, trained on a little, and one that was made anew."""
    source = tiny.tiny_state(0, blocks=6)
    stranger = tiny.tiny_state(99, blocks=1)
    target = {name: tensor for name, tensor in source.items() if not name.startswith("blocks.")}
    for new, old in SURVIVORS.items():
        block = {name: tensor for name, tensor in source.items() if name.startswith(f"blocks.{old}.")}
        target |= {name.replace(f"blocks.{old}.", f"blocks.{new}."): tensor for name, tensor in block.items()}
    block = {name: tensor for name, tensor in stranger.items() if name.startswith("blocks.0.")}
    target |= {name.replace("blocks.0.", f"blocks.{STRANGER}."): tensor for name, tensor in block.items()}
    target = tiny.drifted(target, size=0.02)
    family = make_family(tmp_path)
    factors = tiny.lora_factors(source)
    tiny.write_original(tmp_path / "source.safetensors", source)
    tiny.write_original(tmp_path / "pruned.safetensors", target)
    tiny.write_lora(tmp_path / "lora.safetensors", factors)

    def config(output="out.safetensors", **changes):
        return family.config(output, **{"target": str(tmp_path / "pruned.safetensors"), "method": "direct", **changes})

    return config, factors


def test_every_survivor_is_found_and_the_stranger_is_not(pruned):
    config, factors = pruned
    pairing = prepare(config()).pairing
    expected = {
        f"blocks.{new}.{rest}": f"blocks.{old}.{rest}"
        for new, old in SURVIVORS.items()
        for rest in {without_numbers(name)[1] for name in factors}
    }
    assert {target: origin for target, (origin, _) in pairing.pairs.items()} == expected
    assert min(phi for _, phi in pairing.pairs.values()) > 0.9
    assert {without_numbers(name)[0] for name in pairing.unmatched} == {STRANGER}
    assert max(phi for _, phi in pairing.unmatched.values()) < 0.7


@pytest.mark.parametrize("method", ["direct", "casa", "prolora"])
def test_the_result_has_the_updates_of_the_pairs(pruned, method):
    config, factors = pruned
    result = transfer(config(method=method, settings=ProloraSettings(phi_min=0.0) if method == "prolora" else None))
    written = deltas(result.output)
    assert {without_numbers(name)[0] for name in written} == set(SURVIVORS) and len(written) == 30
    for name, update in written.items():
        number, rest = without_numbers(name)
        B, A = factors[f"blocks.{SURVIVORS[number]}.{rest}"]
        wanted, alone = B.double() @ A.double(), factors[name][0].double() @ factors[name][1].double()
        cosine = float((update * wanted).sum() / update.norm() / wanted.norm())
        assert cosine > (0.999 if method == "direct" else 0.5)
        assert SURVIVORS[number] == number or abs(float((update * alone).sum() / update.norm() / alone.norm())) < 0.5


def test_what_no_layer_takes_after_is_dropped_by_name(pruned):
    config, _ = pruned
    result = transfer(config())
    gone = {key.removeprefix("diffusion_model.").split(".")[1] for key, _ in result.keys.dropped}
    assert gone == {"1", "3", "4"} and result.lost
    assert (result.keys.total, result.keys.counts["transferred"]) == (120, 60)
    assert any("get nothing" in note and f"blocks.{STRANGER}." in note for note in result.warnings)
    assert result.pairing is not None and len(result.as_json()["pairing"]["pairs"]) == 30
    json.dumps(result.as_json(), allow_nan=False)


def test_by_name_the_same_numbers_are_taken(pruned):
    config, factors = pruned
    result = transfer(config(pairing="name"))
    written = deltas(result.output)
    assert {without_numbers(name)[0] for name in written} == {0, 1, 2, 3} and result.pairing is None
    for name, update in written.items():
        wanted = factors[name][0].double() @ factors[name][1].double()
        assert float((update - wanted).norm() / wanted.norm()) < 1e-5


def test_one_source_block_may_serve_several(tmp_path, pruned):
    config, _ = pruned
    state = load_file(tmp_path / "pruned.safetensors")
    twice = {n.replace("blocks.1.", "blocks.4."): t.clone() for n, t in state.items() if n.startswith("blocks.1.")}
    save_file(state | twice, tmp_path / "pruned.safetensors")
    result = transfer(config())
    written = deltas(result.output)
    assert torch.allclose(written["blocks.4.ffn.0"], written["blocks.1.ffn.0"])
    assert result.keys.total == 120 and result.keys.counts["transferred"] == 60


def test_models_of_one_depth_go_by_name_unless_asked(tmp_path):
    family = make_family(tmp_path)
    assert prepare(family.config()).pairing is None
    pairing = prepare(family.config(pairing="similarity")).pairing
    assert pairing is not None and all(target == origin for target, (origin, _) in pairing.pairs.items())
    with pytest.raises(InputError, match=r"known: auto, name, similarity"):
        prepare(family.config(pairing="guess"))


def test_nothing_alike_and_accelerators_are_refused(tmp_path, pruned):
    config, _ = pruned
    with pytest.raises(InputError, match=r"no layer of .*pruned.* is like one of the LoRA's"):
        transfer(config(pair_min=1.0))
    with pytest.raises(SettingsError, match="an overlap lies in"):
        transfer(config(pair_min=1.5))
    accelerated = f"{tmp_path / 'pruned.safetensors'}+{tmp_path / 'fast.safetensors'}"
    layers = {name: value for name, value in pruned[1].items() if without_numbers(name)[0] < 3}
    tiny.write_lora(tmp_path / "fast.safetensors", layers)
    with pytest.raises(SettingsError, match="bake the accelerator"):
        transfer(config(target=accelerated))
    assert not (tmp_path / "out.safetensors").exists()


def test_roles():
    up = "up_blocks.1.attentions.2.transformer_blocks.0."
    assert layer_role(f"{up}attn1.to_out.0") == "up_blocks.*.attentions.*.transformer_blocks.*.attn1.to_out.0"
    assert layer_role("blocks.3.ffn.0") == "blocks.*.ffn.0" and layer_role("head.head") == "head.head"
    assert layer_role("down_blocks.1.resnets.0.conv1") != layer_role("up_blocks.1.resnets.0.conv1")


@pytest.mark.slow
def test_the_page_shows_the_similarities(tmp_path, pruned):
    pytest.importorskip("matplotlib")
    config, _ = pruned
    result = transfer(config())
    write_transfer_page(result, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Which layers are alike" in text and text.count("data:image/svg+xml") >= 2


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_part_of_a_model_is_no_model_of_another_depth(tmp_path, side):
    """The first or the last shard of two, taken for the whole: refused with the way out, unless it is asked for."""
    family = make_family(tmp_path, blocks=4)
    state = family.source_state if side == "source" else family.target_state
    for kept in (("0", "1"), ("2", "3")):
        part = {name: W for name, W in state.items() if not name.startswith("blocks.") or name.split(".")[1] in kept}
        place = str(tiny.write_original(tmp_path / f"{kept[0]}.safetensors", part))
        with pytest.raises(MismatchError, match=r"0\.safetensors|2\.safetensors") as refused:
            prepare(family.config(**{side: place}))
        assert "lacks 2 of the other model's 4 blocks" in str(refused.value) and "all of its files" in str(
            refused.value
        )
        ready = prepare(family.config(**{side: place}, pairing="name"))
        assert len(ready.plan.of("transfer")) == 20 and ready.pairing is None
        assert prepare(family.config(**{side: place}, pairing="similarity")).pairing.moved == 0


def test_single_layers_that_are_not_there_leave_the_others_paired_by_name(tmp_path):
    family = make_family(tmp_path)
    part = {name: W for name, W in family.target_state.items() if "blocks.1.ffn.0" not in name}
    ready = prepare(family.config(target=str(tiny.write_original(tmp_path / "part.safetensors", part))))
    assert ready.pairing is None and [job.name for job in ready.plan.of("drop")] == ["blocks.1.ffn.0"]
    assert len(ready.plan.of("transfer")) == 19
