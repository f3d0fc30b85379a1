"""HunyuanVideo-1.5 and the U-Nets: what is written does what it should in their loaders, and `inspect` says so."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraport.conversion import convert
from loraport.files.loaders.facts import facts_of
from loraport.files.loaders.table import LOADERS as TABLE
from loraport.files.loaders.table import verdicts
from loraport.files.lora.read import read_lora
from loraport.files.names.dialects import KOHYA_PAIR, PEFT_PAIR, XLABS_PAIR, Pair
from tests.contracts import images
from tests.contracts.loaders import (
    FLUX_1_PLACES,
    FLUX_2_PLACES,
    Applied,
    RefusedError,
    comfyui_flux,
    comfyui_hunyuan,
    comfyui_ltx,
    comfyui_unet,
    fastvideo_hunyuan,
    lightx2v,
    ltx_pipelines,
    musubi,
    sd_scripts,
    sd_scripts_flux,
)
from tests.families import HEADERS

WIDTH, RANK, ALPHA = 4, 2, 3.0
Names = Mapping[str, tuple[str, ...]]
"""Module of one naming -> the layers whose rows it holds, by diffusers' names. Written by hand, not by our tables."""

BLOCK, REFINER = "double_blocks.0", "txt_in.individual_token_refiner.blocks.0"
Q, K, V = (f"transformer_blocks.0.attn.to_{letter}" for letter in "qkv")
RQ, RK, RV = (f"context_embedder.token_refiner.refiner_blocks.0.attn.to_{letter}" for letter in "qkv")
PROJ, FC1, MOD = "transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.ff.net.0.proj", "norm_out.linear"
HUNYUAN: dict[str, Names] = {
    "diffusers": {name: (name,) for name in (Q, K, V, RQ, RK, RV, PROJ, FC1, MOD)},
    "original": {
        f"{BLOCK}.img_attn_q": (Q,),
        f"{BLOCK}.img_attn_k": (K,),
        f"{BLOCK}.img_attn_v": (V,),
        f"{REFINER}.self_attn_qkv": (RQ, RK, RV),
        f"{BLOCK}.img_attn_proj": (PROJ,),
        f"{BLOCK}.img_mlp.fc1": (FC1,),
        "final_layer.adaLN_modulation.1": (MOD,),
    },
    "comfy": {
        f"{BLOCK}.img_attn.qkv": (Q, K, V),
        f"{REFINER}.self_attn.qkv": (RQ, RK, RV),
        f"{BLOCK}.img_attn.proj": (PROJ,),
        f"{BLOCK}.img_mlp.0": (FC1,),
        "final_layer.adaLN_modulation.1": (MOD,),
    },
    "diffusion-pipe": {
        f"{BLOCK}.img_attn_qkv": (Q, K, V),
        f"{REFINER}.self_attn_qkv": (RQ, RK, RV),
        f"{BLOCK}.img_attn_proj": (PROJ,),
        f"{BLOCK}.img_mlp.fc1": (FC1,),
        "final_layer.adaLN_modulation.1": (MOD,),
    },
    "fastvideo": {
        f"{BLOCK}.img_attn_qkv": (Q, K, V),
        "txt_in.refiner_blocks.0.self_attn_qkv": (RQ, RK, RV),
        f"{BLOCK}.img_attn_proj": (PROJ,),
        f"{BLOCK}.img_mlp.fc_in": (FC1,),
        "final_layer.adaLN_modulation.linear": (MOD,),
    },
}
SINGLE = tuple(f"single_transformer_blocks.0.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
"""The layers of `linear1`: three of the width, one of four times the width."""
TIME = "time_text_embed.timestep_embedder.linear_1"
HUNYUAN_1: dict[str, Names] = {
    naming: dict(HUNYUAN[like])
    | {time: (TIME,)}
    | ({name: (name,) for name in SINGLE} if naming == "diffusers" else {"single_blocks.0.linear1": SINGLE})
    for naming, like, time in (
        ("diffusers", "diffusers", TIME),
        ("original", "diffusion-pipe", "time_in.mlp.0"),
        ("comfy", "comfy", "time_in.in_layer"),
        ("diffusion-pipe", "diffusion-pipe", "time_in.in_layer"),
    )
}
SWAPPED = {(naming, MOD) for naming in ("original", "comfy", "diffusion-pipe")}
LINEAR1, LINEAR_IN = "single_transformer_blocks.0.attn.to_qkv_mlp_proj", "transformer_blocks.0.ff.linear_in"
TO_OUT, SHARED = "single_transformer_blocks.0.attn.to_out", "double_stream_modulation_img.linear"
FLUX_2: dict[str, Names] = {
    "diffusers": {name: (name,) for name in (Q, K, V, PROJ, MOD, LINEAR1, LINEAR_IN, TO_OUT, SHARED)},
    "original": {
        f"{BLOCK}.img_attn.qkv": (Q, K, V),
        f"{BLOCK}.img_attn.proj": (PROJ,),
        f"{BLOCK}.img_mlp.0": (LINEAR_IN,),
        "single_blocks.0.linear1": (LINEAR1,),
        "single_blocks.0.linear2": (TO_OUT,),
        "double_stream_modulation_img.lin": (SHARED,),
        "final_layer.adaLN_modulation.1": (MOD,),
    },
}
LTX_SAME = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.audio_ff.net.2")
LTX_NAMES = {"adaln_single.linear": "time_embed.linear", "patchify_proj": "proj_in",
             "av_ca_v2a_gate_adaln_single.linear": "av_cross_attn_audio_v2a_gate.linear"}  # fmt: skip
LTX_2: dict[str, Names] = {
    "original": {name: (name,) for name in (*LTX_SAME, *LTX_NAMES)},
    "diffusers": {name: (name,) for name in LTX_SAME} | {mine: (theirs,) for theirs, mine in LTX_NAMES.items()},
}
GUIDANCE, EMBEDDER = "time_text_embed.guidance_embedder.linear_1", "x_embedder"
FLUX_1: dict[str, Names] = {
    "diffusers": {name: (name,) for name in (Q, K, V, PROJ, FC1, MOD, *SINGLE, GUIDANCE, EMBEDDER)},
    "original": {
        f"{BLOCK}.img_attn.qkv": (Q, K, V),
        f"{BLOCK}.img_attn.proj": (PROJ,),
        f"{BLOCK}.img_mlp.0": (FC1,),
        "single_blocks.0.linear1": SINGLE,
        "guidance_in.in_layer": (GUIDANCE,),
        "img_in": (EMBEDDER,),
        "final_layer.adaLN_modulation.1": (MOD,),
    },
    "xlabs": {"double_blocks.0.processor.qkv_lora1": (Q, K, V), "double_blocks.0.processor.proj_lora1": (PROJ,)},
}

UNET = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0": (
        "input_blocks.4.1.transformer_blocks.0.attn2.to_out.0"
    ),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v": "input_blocks.4.1.transformer_blocks.0.attn2.to_v",
    "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
    "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.2": "output_blocks.5.1.transformer_blocks.0.ff.net.2",
}
XL = UNET | {"add_embedding.linear_1": "label_emb.0.0"}


