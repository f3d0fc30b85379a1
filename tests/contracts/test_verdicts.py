"""Odd files of every kind: what `inspect` says of diffusers and PEFT is what the installed libraries do with them."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraport.conversion import convert
from loraport.files.loaders.facts import facts_of
from loraport.files.loaders.table import verdicts
from loraport.files.lora.read import read_lora
from loraport.files.names.families import flattened
from loraport.files.names.lookup import layer_in
from tests.contracts.test_text_encoders import pipeline
from tests.families import FAMILIES, HEADERS, IMAGE_PIPELINES, bare_pipeline, image_pipeline

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

Tensors = dict[str, Tensor]
R, WIDTH = 2, 12


def wan() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_attention_heads": 1, "attention_head_dim": WIDTH, "text_dim": 8, "freq_dim": 8}
    model = diffusers.WanTransformer3DModel(**sizes, ffn_dim=16, num_layers=2, in_channels=4, out_channels=4)
    return diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=diffusers.UniPCMultistepScheduler(), transformer=model
    )


def hunyuan() -> Any:
    others = ("text_encoder", "tokenizer", "vae", "scheduler", "text_encoder_2", "tokenizer_2")
    return diffusers.HunyuanVideoPipeline(**dict.fromkeys(others), transformer=FAMILIES["hunyuanvideo"].model())


def tiny_pipeline(family: str) -> Any:
    return image_pipeline(family, FAMILIES[family].model())


PIPELINES: dict[str, Any] = {"wan": wan, "hunyuanvideo": hunyuan, "sd1.5": lambda: pipeline("sd1.5"),
                             "sdxl": lambda: pipeline("sdxl"),
                             **{family: partial(tiny_pipeline, family) for family in IMAGE_PIPELINES},
                             **{family: lambda family=family: bare_pipeline(family, FAMILIES[family].model())
                                for family in ("flux.1", "flux.2", "ltx-2")}}  # fmt: skip
PARTS = ("transformer", "unet", "text_encoder", "text_encoder_2")
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {}


def shapes(family: str) -> dict[str, tuple[int, ...]]:
    """The weights of the network by diffusers' names."""
    if family not in SHAPES:
        pipe = PIPELINES[family]()
        network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
        SHAPES[family] = {
            name.removesuffix(".weight"): tuple(W.shape)
            for name, W in network.state_dict().items()
            if name.endswith(".weight") and W.dim() > 1
        }
    return SHAPES[family]


DOWN_UP, AB = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")


def factors(shape: tuple[int, ...], ends: tuple[str, str], how: str = "") -> tuple[Tensors, Tensor]:
    """(the tensors of a pair by their endings, the update). `how`: alpha, flat, ones (a kernel on a linear layer)."""
    out, inn, *kernel = shape
    A, B = torch.randn(R, inn, *kernel), torch.randn(out, R, *(1 for _ in kernel))
    delta = (B.flatten(1) @ A.flatten(1)).reshape(shape)
    if "flat" in how:
        A, B = A.flatten(1), B.flatten(1)
    if "ones" in how and not kernel:
        A, B = A[:, :, None, None], B[:, :, None, None]
    tensors = {ends[0]: A, ends[1]: B}
    return (tensors | {"alpha": torch.tensor(1.0)}, delta / R) if "alpha" in how else (tensors, delta)


def written(
    family: str, which: str, spelling: str, how: str = "", ends: tuple[str, str] = AB
) -> tuple[Tensors, Tensors]:
    """Layers by a pattern in one spelling: (keys, deltas by diffusers' names)."""
    tensors: Tensors = {}
    deltas: Tensors = {}
    for name, shape in shapes(family).items():
        if not re.fullmatch(which, name):
            continue
        own, deltas[name] = factors(shape, ends, how)
        stem = spell(family, name, spelling)
        tensors |= {f"{stem}.{end}": tensor.contiguous() for end, tensor in own.items()}
    assert deltas
    return tensors, deltas


def spell(family: str, name: str, spelling: str) -> str:
    from loraport.files.names.families import FAMILIES as TABLES

    table = TABLES[family]
    canonical = table.parameter_pieces(f"{name}.weight", "diffusers")[0][0].removesuffix(".weight")
    if spelling == "diffusion_model.diffusers_":
        return f"diffusion_model.{name}"
    if spelling in ("diffusion_model.", "lora_unet_original_"):
        name = str(layer_in(canonical, "original", table))
    if spelling.startswith("lora_unet_"):
        return f"lora_unet_{flattened(name)}"
    return f"{spelling}{name}"


