"""Layer names: complete against the real model classes, one to one, anchored, never guessed back from underscores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraport.errors import MismatchError
from loraport.weights.names import (
    NAMINGS,
    WAN,
    Naming,
    canonical_from_flat,
    canonical_layer,
    canonical_parameter,
    detect_naming,
    flattened,
    layer_in,
    parameter_in,
    strip_prefixes,
)

SMALL: dict[str, Any] = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
LARGE: dict[str, Any] = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
IMAGE: dict[str, Any] = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
MODELS = {
    "t2v-1.3b": (SMALL, 825),
    "t2v-14b": (LARGE, 1095),
    "i2v-14b": (LARGE | IMAGE, 1303),
    "flf2v-14b": (LARGE | IMAGE | {"pos_embed_seq_len": 514}, 1304),
}
LAYERS = [template.format(3) for template, *_ in WAN.layers]


def names_of_diffusers(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        model = diffusers.WanTransformer3DModel(attention_head_dim=128, **config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("config", "count"), MODELS.values(), ids=MODELS)
def test_every_name_of_the_real_model_has_one_canonical_name(config: dict[str, Any], count: int) -> None:
    names = names_of_diffusers(config)
    canonical = {name: canonical_parameter(name, "diffusers") for name in names}
    assert len(names) == count
    assert None not in canonical.values()
    assert len(set(canonical.values())) == count
    for name, original in canonical.items():
        assert original is not None
        assert parameter_in(original, "diffusers") == name
        assert parameter_in(original, "original") == original
    assert detect_naming(names) == "diffusers"
    assert detect_naming(filter(None, canonical.values())) == "original"


@pytest.mark.parametrize(("config", "count"), MODELS.values(), ids=MODELS)
def test_the_converter_of_diffusers_agrees(config: dict[str, Any], count: int) -> None:
    pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    wanted = {name: canonical_parameter(name, "diffusers") for name in names_of_diffusers(config)}
    wanted.pop("condition_embedder.image_embedder.pos_embed", None)  # diffusers converts it nowhere
    converted = convert_wan_transformer_to_diffusers({original: original for original in wanted.values()})
    assert converted == wanted


@pytest.mark.parametrize(
    ("original", "diffusers"),
    [
        ("blocks.0.norm3.weight", "blocks.0.norm2.weight"),
        ("blocks.7.modulation", "blocks.7.scale_shift_table"),
        ("head.modulation", "scale_shift_table"),
        ("head.head.bias", "proj_out.bias"),
        ("blocks.39.cross_attn.norm_k_img.weight", "blocks.39.attn2.norm_added_k.weight"),
        ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
        ("blocks.2.self_attn.o.weight_scale", "blocks.2.attn1.to_out.0.weight_scale"),
    ],
)
def test_the_traps(original: str, diffusers: str) -> None:
    assert parameter_in(original, "diffusers") == diffusers
    assert canonical_parameter(diffusers, "diffusers") == original


@pytest.mark.parametrize("naming", NAMINGS)
def test_each_naming_is_one_to_one(naming: Naming) -> None:
    rows = WAN.layers + WAN.parameters
    assert len({row[NAMINGS.index(naming)] for row in rows}) == len(rows)
    for layer in LAYERS:
        spelled = layer_in(layer, naming)
        assert spelled is not None and canonical_layer(spelled, naming) == layer


def test_no_spelling_names_two_layers_across_namings() -> None:
    for rows in (WAN.layers, WAN.parameters):
        meanings: dict[str, set[str]] = {}
        for row in rows:
            for spelled in row:
                meanings.setdefault(spelled, set()).add(row[0])
        assert all(len(layers) == 1 for layers in meanings.values())


def test_flattened_templates_do_not_collide() -> None:
    meanings: dict[str, set[str]] = {}
    for row in WAN.layers:
        for spelled in row:
            meanings.setdefault(flattened(spelled), set()).add(row[0])
    assert all(len(layers) == 1 for layers in meanings.values())


@given(template=st.sampled_from(WAN.layers), naming=st.sampled_from(NAMINGS), block=st.integers(0, 10_000))
def test_flattening_is_undone_by_look_up(template: tuple[str, ...], naming: Naming, block: int) -> None:
    spelled = template[NAMINGS.index(naming)].format(block)
    found = canonical_from_flat(flattened(spelled))
    assert found is not None
    canonical, as_naming = found
    assert canonical == template[0].format(block)
    assert layer_in(canonical, as_naming) == spelled


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.self_attn.q.lora_A",
        "xblocks.0.self_attn.q",
        "model.blocks.0.self_attn.q",
        "blocks.00.self_attn.q",
        "blocks.{}.self_attn.q",
        "blocks.self_attn.q",
        "blocks.0.attn1.to_q",
        "",
    ],
)
def test_matching_is_anchored(name: str) -> None:
    assert canonical_layer(name, "original") is None
    assert canonical_from_flat(flattened(name)) is None or name == "blocks.0.attn1.to_q"


def test_unknown_names_are_answered_with_none() -> None:
    assert canonical_parameter("blocks.0.attn1.to_something.weight", "diffusers") is None
    assert parameter_in("_register_tokens", "diffusers") is None
    assert canonical_from_flat("blocks_0_cross_attn_k_image") is None
    assert detect_naming(["down_blocks.0.resnets.0.conv1.weight"]) is None


def test_the_gate_of_sparse_attention_keeps_its_name() -> None:
    assert canonical_parameter("blocks.4.to_gate_compress.bias", "diffusers") == "blocks.4.to_gate_compress.bias"


PLAIN = [f"blocks.{i}.self_attn.{x}.weight" for i in range(2) for x in "qkvo"]


@pytest.mark.parametrize(
    "prefix",
    ["", "model.", "model.diffusion_model.", "diffusion_model.", "generator.model.", "module.model.", "net.module."],
)
def test_prefixes_are_stripped_repeatedly(prefix: str) -> None:
    assert strip_prefixes(prefix + name for name in PLAIN) == {prefix + name: name for name in PLAIN}


def test_wrapper_names_are_deleted_wherever_they_stand() -> None:
    key = "generator._fsdp_wrapped_module.model._orig_mod.blocks.0._checkpoint_wrapped_module.self_attn.q.weight"
    assert strip_prefixes([key]) == {key: "blocks.0.self_attn.q.weight"}


def test_a_prefix_that_few_keys_share_stays() -> None:
    odd = "model.something.weight"
    assert strip_prefixes([*PLAIN, odd])[odd] == odd


def test_two_keys_that_would_become_one_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"blocks\.0\.self_attn\.q\.weight"):
        strip_prefixes([*PLAIN, *("model." + name for name in PLAIN)])
