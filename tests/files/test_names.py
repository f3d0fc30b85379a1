"""Layer names: complete against the real model classes, one to one, anchored, never guessed back from underscores."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraport.errors import MismatchError
from loraport.files.names.dialects import parse_key
from loraport.files.names.families import (
    FAMILIES,
    FLUX_1,
    FLUX_2,
    HUNYUAN,
    HUNYUAN_15,
    LTX_2,
    MINIMAX_H3,
    QWEN_IMAGE,
    QWEN_IMAGE_21,
    SD15,
    SDXL,
    WAN,
    Z_IMAGE,
    Family,
    flattened,
)
from loraport.files.names.lookup import (
    canonical_layer,
    detect_naming,
    find_layer,
    find_start,
    is_known,
    parameter_in,
    spellings,
    strip_prefixes,
)
from tests.families import canonical_parameter

SMALL: dict[str, Any] = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
LARGE: dict[str, Any] = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
MIDDLE: dict[str, Any] = {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30}
IMAGE: dict[str, Any] = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
MODELS = {
    "t2v-1.3b": (SMALL, 825),
    "t2v-14b": (LARGE, 1095),
    "i2v-14b": (LARGE | IMAGE, 1303),
    "flf2v-14b": (LARGE | IMAGE | {"pos_embed_seq_len": 514}, 1304),
    "2.2-i2v-a14b": (LARGE | {"in_channels": 36}, 1095),
    "2.2-ti2v-5b": (MIDDLE | {"in_channels": 48, "out_channels": 48}, 825),
}
LAYERS = [str(row[0]).format(3) for row in WAN.layers]

XL: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
SSD = XL | {
    "transformer_layers_per_block": (0, 2, 4),
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    "mid_block_type": "UNetMidBlock2D",
}
WAN_CLASS, HUNYUAN_CLASS, UNET_CLASS = (
    "WanTransformer3DModel",
    "HunyuanVideo15Transformer3DModel",
    "UNet2DConditionModel",
)
LTX_23: dict[str, Any] = {
    **dict.fromkeys(("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod"), True),
    "use_prompt_embeddings": False,
}
LTX_25 = LTX_23 | {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
KLEIN: dict[str, Any] = {"guidance_embeds": False}
KLEIN_9B = KLEIN | {"num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288}
KLEIN_4B = KLEIN | {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
PUBLISHED: dict[str, tuple[Family, str, dict[str, Any], int, int]] = {
    # name: family, class of diffusers, configuration, tensors, parameters
    "wan2.1-t2v-1.3b": (WAN, WAN_CLASS, SMALL, 825, 1_418_996_800),
    "wan2.1-t2v-14b": (WAN, WAN_CLASS, LARGE, 1095, 14_288_491_584),
    "wan2.1-i2v-14b": (WAN, WAN_CLASS, LARGE | IMAGE, 1303, 16_394_878_784),
    "wan2.2-i2v-a14b": (WAN, WAN_CLASS, LARGE | {"in_channels": 36}, 1095, 14_288_901_184),
    "wan2.2-ti2v-5b": (WAN, WAN_CLASS, MIDDLE | {"in_channels": 48, "out_channels": 48}, 825, 4_999_787_712),
    "wan2.1-vace": (WAN, "WanVACETransformer3DModel", {}, 1331, 17_337_592_896),
    "wan2.2-animate": (WAN, "WanAnimateTransformer3DModel", {}, 1243, 15_177_050_484),
    "anyflow-14b": (WAN, "AnyFlowTransformer3DModel", {}, 1099, 14_316_026_944),
    "anyflow-1.3b": (WAN, "AnyFlowTransformer3DModel", SMALL, 829, 1_421_752_384),
    "anyflow-far-14b": (WAN, "AnyFlowFARTransformer3DModel", {}, 1101, 14_317_342_784),
    "helios": (WAN, "HeliosTransformer3DModel", {}, 1101, 14_312_427_584),
    "hunyuanvideo": (HUNYUAN, "HunyuanVideoTransformer3DModel", {}, 1264, 12_821_012_544),
    "hunyuanvideo-1.5": (HUNYUAN_15, HUNYUAN_CLASS, {}, 1801, 8_326_608_160),
    "hunyuanvideo-1.5, mean flow": (HUNYUAN_15, HUNYUAN_CLASS, {"use_meanflow": True}, 1805, 8_331_330_848),
    "minimax-h3": (MINIMAX_H3, "MiniMaxH3Transformer3DModel", {}, 638, 33_122_992_896),
    "flux.1-dev": (FLUX_1, "FluxTransformer2DModel", {"guidance_embeds": True}, 1160, 11_901_408_320),
    "flux.1-schnell": (FLUX_1, "FluxTransformer2DModel", {}, 1156, 11_891_178_560),
    "flux.2-dev": (FLUX_2, "Flux2Transformer2DModel", {}, 331, 32_223_281_152),
    "flux.2-klein-9b": (FLUX_2, "Flux2Transformer2DModel", KLEIN_9B, 233, 9_078_581_248),
    "flux.2-klein-4b": (FLUX_2, "Flux2Transformer2DModel", KLEIN_4B, 169, 3_875_544_576),
    "ltx-2": (LTX_2, "LTX2VideoTransformer3DModel", {}, 3510, 18_876_174_592),
    "ltx-2.3": (LTX_2, "LTX2VideoTransformer3DModel", LTX_23, 4186, 18_988_838_144),
    "ltx-2.5": (LTX_2, "LTX2VideoTransformer3DModel", LTX_25, 4091, 18_987_859_200),
    "sd1.5": (SD15, UNET_CLASS, {"cross_attention_dim": 768}, 686, 859_520_964),
    "sdxl": (SDXL, UNET_CLASS, XL, 1680, 2_567_463_684),
    "ssd-1b": (SDXL, UNET_CLASS, SSD, 944, 1_331_334_404),
    "krea2": (FAMILIES["krea2"], "Krea2Transformer2DModel", {}, 430, 12_820_073_036),
    "qwen-image": (QWEN_IMAGE, "QwenImageTransformer2DModel", {}, 1933, 20_430_401_088),
    "qwen-image-layered": (
        *(QWEN_IMAGE, "QwenImageTransformer2DModel", {"use_additional_t_cond": True}, 1934, 20_430_407_232),
    ),
    "qwen-image-2.1": (QWEN_IMAGE_21, "QwenImage21Transformer2DModel", {}, 297, 7_115_124_736),
    "z-image": (Z_IMAGE, "ZImageTransformer2DModel", {}, 521, 6_154_908_736),
    "z-image-omni": (Z_IMAGE, "ZImageTransformer2DModel", {"siglip_feat_dim": 1152}, 551, 6_513_266_880),
}


@functools.cache
def shapes_of(model: str) -> dict[str, tuple[int, ...]]:
    diffusers = pytest.importorskip("diffusers")
    _, kind, config, *_ = PUBLISHED[model]
    heads = {"attention_head_dim": 128} if kind == WAN_CLASS else {}
    with torch.device("meta"):
        module = getattr(diffusers, kind)(**heads, **config)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("model", PUBLISHED)
def test_every_name_of_the_real_model_goes_both_ways_in_every_naming(model: str) -> None:
    family, _, _, tensors, parameters = PUBLISHED[model]
    shapes = shapes_of(model)
    assert (len(shapes), sum(math.prod(shape) for shape in shapes.values())) == (tensors, parameters)
    canonical = {name: family.parameter_pieces(name, "diffusers") for name in shapes}
    assert all(len(pieces) == 1 for pieces in canonical.values())
    names = [pieces[0][0] for pieces in canonical.values()]
    assert len(set(names)) == tensors
    for naming in family.namings:
        stored: dict[str, set[tuple[str, int]]] = {}
        if naming == "xlabs" or (naming == "fastvideo" and PUBLISHED[model][1] not in (WAN_CLASS, HUNYUAN_CLASS)):
            continue  # XLabs' LoRAs are of attention alone; FastVideo runs none of the others
        for name in names:
            rows = family.parameter_rows(name, naming)
            assert rows is not None
            found = dict(family.parameter_pieces(rows.name, naming))
            assert found[name] == rows
            stored.setdefault(rows.name, set()).add((name, rows.part))
        for name, some in stored.items():
            pieces = family.parameter_pieces(name, naming)
            held = [part for _, rows in pieces for part in range(rows.part, rows.part + rows.span)]
            assert sorted(held) == list(range(pieces[0][1].of)) and len(some) == len(pieces)
        found = detect_naming(stored)
        assert found is not None and found[0] is family
        assert found[1] == naming or {family.parameter_rows(name, found[1]).name for name in names} == set(stored)  # type: ignore[union-attr]


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_kernel_of_every_layer_is_told_by_its_name(model: str) -> None:
    family = PUBLISHED[model][0]
    for name, shape in shapes_of(model).items():
        layer = family.parameter_pieces(name, "diffusers")[0][0].removesuffix(".weight")
        if name.endswith(".weight") and len(shape) > 1:
            assert family.kernel(layer) == shape[2:], name


@pytest.mark.parametrize("model", PUBLISHED)
def test_size_and_blocks_are_told_from_the_shapes(model: str) -> None:
    from loraport.files.inspect import _size

    family = PUBLISHED[model][0]
    layers = {
        family.parameter_pieces(name, "diffusers")[0][0].removesuffix(".weight"): shape
        for name, shape in shapes_of(model).items()
        if len(shape) == 2
    }
    assert _size(layers, family) in family.sizes
    if model == "ssd-1b":
        assert family.sizes[_size(layers, family)] == "SSD-1B"  # type: ignore[index]


def test_fused_rows_are_where_the_original_has_them() -> None:
    """q, k and v in the refiners; everywhere in ComfyUI's files; the halves of the last modulation in both."""
    counts = {"diffusers": 0, "original": 2, "comfy": 110, "diffusion-pipe": 110, "fastvideo": 110}
    for naming, fused in counts.items():
        slices = [
            HUNYUAN_15.parameter_rows(name, naming)  # type: ignore[arg-type]
            for name in shapes_of("hunyuanvideo-1.5")
            if name.endswith(".weight")
        ]
        assert len({rows.name for rows in slices if rows and rows.of == 3}) == fused
        swapped = [rows.name for rows in slices if rows and rows.swapped]
        assert swapped == (
            ["final_layer.adaLN_modulation.1.weight"] if naming not in ("diffusers", "fastvideo") else []
        )


