"""The loaders of image models as small programs, and the names of some layers, written by hand. Rules as `loaders.py`.

A program gets the modules of a model in the loader's own spelling. `NAMES` has by family and naming the modules, and
the layers whose rows each holds, by diffusers' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from tests.contracts.loaders import Applied, RefusedError, Shapes, Tensors, _product, comfyui, lightx2v, musubi

Names = Mapping[str, tuple[str, ...]]

KREA_2 = {
    "transformer_blocks.0.attn.to_q": "blocks.0.attn.wq",
    "transformer_blocks.0.attn.to_gate": "blocks.0.attn.gate",
    "transformer_blocks.0.attn.to_out.0": "blocks.0.attn.wo",
    "transformer_blocks.0.ff.gate": "blocks.0.mlp.gate",
    "text_fusion.layerwise_blocks.1.attn.to_v": "txtfusion.layerwise_blocks.1.attn.wv",
    "text_fusion.refiner_blocks.0.ff.down": "txtfusion.refiner_blocks.0.mlp.down",
    "text_fusion.projector": "txtfusion.projector",
    "img_in": "first",
    "time_embed.linear_2": "tmlp.2",
    "time_mod_proj": "tproj.1",
    "txt_in.linear_1": "txtmlp.1",
    "final_layer.linear": "last.linear",
}
"""diffusers' name -> the original one."""
_KREA_2_BACK = {theirs: mine for mine, theirs in KREA_2.items()}

QWEN_IMAGE = tuple(
    f"transformer_blocks.0.{layer}"
    for layer in ("attn.to_q", "attn.add_v_proj", "attn.to_add_out", "img_mod.1", "txt_mlp.net.0.proj", "img_mlp.net.2")
)
INNER = "transformer_blocks.0.img_mlp"
GATE, UP = f"{INNER}.gate_layer", f"{INNER}.proj"
QWEN_IMAGE_21 = ("transformer_blocks.0.attn.to_k", "modulation.1", "txt_in.in_layer", f"{INNER}.out")

Z_Q, Z_K, Z_V = (f"layers.0.attention.to_{letter}" for letter in "qkv")
Z_IMAGE = {
    "layers.0.attention.to_out.0": "layers.0.attention.out",
    "layers.0.feed_forward.w1": "layers.0.feed_forward.w1",
    "noise_refiner.1.adaLN_modulation.0": "noise_refiner.1.adaLN_modulation.0",
    "context_refiner.0.feed_forward.w2": "context_refiner.0.feed_forward.w2",
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1.linear": "final_layer.linear",
}
"""diffusers' name -> ComfyUI's."""
_Z_BACK = {theirs: mine for mine, theirs in Z_IMAGE.items()}

NAMES: dict[str, dict[str, Names]] = {
    "krea2": {
        "diffusers": {name: (name,) for name in KREA_2},
        "original": {theirs: (mine,) for mine, theirs in KREA_2.items()},
    },
    "z-image": {
        "diffusers": {name: (name,) for name in (Z_Q, Z_K, Z_V, *Z_IMAGE)},
        "comfy": {theirs: (mine,) for mine, theirs in Z_IMAGE.items()} | {"layers.0.attention.qkv": (Z_Q, Z_K, Z_V)},
    },
    "qwen-image": {"diffusers": {name: (name,) for name in QWEN_IMAGE}},
    "qwen-image-2.1": {
        "diffusers": {name: (name,) for name in (*QWEN_IMAGE_21, GATE, UP)},
        "comfy": {name: (name,) for name in QWEN_IMAGE_21} | {f"{INNER}.gate_up": (GATE, UP)},
    },
}


def comfyui_image(shapes: Shapes, tensors: Tensors, names: Mapping[str, str]) -> Applied:
    """ComfyUI's image models: `names` are diffusers' for its own.

    comfy/lora.py `model_lora_keys_unet` for Krea2: diffusers' names behind `diffusion_model.`, `transformer.` and
    nothing, flattened behind `lycoris_`, beside its own as for any model.
    """

    def stems(module: str) -> tuple[str, ...]:
        theirs, flat = names[module], module.replace(".", "_")
        own = (f"diffusion_model.{module}", f"lora_unet_{flat}")
        return (
            *own,
            f"diffusion_model.{theirs}",
            f"transformer.{theirs}",
            theirs,
            "lycoris_" + theirs.replace(".", "_"),
        )

    return comfyui(shapes, tensors, stems)