def unet_names(layers: Mapping[str, str]) -> dict[str, Names]:
    return {
        "diffusers": {name: (name,) for name in layers},
        "original": {theirs: (name,) for name, theirs in layers.items()},
    }


def shape_of(layer: str) -> tuple[int, ...]:
    if ".conv" in layer:
        return WIDTH, WIDTH, 3, 3
    rows = {FC1: 2, MOD: 2, SINGLE[3]: 4, LINEAR1: 9, LINEAR_IN: 6, SHARED: 6}
    return rows.get(layer, 1) * WIDTH, (4 if layer == TO_OUT else 1) * WIDTH


@dataclass(frozen=True)
class Program:
    """A loader, the naming that its model has, and the format of ours that it takes."""

    run: Callable[..., Applied]
    naming: str
    format: str | None


BACK, XL_BACK = ({theirs: name for name, theirs in layers.items()} for layers in (UNET, XL))
NAMES: dict[str, dict[str, Names]] = {
    "hunyuanvideo-1.5": HUNYUAN,
    "hunyuanvideo": HUNYUAN_1,
    "flux.1": FLUX_1,
    "flux.2": FLUX_2,
    "ltx-2": LTX_2,
    "sd1.5": unet_names(UNET),
    "sdxl": unet_names(XL),
    **images.NAMES,
}
PROGRAMS: dict[tuple[str, str], Program] = {
    ("hunyuanvideo-1.5", "ComfyUI"): Program(comfyui_hunyuan, "comfy", "comfy"),
    ("hunyuanvideo-1.5", "musubi-tuner"): Program(musubi, "original", "kohya"),
    ("hunyuanvideo-1.5", "FastVideo"): Program(fastvideo_hunyuan, "fastvideo", None),
    ("hunyuanvideo", "ComfyUI"): Program(comfyui_hunyuan, "comfy", "comfy"),
    ("hunyuanvideo", "musubi-tuner"): Program(musubi, "original", "kohya"),
    ("flux.1", "ComfyUI"): Program(partial(comfyui_flux, places=FLUX_1_PLACES), "original", "comfy"),
    ("flux.2", "ComfyUI"): Program(partial(comfyui_flux, places=FLUX_2_PLACES), "original", "comfy"),
    ("ltx-2", "ComfyUI"): Program(comfyui_ltx, "original", "comfy"),
    ("ltx-2", "ltx-pipelines"): Program(ltx_pipelines, "original", "comfy"),
    ("ltx-2", "LightX2V"): Program(lightx2v, "original", "comfy"),
    ("flux.2", "musubi-tuner"): Program(musubi, "original", "kohya"),
    ("flux.1", "musubi-tuner"): Program(musubi, "original", "kohya"),
    ("flux.1", "sd-scripts"): Program(sd_scripts_flux, "original", "kohya"),
    ("sd1.5", "ComfyUI"): Program(partial(comfyui_unet, names=BACK), "original", "kohya"),
    ("sdxl", "ComfyUI"): Program(partial(comfyui_unet, names=XL_BACK), "original", "kohya"),
    ("sd1.5", "sd-scripts"): Program(sd_scripts, "diffusers", "kohya"),
    ("sdxl", "sd-scripts"): Program(partial(sd_scripts, names=XL_BACK), "original", "kohya"),
    **{key: Program(*program) for key, program in images.PROGRAMS.items()},
}