def test_rows_of_heads_are_moved_as_in_the_converter_of_diffusers() -> None:
    """Two heads of 128 rows for each of q, k and v; put is the way back, also where the tensor is a part of another."""
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    stored = torch.arange(768.0)[:, None] * torch.ones(1, 2)
    name, back = "blocks.7.attn.qkv_proj", torch.zeros(768, 5)[:, 1:3]
    config = {"num_attention_heads": 2, "attention_head_dim": 128}
    for naming, layout in (("original", "stacked"), ("interleaved", "interleaved")):
        wanted = single_file.convert_minimax_h3_transformer_checkpoint_to_diffusers(
            {f"{name}.weight": stored}, config, qkv_layout=layout
        )
        for canonical, rows in MINIMAX_H3.pieces(name, naming):  # type: ignore[arg-type]
            assert torch.equal(rows.take(stored), wanted[f"{canonical}.weight"]), layout
            rows.put(back, rows.take(stored))
        assert torch.equal(back, stored)
    assert not MINIMAX_H3.pieces(name, "interleaved")[0][1].fits((3 * 64, 2))


def test_rows_are_moved_as_in_the_converter_of_diffusers() -> None:
    stored = torch.arange(6.0)[:, None] * torch.ones(1, 2)
    parts = [rows.take(stored) for _, rows in HUNYUAN_15.pieces("double_blocks.7.img_attn.qkv", "comfy")]
    assert [part[:, 0].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    [(name, rows)] = HUNYUAN_15.pieces("final_layer.adaLN_modulation.1", "original")
    assert name == "norm_out.linear" and rows.take(stored)[:, 0].tolist() == [3, 4, 5, 0, 1, 2]
    assert not rows.fits((3, 2)) and not HUNYUAN_15.pieces("double_blocks.7.img_attn.qkv", "comfy")[0][1].fits((4, 2))


@pytest.mark.parametrize("model", ["sd1.5", "sdxl"])
def test_the_converters_of_diffusers_agree_on_unets(model: str) -> None:
    """Its own map of an original file gives its own names: block numbers, upsamplers, the middle."""
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    family, _, config, *_ = PUBLISHED[model]
    wanted = {name: family.parameter_rows(name, "diffusers").name for name in shapes_of(model)}  # type: ignore[union-attr]
    original = {f"model.diffusion_model.{family.parameter_rows(name, 'original').name}": name for name in wanted}  # type: ignore[union-attr]
    settings = {
        "class_embed_type": None,
        "addition_embed_type": config.get("addition_embed_type"),
        "layers_per_block": 2,
    }
    converted = single_file.convert_ldm_unet_checkpoint(
        dict(original), settings | {"down_block_types": config.get("down_block_types", range(4))}
    )
    assert {name: value for name, value in converted.items() if name in wanted} == wanted


@pytest.mark.parametrize(
    ("model", "converter"),
    [
        ("wan2.1-vace", "convert_wan_transformer_to_diffusers"),
        ("wan2.2-animate", "convert_wan_transformer_to_diffusers"),
        ("hunyuanvideo", "convert_hunyuan_video_transformer_to_diffusers"),
        ("krea2", "convert_krea2_transformer_checkpoint_to_diffusers"),
        ("minimax-h3", "convert_minimax_h3_transformer_checkpoint_to_diffusers"),
        ("flux.1-dev", "convert_flux_transformer_checkpoint_to_diffusers"),
        *((name, "convert_flux2_transformer_checkpoint_to_diffusers") for name in PUBLISHED if "flux.2" in name),
        ("flux.1-schnell", "convert_flux_transformer_checkpoint_to_diffusers"),
    ],
)
def test_the_converters_of_diffusers_agree_on_names_and_rows(model: str, converter: str) -> None:
    """Each row of a stored weight is numbered; the rows that a layer gets are those of its slice."""
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    family, stored, wanted = PUBLISHED[model][0], {}, {}
    for name, shape in shapes_of(model).items():
        rows = family.parameter_rows(family.parameter_pieces(name, "diffusers")[0][0], "original")
        assert rows is not None
        if name.endswith("act_fn.bias"):
            continue  # of another shape there
        stored[rows.name] = torch.arange(math.prod(shape) if rows.folded else rows.stored_rows(shape[0]))
        wanted[name] = rows.take(stored[rows.name])
    converted = getattr(single_file, converter)(stored, **({"config": {}} if model == "minimax-h3" else {}))
    assert converted.keys() == wanted.keys()
    assert all(torch.equal(converted[name], numbers) for name, numbers in wanted.items())


def names_of_diffusers(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        model = diffusers.WanTransformer3DModel(attention_head_dim=128, **config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("config", "count"), MODELS.values(), ids=MODELS)
def test_the_converter_of_diffusers_agrees(config: dict[str, Any], count: int) -> None:
    pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    wanted = {name: canonical_parameter(name) for name in names_of_diffusers(config)}
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
    assert canonical_parameter(diffusers) == original


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_each_naming_gives_every_layer_one_place(family: Family) -> None:
    for number, naming in enumerate(family.namings):
        cells = [
            row[number] for table in (family.layers, family.parameters) for row in table if row[number] is not None
        ]
        assert len(set(cells)) == len(cells)
        for row in family.layers:
            canonical = str(row[0]).format(3)
            rows = family.rows(canonical, naming)
            assert (rows is None) == (row[number] is None)
            assert rows is None or (canonical, rows) in family.pieces(rows.name, naming)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_fused_modules_hold_layers_of_the_table_and_none_twice(family: Family) -> None:
    for naming, canonical, rows in family.fused:
        name = canonical.format(3)
        alone = family.rows(name, naming)
        assert alone is not None and alone.whole and alone.name != rows.name.format(3)
        pieces = family.pieces(rows.name.format(3), naming)
        assert (name, rows.named(rows.name.format(3))) in pieces
        held = [part for _, one in pieces for part in range(one.part, one.part + one.span)]
        assert sorted(held) == list(range(rows.of))


@pytest.mark.parametrize("flat", [False, True])
def test_no_spelling_means_two_layers(flat: bool) -> None:
    """Whatever table or naming finds a stored layer, the layers in it are the same; one name alone needs its family."""
    twice: dict[str, set[str]] = {}
    for family in FAMILIES.values():
        for naming in family.namings:
            for template in family.templates(naming, flat):
                name = template.format(5)
                meanings = {
                    tuple((canonical, rows.part, rows.of, rows.swapped) for canonical, rows in pieces)
                    for other, spelled in spellings(name, flat=flat)
                    if (pieces := other.pieces(name, spelled, flat=flat))
                }
                if len(meanings) > 1:
                    twice.setdefault(name, set()).add(family.name)
                    located = find_layer(name, flat=flat, prefer=family.name)
                    assert located is not None and located.family is family
    assert {"wan", "hunyuanvideo-1.5", "hunyuanvideo", "flux.1", "flux.2", "minimax-h3"} <= twice.pop("proj_out")
    of_flux = {"hunyuanvideo-1.5", "hunyuanvideo", "flux.1", "flux.2"}
    for name in ("transformer_blocks.5.attn.to_qkv", "final_layer.linear"):  # six parts and three; proj_out of others
        assert of_flux | {"krea2"} <= twice.pop(flattened(name) if flat else name)
    of_images = {"krea2", "qwen-image", "qwen-image-2.1", "z-image"}
    assert set().union(*twice.values()) <= of_flux | of_images | {"minimax-h3", "wan", "ltx-2"}


@given(
    row=st.sampled_from([(family, row) for family in FAMILIES.values() for row in family.layers]),
    column=st.integers(0, 4),
    block=st.integers(0, 10_000),
)
def test_flattening_is_undone_by_look_up(row: tuple[Family, tuple[Any, ...]], column: int, block: int) -> None:
    family, cells = row
    naming = family.namings[column % len(family.namings)]
    canonical = str(cells[0]).format(block)
    rows = family.rows(canonical, naming)
    if rows is None:
        return
    found = find_layer(flattened(rows.name), flat=True, prefer=family.name)
    assert found is not None and canonical in dict(found.pieces)
    assert dict(found.pieces)[canonical].part == rows.part


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
    assert find_layer(name) is None or name == "blocks.0.attn1.to_q"


def test_unknown_names_are_answered_with_none() -> None:
    assert canonical_parameter("blocks.0.attn1.to_something.weight") is None
    assert parameter_in("_register_tokens", "diffusers") is None
    assert find_layer("blocks_0_cross_attn_k_image", flat=True) is None
    assert detect_naming(["encoder.layers.0.self_attn.weight"]) is None
    assert not is_known("blocks.0.attn1.to_q") and is_known("transformer_blocks.0.attn.to_q")


def test_the_gate_of_sparse_attention_keeps_its_name() -> None:
    assert canonical_parameter("blocks.4.to_gate_compress.bias") == "blocks.4.to_gate_compress.bias"


PLAIN = [f"blocks.{i}.self_attn.{x}.weight" for i in range(2) for x in "qkvo"]


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "model.",
        "model.diffusion_model.",
        "diffusion_model.",
        "generator.model.",
        "module.model.",
        "net.module.",
        "pipe.dit.",
        "dit.",
        "student.",
        "denoiser.backbone.",
        "generator_ema.model.",
    ],
)
def test_prefixes_are_stripped_repeatedly(prefix: str) -> None:
    assert strip_prefixes(prefix + name for name in PLAIN) == {prefix + name: name for name in PLAIN}


