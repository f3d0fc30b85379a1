"""The loaders of image models as small programs, and the names of some layers, written by hand. Rules as `loaders.py`.

A program gets the modules of a model in the loader's own spelling. `NAMES` has by family and naming the modules, and
the layers whose rows each holds, by diffusers' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from tests.contracts.loaders import Applied, RefusedError, Shapes, Tensors, _product, comfyui, musubi

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

NAMES: dict[str, dict[str, Names]] = {
    "krea2": {
        "diffusers": {name: (name,) for name in KREA_2},
        "original": {theirs: (mine,) for mine, theirs in KREA_2.items()},
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
    for key, tensor in named.items():
        if key.endswith((".alpha", ".diff", ".diff_b", ".dora_scale")):
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
}
"""(family, loader) -> the program, the naming that its model has, and the format of ours that it takes."""