def module_shape(layers: tuple[str, ...]) -> tuple[int, ...]:
    return (sum(shape_of(layer)[0] for layer in layers), *shape_of(layers[0])[1:])


def rolled(delta: Tensor) -> Tensor:
    first, second = delta.chunk(2)
    return torch.cat([second, first])


def build(family: str, naming: str, prefix: str, pair: Pair, alpha: str, path: Path) -> dict[str, Tensor]:
    """A file in one spelling; the updates by layer, in float64."""
    generator, tensors, deltas = torch.Generator().manual_seed(0), {}, {}
    for module, layers in NAMES[family][naming].items():
        out, inn, *kernel = module_shape(layers)
        A = torch.randn(RANK, inn, *kernel, generator=generator)
        B = torch.randn(out, RANK, *(1 for _ in kernel), generator=generator)
        stem = prefix + (module.replace(".", "_") if prefix.endswith("_") else module)
        tensors |= {stem + pair[0]: A, stem + pair[1]: B}
        if alpha:
            tensors[stem + alpha] = torch.tensor(ALPHA)
        delta = (ALPHA / RANK if alpha else 1.0) * (B.double().flatten(1) @ A.double().flatten(1))
        delta = rolled(delta) if (naming, layers[0]) in SWAPPED else delta
        deltas |= dict(zip(layers, delta.split([shape_of(layer)[0] for layer in layers]), strict=True))
    save_file(tensors, path, HEADERS.get(family))
    return deltas