def comfyui_z_image(shapes: Shapes, tensors: Tensors) -> Applied:
    """ComfyUI's Z-Image: diffusers' names as for Krea 2, of which q, k and v are thirds of its `qkv`.

    comfy/utils.py `z_image_to_diffusers`.
    """
    fused = "layers.0.attention.qkv"
    result = comfyui_image({name: shapes[name] for name in shapes if name != fused}, tensors, _Z_BACK)
    own = comfyui({fused: shapes[fused]}, tensors)
    out, inn = shapes[fused]
    thirds = dict.fromkeys((Z_Q, Z_K, Z_V), (out // 3, inn))
    more = comfyui_image(thirds, tensors, {name: name for name in thirds})
    if more.added:  # its own names of them are none
        known = {name for name in more.added if f"lora_unet_{name.replace('.', '_')}.lora_down.weight" not in tensors}
        parts = [more.added[name] if name in known else torch.zeros(size).double() for name, size in thirds.items()]
        result.added |= {fused: torch.cat(parts)} if known else {}
    result.added |= own.added
    return result


def wan2gp_z_image(shapes: Shapes, tensors: Tensors) -> Applied:
    """Wan2GP's Z-Image respells endings where the first key has them: z_image_transformer2d.py `preprocess_loras`."""
    first = next(iter(tensors))
    if ".default." not in first and ".lora." not in first:
        return mmgp(shapes, tensors)
    named = {key.replace(".default.", ".").replace(".lora.", ".lora_"): tensor for key, tensor in tensors.items()}
    return mmgp(shapes, named)


def comfyui_qwen(shapes: Shapes, tensors: Tensors) -> Applied:
    """ComfyUI's Qwen-Image, both: also without prefix, behind `transformer.`, flattened behind `lycoris_`.

    comfy/lora.py `model_lora_keys_unet` for QwenImage; of 2.1's `gate_up` these address the halves, the gate first.
    """
    halves = {}
    for module, shape in shapes.items():
        names = (GATE, UP) if module.endswith("img_mlp.gate_up") else (module,)
        halves |= {name: (shape[0] // len(names), *shape[1:]) for name in names}

    def apart(name: str) -> tuple[str, ...]:
        return f"transformer.{name}", name, "lycoris_" + name.replace(".", "_")

    result, more = comfyui(shapes, tensors), comfyui(halves, tensors, apart)
    for module in shapes:
        if not module.endswith("img_mlp.gate_up"):
            result.added |= {module: more.added[module]} if module in more.added else {}
        elif GATE in more.added or UP in more.added:
            parts = [more.added.get(name, torch.zeros(halves[name]).double()) for name in (GATE, UP)]
            result.added[module] = torch.cat(parts)
    return result


def wan2gp_qwen(shapes: Shapes, tensors: Tensors) -> Applied:
    """Wan2GP's Qwen-Image respells by the first key: models/qwen/transformer_qwenimage.py `preprocess_loras`."""
    named = {
        key.replace(".lora.", ".lora_").replace(".default.weight", ".weight"): tensor for key, tensor in tensors.items()
    }
    first, flat = next(iter(tensors)), "lora_unet_transformer_blocks"
    if first.startswith(flat):
        respelled = {}
        for key, tensor in named.items():
            new = "diffusion_model.transformer_blocks." + key[len(flat) + 1 :]
            for part in ("attn", "img_mlp", "txt_mlp", "img_mod", "txt_mod"):
                new = new.replace(f"_{part}_", f".{part}.")
            for old, dotted in (("_0_", ".0."), ("_0.", ".0."), ("_1.", ".1."), ("_2.", ".2.")):
                new = new.replace(old, dotted)
            respelled[new] = tensor
        named = respelled
    elif first.startswith("transformer_blocks"):
        named = {f"diffusion_model.{key}": value for key, value in named.items() if key.startswith("transformer_block")}
    return mmgp(shapes, named)


def mmgp(shapes: Shapes, tensors: Tensors) -> Applied:
    """Wan2GP's library: one prefix is cut off, every key must be a factor, an alpha or a difference of a known module.

    mmgp's offload.py `load_loras_into_model`.
    """
    result, named = Applied(), dict(tensors)
    prefix = next(iter(named)).partition(".")[0] + "."
    if prefix in ("diffusion_model.", "transformer."):
        result.unused = [key for key in named if not key.startswith(prefix)]
        named = {key[len(prefix) :]: tensor for key, tensor in named.items() if key.startswith(prefix)}
    halves: dict[str, dict[str, Tensor]] = {}
    renamed = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    endings = {".default.weight": ".weight", ".lora.down.weight": ".lora_down.weight",
               ".lora.up.weight": ".lora_up.weight"}  # fmt: skip
    for key, tensor in named.items():
        for old, new in endings.items():
            key = key.removesuffix(old) + new if key.endswith(old) else key
        if key.endswith((".alpha", ".diff", ".diff_b", ".dora_scale", ".lokr_w1", ".lokr_w2")):
            module, part = key.rpartition(".")[0], key.rpartition(".")[2]
        else:
            at = key.rfind(".lora_")
            module, part = key[:at], renamed.get(key[at + 1 :], key[at + 1 :])
            if at <= 0 or part not in ("lora_A.weight", "lora_B.weight"):
                raise RefusedError(f"contains non Lora keys: {key}")
        if part != "alpha" and module not in shapes:
            raise RefusedError(f"contains unexpected module keys: {key}")
        halves.setdefault(module, {})[part] = tensor
    for module, parts in halves.items():
        if "lora_A.weight" in parts and "lora_B.weight" in parts:
            A = parts["lora_A.weight"]
            scale = float(parts["alpha"]) / A.shape[0] if "alpha" in parts else 1.0
            result.added[module] = _product(parts["lora_B.weight"], A, scale)
        elif "lokr_w1" in parts and "lokr_w2" in parts:
            result.added[module] = torch.kron(parts["lokr_w1"].double(), parts["lokr_w2"].double())
    return result


def wan2gp_krea2(shapes: Shapes, tensors: Tensors) -> Applied:
    """Wan2GP's Krea 2 respells diffusers' and flattened names first: models/krea2/krea2_mmdit.py `preprocess_loras`."""
    dotted = (
        ("final_layer", "last"), ("img_in", "first"), ("time_embed.linear_1", "tmlp.0"),
        ("time_embed.linear_2", "tmlp.2"), ("time_mod_proj", "tproj.1"), ("txt_in.linear_1", "txtmlp.1"),
        ("txt_in.linear_2", "txtmlp.3"), ("transformer_blocks", "blocks"), ("text_fusion", "txtfusion"),
        ("ff.", "mlp."), ("to_out.0", "wo"), ("to_out", "wo"), ("to_gate", "gate"), ("to_q", "wq"), ("to_k", "wk"),
        ("to_v", "wv"),
    )  # fmt: skip

    def respelled(key: str) -> str:
        if not key.startswith("lora_unet_"):
            for mine, theirs in dotted:
                key = key.replace(mine, theirs)
            return key
        path, _, suffix = key.removeprefix("lora_unet_").partition(".")
        for mine, theirs in dotted:
            flat = (mine.replace(".", "_"), theirs.replace(".", "_"))
            path = path.replace(*(("_ff_", "_mlp_") if mine == "ff." else flat))
        for name in ("layerwise_blocks", "refiner_blocks"):
            path = path.replace(name, name.replace("_", "-"))
        return f"{path.replace('_', '.').replace('-', '_')}.{suffix}"

    return mmgp(shapes, {respelled(key): tensor for key, tensor in tensors.items()})


PROGRAMS = {
    ("krea2", "ComfyUI"): (partial(comfyui_image, names=_KREA_2_BACK), "original", "comfy"),
    ("krea2", "musubi-tuner"): (musubi, "original", "kohya"),
    ("krea2", "Wan2GP"): (wan2gp_krea2, "original", "comfy"),
    ("qwen-image", "ComfyUI"): (comfyui_qwen, "diffusers", "comfy"),
    ("qwen-image", "musubi-tuner"): (musubi, "diffusers", "kohya"),
    ("qwen-image", "LightX2V"): (lightx2v, "diffusers", "comfy"),
    ("qwen-image", "Wan2GP"): (wan2gp_qwen, "diffusers", "comfy"),
    ("qwen-image-2.1", "ComfyUI"): (comfyui_qwen, "comfy", "comfy"),
    ("z-image", "ComfyUI"): (comfyui_z_image, "comfy", "comfy"),
    ("z-image", "musubi-tuner"): (musubi, "diffusers", "kohya"),
    ("z-image", "LightX2V"): (lightx2v, "diffusers", "comfy"),
    ("z-image", "Wan2GP"): (wan2gp_z_image, "diffusers", "comfy"),
}
"""(family, loader) -> the program, the naming that its model has, and the format of ours that it takes."""