BLOCKS = r"blocks\.\d+\.(attn[12]\.to_([qkv]|out\.0)|ffn\.net\.(0\.proj|2))"
ATTN = r".*attn1\.to_[qkv]"
TEXT = {f"lora_te_text_model_encoder_layers_0_self_attn_q_proj.{end}": shape for end, shape in
        (("lora_down.weight", (R, 8)), ("lora_up.weight", (8, R)))}  # fmt: skip


def both(*some: tuple[Tensors, Tensors]) -> tuple[Tensors, Tensors]:
    return {k: v for one in some for k, v in one[0].items()}, {k: v for one in some for k, v in one[1].items()}


def beside(some: tuple[Tensors, Tensors], **more: tuple[int, ...]) -> tuple[Tensors, Tensors]:
    return some[0] | {key: torch.randn(shape) for key, shape in more.items()}, some[1]


def comfy(which: str = BLOCKS, how: str = "", ends: tuple[str, str] = AB) -> tuple[Tensors, Tensors]:
    return written("wan", which, "diffusion_model.", how, ends)


def behind(stem: str, **shapes_: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {stem + key.replace("__", "."): shape for key, shape in shapes_.items()}


D = "diffusion_model."
WAN: dict[str, Any] = {
    "plain": comfy,
    "alpha in blocks": lambda: comfy(how="alpha", ends=DOWN_UP),
    "text embedding": lambda: both(comfy(), comfy(r".*text_embedder\.linear_[12]")),
    "half a text embedding": lambda: both(comfy(), comfy(r".*text_embedder\.linear_1")),
    "alpha on a text embedding": lambda: both(comfy(), comfy(r".*text_embedder\.linear_[12]", "alpha")),
    "alpha on the time projection": lambda: both(comfy(), comfy(r".*time_proj", "alpha")),
    "time projection": lambda: both(comfy(), comfy(r".*time_proj")),
    "head": lambda: both(comfy(), comfy("proj_out")),
    "alpha on the head": lambda: both(comfy(), comfy("proj_out", "alpha")),
    "patch embedding": lambda: both(comfy(), comfy("patch_embedding")),
    "only the head": lambda: comfy("proj_out"),
    "difference of a time embedding": lambda: beside(comfy(), **{f"{D}time_embedding.0.diff": (WIDTH, 8)}),
    "bias of a time embedding": lambda: beside(comfy(), **{f"{D}time_embedding.0.diff_b": (WIDTH,)}),
    "difference of a norm": lambda: beside(comfy(), **{f"{D}blocks.0.norm3.diff": (WIDTH,)}),
    "difference of a patch embedding": lambda: beside(comfy(), **{f"{D}patch_embedding.diff": (WIDTH, 4, 1, 2, 2)}),
    "difference of the head": lambda: beside(comfy(), **{f"{D}head.head.diff": (16, WIDTH)}),
    "modulation by LightX2V": lambda: beside(comfy(), **{f"{D}blocks.0.diff_m": (1, 6, WIDTH)}),
    "modulation by ComfyUI": lambda: beside(comfy(), **{f"{D}blocks.0.modulation.diff": (1, 6, WIDTH)}),
    "A and B, then down and up": lambda: both(comfy(BLOCKS.replace(r"\d+", "0")),
                                             comfy(BLOCKS.replace(r"\d+", "1"), ends=DOWN_UP)),
    "another prefix beside": lambda: both(comfy(BLOCKS.replace(r"\d+", "0")),
                                         written("wan", BLOCKS.replace(r"\d+", "1"), "transformer.")),
    "unknown layer": lambda: beside(comfy(), **{f"{D}blocks.0.new.lora_A.weight": (R, 4),
                                                f"{D}blocks.0.new.lora_B.weight": (4, R)}),
    "unknown ending": lambda: beside(comfy(), **{f"{D}something": (1,)}),
    "vace": lambda: beside(comfy(), **{f"{D}vace_blocks.0.before_proj.lora_A.weight": (R, WIDTH),
                                      f"{D}vace_blocks.0.before_proj.lora_B.weight": (WIDTH, R)}),
    "a LoHa": lambda: beside(comfy(), **behind(f"{D}head.head.", hada_w1_a=(16, R), hada_w1_b=(R, WIDTH),
                                             hada_w2_a=(16, R), hada_w2_b=(R, WIDTH))),
    "dora": lambda: beside(comfy(), **{f"{D}blocks.0.self_attn.q.dora_scale": (WIDTH, 1)}),
    "a kernel of ones": lambda: comfy(how="ones"),
    "diffusers' own": lambda: written("wan", BLOCKS, "transformer."),
    "diffusers' own patch embedding": lambda: written("wan", "patch_embedding", "transformer."),
    "flat patch embedding": lambda: written("wan", "patch_embedding", "transformer.", "flat"),
    "diffusers' own with a difference": lambda: beside(written("wan", BLOCKS, "transformer."),
                                                     **{"transformer.blocks.0.norm2.diff": (WIDTH,)}),
    "diffusers' own with an alpha": lambda: written("wan", BLOCKS, "transformer.", "alpha"),
    "a kernel of ones by diffusers' names": lambda: written("wan", BLOCKS, "transformer.", "ones"),
    "kohya": lambda: written("wan", BLOCKS, "lora_unet_original_", "alpha", DOWN_UP),
    "kohya with a head": lambda: written("wan", f"{BLOCKS}|proj_out", "lora_unet_original_", "alpha", DOWN_UP),
    "kohya with a bias": lambda: beside(written("wan", BLOCKS, "lora_unet_original_", "alpha", DOWN_UP),
                                       **{"lora_unet_blocks_0_ffn_0.diff_b": (16,)}),
}  # fmt: skip


def unet(which: str = ATTN, how: str = "alpha", family: str = "sd1.5") -> tuple[Tensors, Tensors]:
    return written(family, which, "lora_unet_", how, DOWN_UP)


CONV = r"down_blocks\.0\.resnets\.0\.conv1"
NORM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_norm1"
FIRST = "lora_unet_down_blocks_0_resnets_0_conv1"
MID = {
    f"{FIRST}.lora_down.weight": (R, 4, 1, 1),
    f"{FIRST}.lora_mid.weight": (R, R, 3, 3),
    f"{FIRST}.lora_up.weight": (4, R, 1, 1),
}
UNETS: dict[str, Any] = {
    "attention": unet,
    "convolutions": lambda: unet(f"{ATTN}|{CONV}"),
    "flat convolutions": lambda: both(unet(), unet(CONV, "alpha flat")),
    "a mid factor": lambda: beside(unet(), **MID),
    "norms": lambda: beside(unet(), **{f"{NORM}.w_norm": (4,), f"{NORM}.b_norm": (4,)}),
    "bundled embeddings": lambda: beside(unet(), **{"bundle_emb.token.clip_l": (1, 8)}),
    "an alpha alone": lambda: beside(unet(), lora_unet_time_embedding_linear_1__alpha=()),
    "a difference": lambda: beside(unet(), **{f"{NORM}.diff": (4,)}),
    "a kernel of ones on linear layers": lambda: unet(how="alpha ones"),
    "projections as matrices": lambda: both(unet(), unet(r".*0\.proj_in", "alpha flat")),
    "by diffusers": lambda: written("sd1.5", f"{ATTN}|{CONV}", "unet."),
    "by diffusers, flat": lambda: written("sd1.5", f"{ATTN}|{CONV}", "unet.", "flat"),
    "by diffusers, a norm beside": lambda: beside(written("sd1.5", ATTN, "unet."), **{"unet.x.w_norm": (4,)}),
    "by diffusers, kohya's text encoder": lambda: beside(written("sd1.5", ATTN, "unet."), **TEXT),
    "dora_scale": lambda: beside(
        unet(), **{f"{key.removesuffix('lora_up.weight')}dora_scale": (len(value), 1)
                   for key, value in unet()[0].items() if key.endswith("lora_up.weight")}),
}  # fmt: skip
XL: dict[str, Any] = {
    "attention": lambda: unet(f"{ATTN}|add_embedding.linear_1", family="sdxl"),
    "the text projection": lambda: beside(
        unet(f"{ATTN}|add_embedding.linear_1", family="sdxl"),
        **{"lora_te2_text_projection.lora_down.weight": (R, 8), "lora_te2_text_projection.lora_up.weight": (6, R)}),
    "projections with a kernel of ones": lambda: unet(r".*proj_in|add_embedding.linear_1", "alpha ones", "sdxl"),
}  # fmt: skip
HUNYUAN: dict[str, Any] = {
    "diffusers' own": lambda: written("hunyuanvideo", r"(single_)?transformer_blocks.*attn\.to_[qk]", "transformer."),
    "an alpha": lambda: written("hunyuanvideo", r"single_transformer_blocks.*attn\.to_q", "transformer.", "alpha"),
}
KREA = r"(transformer_blocks|text_fusion.*)\.0\.(attn\.to_([kv]|gate)|ff\.down)"
QKV = behind("transformer_blocks.0.attn.to_qkv.", lora_A__weight=(R, 24), lora_B__weight=(36, R))
SCALE = "transformer.transformer_blocks.0.attn.to_k.dora_scale"
KREA_2: dict[str, Any] = {
    "diffusers' own": lambda: written("krea2", f"{KREA}|time_mod_proj", "transformer."),
    "an alpha": lambda: written("krea2", KREA, "transformer.", "alpha"),
    "dora_scale": lambda: beside(written("krea2", KREA, "transformer."), **{SCALE: (6, 1)}),
    "original": lambda: written("krea2", f"{KREA}|img_in", "diffusion_model."),
    "original, an alpha": lambda: written("krea2", KREA, "diffusion_model.", "alpha"),
    "original, down and up": lambda: written("krea2", KREA, "diffusion_model.", ends=DOWN_UP),
    "original, dora_scale": lambda: beside(written("krea2", KREA, D), **{f"{D}blocks.0.attn.wk.dora_scale": (6, 1)}),
    "original, a difference": lambda: beside(written("krea2", KREA, D), **{f"{D}blocks.0.mod.lin.diff": (144,)}),
    "original beside": lambda: both(written("krea2", KREA, "transformer."), written("krea2", "img_in", D)),
    "diffusers' own beside": lambda: both(written("krea2", KREA, D), written("krea2", "img_in", "transformer.")),
    "fused attention": lambda: beside(written("krea2", "img_in|time_mod_proj", "transformer."),
                                      **{f"transformer.{key}": shape for key, shape in QKV.items()}),
}  # fmt: skip
QWEN = r"transformer_blocks\.0\.(attn\.(to_out\.0|add_k_proj)|img_mod\.1|txt_mlp\.net\.0\.proj)"
FLAT = "lora_unet_transformer_blocks_0_attn_to_q"
DEFAULT = ("lora_A.default.weight", "lora_B.default.weight")
T = "transformer."
QWEN_IMAGE: dict[str, Any] = {
    "diffusers' own": lambda: written("qwen-image", f"{QWEN}|img_in", T),
    "diffusers' own, an alpha": lambda: written("qwen-image", QWEN, T, "alpha"),
    "diffusers' own, default": lambda: written("qwen-image", QWEN, T, ends=DEFAULT),
    "diffusers' own, a dora_scale": lambda: beside(written("qwen-image", QWEN, T),
                                                   **{f"{T}transformer_blocks.0.img_mod.1.dora_scale": (72, 1)}),
    "Lightning": lambda: written("qwen-image", QWEN, "", "alpha", DOWN_UP),
    "no prefix, no alpha": lambda: written("qwen-image", QWEN, ""),
    "DiffSynth": lambda: written("qwen-image", QWEN, "", ends=DEFAULT),
    "ai-toolkit": lambda: written("qwen-image", f"{QWEN}|proj_out", "diffusion_model.diffusers_"),
    "A and B, then down and up": lambda: both(written("qwen-image", QWEN, "", "alpha"),
                                             written("qwen-image", "img_in", "", "alpha", DOWN_UP)),
    "a difference": lambda: beside(written("qwen-image", QWEN, "", "alpha", DOWN_UP), **{"img_in.diff": (12, 4)}),
    "musubi-tuner": lambda: written("qwen-image", f"{QWEN}|time_text.*linear_2", "lora_unet_", "alpha", DOWN_UP),
    "musubi-tuner, no alpha": lambda: written("qwen-image", QWEN, "lora_unet_", ends=DOWN_UP),
    "flattened beside dotted": lambda: both(written("qwen-image", QWEN, D + "diffusers_", "alpha", DOWN_UP),
                                           written("qwen-image", "img_in", "lora_unet_", "alpha", DOWN_UP)),
    "diffusers' own beside": lambda: both(written("qwen-image", QWEN, D + "diffusers_"),
                                         written("qwen-image", "img_in", T)),
    "a LoHa": lambda: beside(written("qwen-image", QWEN, "", "alpha", DOWN_UP),
                            **behind("img_in.", hada_w1_a=(12, R), hada_w1_b=(R, 4), hada_w2_a=(12, R),
                                     hada_w2_b=(R, 4))),
}  # fmt: skip
Z = r"(layers|noise_refiner|context_refiner)\.0\.(attention\.to_(v|out\.0)|feed_forward\.w[12]|adaLN_modulation\.0)"
Z_ENDS = r"all_(x_embedder|final_layer).*|t_embedder.mlp.2|cap_embedder.1"
DOTS = ("lora.down.weight", "lora.up.weight")
DD = f"{D}diffusers_"


def z(which: str, spelling: str, how: str = "", ends: tuple[str, str] = AB) -> Any:
    return lambda: written("z-image", which, spelling, how, ends)


def z_beside(which: str, spelling: str, ends: tuple[str, str], **more: tuple[int, ...]) -> Any:
    return lambda: beside(written("z-image", which, spelling, "alpha", ends), **more)


def lokr(stem: str, alpha: str = "") -> dict[str, tuple[int, ...]]:
    keys: dict[str, tuple[int, ...]] = {f"{stem}.lokr_w1": (2, 2), f"{stem}.lokr_w2": (12, 12)}
    return keys | ({f"{stem}.alpha": ()} if alpha else {})


QKV_OF_COMFYUI = f"{D}layers.0.attention.qkv."
Z_IMAGE: dict[str, Any] = {
    "diffusers' own": z(f"{Z}|{Z_ENDS}", T),
    "diffusers' own, an alpha": z(Z, T, "alpha"),
    "ai-toolkit": z(f"{Z}|{Z_ENDS}", DD),
    "ai-toolkit, an alpha": z(Z, DD, "alpha"),
    "DiffSynth": z(Z, "", "", DEFAULT),
    "no prefix, no alpha": z(Z, ""),
    "no prefix, an alpha": z(f"{Z}|{Z_ENDS}", "", "alpha", DOWN_UP),
    "musubi-tuner": z(f"{Z}|{Z_ENDS}", "lora_unet_", "alpha", DOWN_UP),
    "musubi-tuner, no alpha": z(Z, "lora_unet_", "", DOWN_UP),
    "dots": z(Z, DD, "alpha", DOTS),
    "A and B, then down and up": lambda: both(z(Z, DD)(), z("cap_embedder.1", DD, "", DOWN_UP)()),
    "a difference": z_beside(Z, DD, DOWN_UP, **{f"{D}cap_embedder.1.diff": (24, 8)}),
    "fused by ComfyUI": z_beside(Z.replace("v|", ""), DD, AB, **behind(
        QKV_OF_COMFYUI, lora_A__weight=(R, 24), lora_B__weight=(72, R))),
    "fused, down and up": z_beside(Z.replace("v|", ""), DD, DOWN_UP, **behind(
        QKV_OF_COMFYUI, lora_down__weight=(R, 24), lora_up__weight=(72, R))),
    "a LoKr beside": z_beside(Z, DD, AB, **lokr(f"{D}layers.0.attention.to_q")),
}  # fmt: skip
FILES = {"wan": WAN, "sd1.5": UNETS, "sdxl": XL, "hunyuanvideo": HUNYUAN, "krea2": KREA_2, "qwen-image": QWEN_IMAGE,
         "z-image": Z_IMAGE}  # fmt: skip
CASES = [(family, name) for family, files in FILES.items() for name in files]


def weights(pipe: Any) -> dict[tuple[str, str], Tensor]:
    return {(part, name): tensor.detach().clone() for part in PARTS if getattr(pipe, part, None) is not None
            for name, tensor in getattr(pipe, part).named_parameters()}  # fmt: skip


def happens(family: str, path: Path, tensors: Tensors, deltas: Tensors) -> str:
    """no: it raises, or nothing changes; yes: each layer has its update, and nothing of the file is left out."""
    pipe = PIPELINES[family]()
    before = weights(pipe)
    try:
        pipe.load_lora_weights(path.parent, weight_name=path.name)
        pipe.fuse_lora(components=[part for part in PARTS if getattr(pipe, part, None) is not None])
        pipe.unload_lora_weights()
    except Exception:  # whatever a library raises is a refusal
        return "no"
    after = weights(pipe)
    moved = {key for key, tensor in before.items() if not torch.equal(after[key], tensor)}
    network = "unet" if hasattr(pipe, "unet") else "transformer"
    right = all(
        torch.allclose(after[network, f"{name}.weight"] - before[network, f"{name}.weight"], delta, atol=1e-4)
        for name, delta in deltas.items()
    )
    known = {"lora_down", "lora_up", "lora_A", "lora_B", "lora", "alpha"}
    stems = {re.split(r"\.(?:lora[_.]|alpha)", key)[0] for key in tensors}
    more = any(not known & set(key.split(".")) for key in tensors) or len(stems) > len(deltas)
    return "no" if not moved else "yes" if right and not more else "partly"


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_verdict_on_diffusers_is_what_it_does(family: str, name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    tensors, deltas = FILES[family][name]()
    tensors = {key.replace("__", "."): tensor for key, tensor in tensors.items()}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, HEADERS.get(family))
    facts = facts_of(read_lora(path))
    assert facts is not None and facts.family == family
    (said,) = (one for one in verdicts(facts) if one.loader == "diffusers")
    assert said.takes == happens(family, path, tensors, deltas), said.reasons
    assert said.takes == "yes" or said.reasons


@pytest.mark.parametrize("how", ["", "flat"])
def test_the_verdict_on_peft_is_what_it_does(how: str, tmp_path: Path) -> None:
    tensors, _ = written("sd1.5", f"{ATTN}|{CONV}", "unet.")
    save_file(tensors, tmp_path / "in.safetensors")
    convert(str(tmp_path / "in.safetensors"), "peft", str(tmp_path / "out"))
    if how:
        from safetensors.torch import load_file

        weights_of = tmp_path / "out" / "adapter_model.safetensors"
        save_file({key: tensor.flatten(1).contiguous() for key, tensor in load_file(weights_of).items()}, weights_of)
    facts = facts_of(read_lora(tmp_path / "out"))
    assert facts is not None
    (said,) = (one for one in verdicts(facts) if one.loader == "PEFT")
    model = FAMILIES["sd1.5"].model()
    try:
        merged = peft.PeftModel.from_pretrained(model, str(tmp_path / "out")).merge_and_unload()
        found = "yes" if merged is not None else ""
    except Exception:
        found = "no"
    assert said.takes == found == ("no" if how else "yes"), said.reasons


@pytest.mark.parametrize("alpha", ["", ".alpha"])
@pytest.mark.parametrize("prefix", [D, T, ""])
def test_the_verdict_on_a_lokr_of_z_image_is_what_diffusers_does(prefix: str, alpha: str, tmp_path: Path) -> None:
    """It takes what ai-toolkit writes, which no other pipeline here does."""
    w1, w2 = torch.randn(2, 2), torch.randn(12, 12)
    stem = f"{prefix}layers.0.attention.to_q."
    tensors = {f"{stem}lokr_w1": w1, f"{stem}lokr_w2": w2} | ({f"{stem}alpha": torch.tensor(1.0)} if alpha else {})
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    facts = facts_of(read_lora(path))
    assert facts is not None and facts.family == "z-image"
    (said,) = (one for one in verdicts(facts) if one.loader == "diffusers")
    pipe = tiny_pipeline("z-image")
    layer = pipe.transformer.layers[0].attention.to_q
    before = layer.weight.detach().clone()
    try:
        pipe.load_lora_weights(tmp_path, weight_name=path.name)
        pipe.fuse_lora(components=["transformer"])
        pipe.unload_lora_weights()
    except Exception:  # whatever a library raises is a refusal
        pass
    moved = pipe.transformer.layers[0].attention.to_q.weight - before
    right = torch.allclose(moved, torch.kron(w1, w2), atol=1e-4)
    assert said.takes == ("yes" if right else "no"), said.reasons
    assert right or not moved.any()