def in_naming(family: str, naming: str, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same updates by the modules of another naming."""
    together = {}
    for module, layers in NAMES[family][naming].items():
        if deltas.keys().isdisjoint(layers):
            continue
        delta = torch.cat([deltas[layer] for layer in layers])
        together[module] = rolled(delta) if (naming, layers[0]) in SWAPPED else delta
    return together


def seen(family: str, loader: str, path: Path, deltas: Mapping[str, Tensor]) -> str:
    """yes, partly or no: what the program does with the file."""
    program = PROGRAMS[family, loader]
    shapes = {module: module_shape(layers) for module, layers in NAMES[family][program.naming].items()}
    try:
        added = program.run(shapes, load_file(path)).added
    except RefusedError:
        return "no"
    wanted = in_naming(family, program.naming, deltas)
    right = all(
        module in added and float((added[module] - delta).norm()) <= 1e-5 * float(delta.norm())
        for module, delta in wanted.items()
    )
    return "yes" if right else "partly" if added else "no"


def written_by_others() -> Iterator[tuple[str, str, str, Pair, str]]:
    """Every family in every naming, prefix and ending that somebody writes."""
    dotted, flat = ("diffusion_model.", "transformer.", "unet.", ""), ("lora_unet_", "lycoris_")
    for family, names in NAMES.items():
        if "xlabs" in names:
            yield from ((family, "xlabs", prefix, XLABS_PAIR, "") for prefix in ("", "diffusion_model."))
        names = {naming: some for naming, some in names.items() if naming != "xlabs"}
        for naming, prefix in itertools.product(names, dotted):
            for pair, alpha in ((PEFT_PAIR, ""), (PEFT_PAIR, ".alpha"), (KOHYA_PAIR, ".alpha")):
                yield family, naming, prefix, pair, alpha
        for naming, prefix, alpha in itertools.product(names, flat, ("", ".alpha")):
            yield family, naming, prefix, KOHYA_PAIR, alpha


@pytest.mark.parametrize("family", NAMES)
def test_inspect_says_what_a_loader_does(family: str, tmp_path: Path) -> None:
    """Over some hundred spellings; every answer occurs."""
    answers: dict[str, set[str]] = {}
    path = tmp_path / "x.safetensors"
    for _, naming, prefix, pair, alpha in (case for case in written_by_others() if case[0] == family):
        deltas = build(family, naming, prefix, pair, alpha, path)
        facts = facts_of(read_lora(path))
        assert facts is not None and facts.family == family
        for said in verdicts(facts):
            if (family, said.loader) not in PROGRAMS:
                continue
            happens = seen(family, said.loader, path, deltas)
            assert said.takes == happens, (said.loader, naming, prefix, pair, alpha, said.reasons)
            assert said.source.startswith("github.com/") and (said.takes == "yes" or said.reasons)
            answers.setdefault(said.loader, set()).add(happens)
    assert all({"no"} < found for found in answers.values()), answers


@pytest.mark.parametrize(("family", "loader"), [key for key, program in PROGRAMS.items() if program.format])
def test_what_is_written_is_loaded_whole(family: str, loader: str, tmp_path: Path) -> None:
    """From every naming; sd-scripts has no adapters outside the blocks."""
    program, path, out = PROGRAMS[family, loader], tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    for naming in NAMES[family]:
        pair, alpha = (XLABS_PAIR, "") if naming == "xlabs" else (PEFT_PAIR, ".alpha")
        deltas = build(family, naming, "", pair, alpha, path)
        convert(str(path), str(program.format), str(out), dtype="fp32")
        outside = loader == "sd-scripts" and (family == "sdxl" or (family == "flux.1" and naming != "xlabs"))
        expected = "partly" if outside else "yes"
        assert seen(family, loader, out, deltas) == expected, naming


SPOILED: list[tuple[str, str, Callable[[str], str]]] = [
    ("hunyuanvideo-1.5", "ComfyUI", lambda key: key.replace("attn.qkv", "attn_q")),
    ("hunyuanvideo-1.5", "ComfyUI", lambda key: key.replace("diffusion_model.", "")),
    ("hunyuanvideo-1.5", "musubi-tuner", lambda key: key.replace("img_mlp_fc1", "img_mlp_0")),
    ("flux.1", "ComfyUI", lambda key: key.replace("img_attn.qkv", "img_attn_qkv")),
    ("ltx-2", "ComfyUI", lambda key: key.replace("patchify_proj", "proj_in")),
    ("ltx-2", "ltx-pipelines", lambda key: key.replace("adaln_single", "time_embed")),
    ("ltx-2", "LightX2V", lambda key: key.replace("diffusion_model.", "transformer.")),
    ("flux.2", "ComfyUI", lambda key: key.replace("single_blocks", "single_block")),
    ("flux.2", "musubi-tuner", lambda key: key.replace("img_mlp_0", "img_mlp_fc1")),
    ("flux.1", "sd-scripts", lambda key: key.replace("linear1", "linear_1")),
    ("sd1.5", "ComfyUI", lambda key: key.replace("attentions_0", "attentions_9")),
    ("sdxl", "sd-scripts", lambda key: key.replace("lora_unet_", "unet.")),
    ("krea2", "ComfyUI", lambda key: key.replace("attn.gate", "attn.wgate")),
    ("krea2", "musubi-tuner", lambda key: key.replace("mlp_gate", "ff_gate")),
    ("krea2", "Wan2GP", lambda key: key.replace("txtfusion", "fusion")),
    ("qwen-image", "ComfyUI", lambda key: key.replace("img_mod.1", "img_mod.lin")),
    ("qwen-image", "musubi-tuner", lambda key: key.replace("lora_down", "lora_A").replace("lora_up", "lora_B")),
    ("qwen-image", "LightX2V", lambda key: key.replace("diffusion_model.", "transformer.")),
    ("qwen-image", "Wan2GP", lambda key: key.replace("to_add_out", "to_out_added")),
    ("qwen-image-2.1", "ComfyUI", lambda key: key.replace("gate_up", "up_gate")),
    ("z-image", "ComfyUI", lambda key: key.replace("attention.to_k", "attention.k")),
    ("z-image", "musubi-tuner", lambda key: key.replace("attention_to_q", "attention_qkv")),
    ("z-image", "LightX2V", lambda key: key.replace("diffusion_model.", "transformer.")),
    ("z-image", "Wan2GP", lambda key: key.replace("all_x_embedder.2-1", "x_embedder")),
]


@pytest.mark.parametrize(("family", "loader", "spoil"), SPOILED)
def test_a_file_that_breaks_one_rule_fails(
    family: str, loader: str, spoil: Callable[[str], str], tmp_path: Path
) -> None:
    program, path, out = PROGRAMS[family, loader], tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    deltas = build(family, "diffusers", "", PEFT_PAIR, "", path)
    convert(str(path), str(program.format), str(out), dtype="fp32")
    before = seen(family, loader, out, deltas)
    save_file({spoil(key): value for key, value in load_file(out).items()}, out)
    assert before != seen(family, loader, out, deltas) or before == "partly"
    assert seen(family, loader, out, deltas) != "yes"


def test_fused_modules_that_are_not_three_times_the_rank_would_be_seen(tmp_path: Path) -> None:
    """The weaker export that kohya-ss/sd-scripts#2204 describes: rank tripled, alpha left as it was."""
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    deltas = build("hunyuanvideo-1.5", "diffusers", "", PEFT_PAIR, "", path)
    convert(str(path), "comfy", str(out), dtype="fp32")
    tensors = load_file(out)
    fused = f"diffusion_model.{BLOCK}.img_attn.qkv"
    assert tensors[f"{fused}.lora_A.weight"].shape[0] == 3 * RANK
    save_file(tensors | {f"{fused}.alpha": torch.tensor(float(RANK))}, out)
    assert seen("hunyuanvideo-1.5", "ComfyUI", out, deltas) == "partly"


def test_every_row_of_the_table_is_a_program_here_or_run_for_real() -> None:
    others = {(family, row.name) for row in TABLE for family in row.spellings if family != "wan"}
    real: set[Any] = {(family, loader) for family in NAMES for loader in ("diffusers", "PEFT")}
    h3 = {("minimax-h3", loader) for loader in ("ComfyUI", "diffusers", "PEFT", "Wan2GP")}  # in test_minimax_h3
    assert others == {*PROGRAMS} | real | h3 | {("hunyuanvideo-1.5", "generate.py")}


@pytest.mark.parametrize("ending", ["lokr_w2", "lokr_w2_a"])
@pytest.mark.parametrize("family", images.NAMES)
def test_wan2gp_takes_a_lokr_of_whole_factors_alone(family: str, ending: str, tmp_path: Path) -> None:
    if (family, "Wan2GP") not in PROGRAMS:
        return
    program = PROGRAMS[family, "Wan2GP"]
    module = next(iter(NAMES[family][program.naming]))
    w1, w2 = torch.randn(2, 2), torch.randn(2, 2)
    tensors = {f"diffusion_model.{module}.lokr_w1": w1, f"diffusion_model.{module}.{ending}": w2}
    if ending == "lokr_w2_a":
        tensors[f"diffusion_model.{module}.lokr_w2_b"] = torch.randn(2, 2)
    others = [name for name in NAMES[family][program.naming] if name != module]
    for name in others:  # so that the family is told
        tensors[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(1, 4)
        tensors[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(4, 1)
    save_file(tensors, tmp_path / "x.safetensors")
    facts = facts_of(read_lora(tmp_path / "x.safetensors"))
    assert facts is not None and facts.family == family
    said = {one.loader: one.takes for one in verdicts(facts)}["Wan2GP"]
    try:
        added = program.run(dict.fromkeys((module, *others), (4, 4)), tensors).added
    except RefusedError:
        added = {}
    assert said == ("yes" if module in added else "no") == ("yes" if ending == "lokr_w2" else "no")