def test_wrapper_names_are_deleted_wherever_they_stand() -> None:
    key = "generator._fsdp_wrapped_module.model._orig_mod.blocks.0._checkpoint_wrapped_module.self_attn.q.weight"
    other = "_forward_module.module.blocks.0.module.self_attn.k.weight"
    assert strip_prefixes([key]) == {key: "blocks.0.self_attn.q.weight"}
    assert strip_prefixes([other]) == {other: "blocks.0.self_attn.k.weight"}


@pytest.mark.parametrize("start", ["control_model.", "vae.decoder."])
def test_layers_of_another_network_that_are_called_like_a_tables_keep_their_start(start: str) -> None:
    names = [start + name for name in PLAIN]
    assert strip_prefixes(names) == {name: name for name in names}


def test_of_two_networks_in_one_file_neither_is_taken() -> None:
    names = [start + name for start in ("teacher.", "student.") for name in PLAIN]
    assert strip_prefixes(names) == {name: name for name in names}


def test_a_start_is_found_where_most_names_are_then_known() -> None:
    known = {"a.q", "a.k", "b.q"}.__contains__
    assert find_start(["x.y.a.q", "x.y.a.k", "x.y.other"], known) == "x.y."
    assert find_start(["a.q", "a.k", "x.b.q"], known) == "", "most are known as they stand"
    assert find_start(["x.a.q", "other.1", "other.2"], known) == "", "one of three is no majority"
    assert find_start([], known) == ""


def test_a_prefix_that_stands_there_hundreds_of_times_is_no_work() -> None:
    names = [f"{'model.module.' * depth}{name}" for depth, name in zip((500,) * 8, PLAIN, strict=True)]
    started = time.process_time()
    assert set(strip_prefixes(names).values()) == set(PLAIN)
    assert time.process_time() - started < 1


def test_a_prefix_that_few_keys_share_stays() -> None:
    odd = "model.something.weight"
    assert strip_prefixes([*PLAIN, odd])[odd] == odd


def test_two_keys_that_would_become_one_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"blocks\.0\.self_attn\.q\.weight"):
        strip_prefixes([*PLAIN, *("model." + name for name in PLAIN)])


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_record_of_a_family_is_of_its_files(family: Family) -> None:
    """The sizes are those that are checked against diffusers' class; each trainer's key is read as a layer of it."""
    record = family.record
    assert record is not None and record.title and record.sources and record.unverified, "what its page says"
    checked = {(kind, tensors, count) for one, kind, _, tensors, count in PUBLISHED.values() if one is family}
    assert {(size.model_class, size.tensors, size.parameters) for size in record.sizes if size.model_class} == checked
    assert len(record.trainers) >= 3
    for trainer in record.trainers:
        key = parse_key(trainer.key, family.name)
        assert key.part == "A" and key.dialect.family == family.name and key.pieces, trainer.key
