"""What other programs do with a LoRA file, each as a small program of ours: names and tensors in, merged updates out.

Written from the rules alone, one loader after the other, and not from our reader: so that a file that we misspell is
left out here as it would be there. Each rule cites where it can be read. Every program takes the module names and
shapes of a model in the loader's own spelling and the tensors of a file, and returns {module: what is added to its
weight} with a list of what it complained of. Loaders that refuse a file raise RefusedError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


class RefusedError(Exception):
    """The loader raises an error."""


@dataclass
class Applied:
    """What a loader adds, by module, and the keys that it says it did not use."""

    added: dict[str, Tensor] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


SEVEN = (
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_B", ".lora_A"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
)


_LIGHTX2V = ("diffusion_model.", "model.", "unet.")


def _product(up: Tensor, down: Tensor, scale: float) -> Tensor:
    return scale * (up.double().flatten(1) @ down.double().flatten(1))


Stems = Callable[[str], tuple[str, ...]]
"""What may stand before the endings of a module's keys."""


def _of_any_model(module: str) -> tuple[str, ...]:
    return f"diffusion_model.{module}", "lora_unet_" + module.replace(".", "_")


def _of_hunyuan(module: str) -> tuple[str, ...]:
    """The names of diffusion-pipe's LoRAs: what the model calls `_attn.qkv` is `_attn_qkv` there, and so on."""
    renamed = f"{module}."
    for mine, theirs in (
        ("_mod.lin.", "_mod.linear."),
        ("_attn.qkv.", "_attn_qkv."),
        ("_attn.proj.", "_attn_proj."),
        ("mlp.0.", "mlp.fc1."),
        ("mlp.2.", "mlp.fc2."),
    ):
        renamed = renamed.replace(mine, theirs)
    return (*_of_any_model(module), f"transformer.{renamed[:-1]}", f"diffusion_model.{renamed[:-1]}")


def comfyui_hunyuan(shapes: Shapes, tensors: Tensors) -> Applied:
    """ComfyUI's HunyuanVideo and HunyuanVideo15: its own fused names as for any model, and diffusion-pipe's."""
    return comfyui(shapes, tensors, _of_hunyuan)


Places = dict[str, tuple[str, int, int, int]]
"""A layer by diffusers' name -> (module, part, of how many equal blocks of rows, how many of them are its own)."""


def _flux_places(stream: str, names: tuple[str, str, str]) -> Places:
    return {f"transformer_blocks.0.attn.{name}": (f"double_blocks.0.{stream}_attn.qkv", part, 3, 1)
            for part, name in enumerate(names)}  # fmt: skip


FLUX_BOTH: Places = {
    **_flux_places("img", ("to_q", "to_k", "to_v")),
    **_flux_places("txt", ("add_q_proj", "add_k_proj", "add_v_proj")),
    "transformer_blocks.0.attn.to_out.0": ("double_blocks.0.img_attn.proj", 0, 1, 1),
    "transformer_blocks.0.attn.to_add_out": ("double_blocks.0.txt_attn.proj", 0, 1, 1),
    "x_embedder": ("img_in", 0, 1, 1),
    "context_embedder": ("txt_in", 0, 1, 1),
    "proj_out": ("final_layer.linear", 0, 1, 1),
    "norm_out.linear": ("final_layer.adaLN_modulation.1", 0, 1, 1),
}
FLUX_1_PLACES: Places = FLUX_BOTH | {
    "transformer_blocks.0.norm1.linear": ("double_blocks.0.img_mod.lin", 0, 1, 1),
    "transformer_blocks.0.ff.net.0.proj": ("double_blocks.0.img_mlp.0", 0, 1, 1),
    "transformer_blocks.0.ff_context.net.2": ("double_blocks.0.txt_mlp.2", 0, 1, 1),
    **{f"single_transformer_blocks.0.attn.to_{x}": ("single_blocks.0.linear1", part, 7, 1)
       for part, x in enumerate("qkv")},
    "single_transformer_blocks.0.proj_mlp": ("single_blocks.0.linear1", 3, 7, 4),
    "single_transformer_blocks.0.proj_out": ("single_blocks.0.linear2", 0, 1, 1),
    "time_text_embed.timestep_embedder.linear_1": ("time_in.in_layer", 0, 1, 1),
    "time_text_embed.guidance_embedder.linear_1": ("guidance_in.in_layer", 0, 1, 1),
    "time_text_embed.text_embedder.linear_1": ("vector_in.in_layer", 0, 1, 1),
}  # fmt: skip
FLUX_2_PLACES: Places = FLUX_BOTH | {
    "transformer_blocks.0.ff.linear_in": ("double_blocks.0.img_mlp.0", 0, 1, 1),
    "transformer_blocks.0.ff_context.linear_out": ("double_blocks.0.txt_mlp.2", 0, 1, 1),
    "single_transformer_blocks.0.attn.to_qkv_mlp_proj": ("single_blocks.0.linear1", 0, 1, 1),
    "single_transformer_blocks.0.attn.to_out": ("single_blocks.0.linear2", 0, 1, 1),
}


def comfyui_flux(shapes: Shapes, tensors: Tensors, places: Places) -> Applied:
    """ComfyUI's Flux: its own names as for any model, and diffusers' names behind four prefixes, where it has them.

    comfy/utils.py `flux_to_diffusers`: q, k and v, and in FLUX.1's single blocks the inner layer, are rows of a fused
    weight; the halves of the last modulation change places. A patch of such rows is added to them alone, and all the
    patches of a weight are added. FLUX.2 has no entry there for its shared modulations and its embedding of time.
    """
    result = comfyui(shapes, tensors)
    rows = {name: shapes[module][0] // of * span for name, (module, _, of, span) in places.items() if module in shapes}
    sliced = {name: (size, shapes[places[name][0]][1]) for name, size in rows.items()}

    def stems(name: str) -> tuple[str, ...]:
        flat = name.replace(".", "_")
        return f"transformer.{name}", f"lycoris_{flat}", f"lora_transformer_{flat}", name

    for name, delta in comfyui(sliced, tensors, stems).added.items():
        module, part, of, _ = places[name]
        start = shapes[module][0] // of * part
        whole = result.added.setdefault(module, torch.zeros(shapes[module], dtype=torch.float64))
        swapped = name == "norm_out.linear"
        whole[start : start + rows[name]] += torch.cat(delta.chunk(2)[::-1]) if swapped else delta
    return result


def comfyui_ltx(shapes: Shapes, tensors: Tensors) -> Applied:
    """ComfyUI's LTXV and LTXAV: as for any model, and its own names with nothing before them (DiffSynth's LoRAs)."""
    return comfyui(shapes, tensors, lambda module: (*_of_any_model(module), module))


def ltx_pipelines(shapes: Shapes, tensors: Tensors) -> Applied:
    """Lightricks' own: `diffusion_model.` taken off, strength times B times A, no alpha; other keys are passed over.

    packages/ltx-core/src/ltx_core/loader/fuse_loras.py `_prepare_deltas`, with the map LTXV_LORA_COMFY_RENAMING_MAP.
    """
    result = Applied()
    for module in shapes:
        for stem in (f"diffusion_model.{module}", module):
            up, down = f"{stem}.lora_B.weight", f"{stem}.lora_A.weight"
            if up in tensors and down in tensors:
                result.added[module] = _product(tensors[up], tensors[down], 1.0)
    return result


def sd_scripts_flux(shapes: Shapes, tensors: Tensors) -> Applied:
    """sd-scripts: adapters for the layers of both kinds of blocks, by the original names.

    networks/lora_flux.py `LoRANetwork`: every Linear of DoubleStreamBlock and SingleStreamBlock; else as for U-Nets.
    """
    inside = {
        module: shape for module, shape in shapes.items() if module.startswith(("double_blocks", "single_blocks"))
    }
    result = Applied()
    for module in inside:
        stem = "lora_unet_" + module.replace(".", "_")
        down, up, alpha = f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"
        if down in tensors and up in tensors:
            rank = tensors[down].shape[0]
            scale = float(tensors[alpha]) / rank if alpha in tensors else 1.0
            result.added[module] = _product(tensors[up], tensors[down], scale)
    return result


def comfyui_unet(shapes: Shapes, tensors: Tensors, names: Mapping[str, str]) -> Applied:
    """ComfyUI's U-Nets: `names` are diffusers' for its own. Dots of diffusers' attention are those of processors.

    Flattened behind `lora_unet_` and `lycoris_`, dotted behind `unet.` and nothing, `.to_` as `.processor.to_`, and
    `to_out.0` as `to_out`.
    """

    def stems(module: str) -> tuple[str, ...]:
        theirs = names[module]
        flat, dotted = theirs.replace(".", "_"), theirs.replace(".to_", ".processor.to_").removesuffix(".0")
        dotted = dotted if theirs.endswith(".to_out.0") else theirs.replace(".to_", ".processor.to_")
        return (*_of_any_model(module), f"lora_unet_{flat}", f"lycoris_{flat}", dotted, f"unet.{dotted}")

    return comfyui(shapes, tensors, stems)


def comfyui(shapes: Shapes, tensors: Tensors, stems: Stems = _of_any_model) -> Applied:
    """ComfyUI: the model's own names behind `diffusion_model.`, or flattened behind `lora_unet_`; all seven endings.

    comfy/lora.py `model_lora_keys_unet`, `load_lora`; comfy/weight_adapter/lora.py: alpha / rows of down, 1 where there
    is no alpha; the product is reshaped to the weight; a shape that does not fit, and a key that nothing uses, is
    logged and not raised. `.diff` is added to the weight.
    """
    result, used = Applied(), set()
    for module, shape in shapes.items():
        for stem in stems(module):
            alpha = tensors.get(f"{stem}.alpha")
            pair = next(((stem + up, stem + down) for up, down in SEVEN if stem + up in tensors), None)
            if pair is None and f"{stem}.diff" not in tensors:
                continue
            if pair is None:
                result.added[module] = tensors[f"{stem}.diff"].double().flatten(1)
                used.add(f"{stem}.diff")
                continue
            up, down = tensors[pair[0]], tensors[pair[1]]
            used |= {*pair, f"{stem}.alpha"}
            delta = _product(up, down, 1.0 if alpha is None else float(alpha) / down.shape[0])
            if delta.numel() == _numel(shape):
                result.added[module] = delta
    result.unused = sorted(set(tensors) - used)
    return result


def musubi(shapes: Shapes, tensors: Tensors) -> Applied:
    """musubi-tuner: the model's own names flattened behind `lora_unet_`, lora_down and lora_up, alpha / rows of down.

    src/musubi_tuner/utils/lora_utils.py `load_safetensors_with_lora_and_fp8`: other keys are warned of. Where a network
    is made from a file (src/musubi_tuner/networks/lora.py) a module without alpha has none to read: it must be there.
    """
    result, used = Applied(), set()
    for module in shapes:
        stem = "lora_unet_" + module.replace(".", "_")
        down, up, alpha = f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"
        if down not in tensors or up not in tensors:
            continue
        if alpha not in tensors:
            raise RefusedError(f"{alpha} is missing")
        result.added[module] = _product(tensors[up], tensors[down], float(tensors[alpha]) / tensors[down].shape[0])
        used |= {down, up, alpha}
    result.unused = sorted(set(tensors) - used)
    return result


def lightx2v(shapes: Shapes, tensors: Tensors) -> Applied:
    """LightX2V, merging: one of three prefixes is cut off, all seven endings, alpha where it is not 0; matrices only.

    lightx2v/utils/lora_loader.py: `_remove_prefixes`, `extract_lora_pair`, `apply_lora`; `.diff` is added as it is; a
    key of no module is passed over.
    """
    result, used = Applied(), set()
    for key in tensors:
        for up, down in SEVEN:
            stem = key.removesuffix(up)
            if not key.endswith(up) or stem + down not in tensors:
                continue
            module = _without(stem, _LIGHTX2V)
            B, A = tensors[key], tensors[stem + down]
            if module in shapes and B.dim() == 2 and A.dim() == 2:
                alpha = float(tensors.get(f"{stem}.alpha", 0.0))
                result.added[module] = _product(B, A, alpha / A.shape[0] if alpha else 1.0)
                used |= {key, stem + down, f"{stem}.alpha"}
            break
        module = _without(key.removesuffix(".diff"), _LIGHTX2V)
        if key.endswith(".diff") and module in shapes:
            result.added[module] = tensors[key].double().flatten(1)
            used.add(key)
    result.unused = sorted(set(tensors) - used)
    return result


def wan2gp(shapes: Shapes, tensors: Tensors) -> Applied:
    """Wan2GP: original names behind one of two prefixes or none, or kohya's inside the blocks; all keys or none.

    models/wan/modules/model.py `preprocess_loras` respells kohya's keys; mmgp's offload.py `load_loras_into_model` cuts
    off the first key's prefix, passes over what does not begin with it, and refuses the file for any ending or module
    that it does not know, and for factors of another width than the module's.
    """
    result, named = Applied(), dict(tensors)
    if next(iter(tensors), "").startswith("lora_unet_"):
        named = {}
        for key, tensor in tensors.items():
            new = key.replace("lora_unet_blocks_", "diffusion_model.blocks.")
            new = new.replace("lora_unet__blocks_", "diffusion_model.blocks.")
            for part in ("cross_attn", "self_attn", "ffn"):
                new = new.replace(f"_{part}_", f".{part}.")
            named[new.replace("lora_up", "lora_B").replace("lora_down", "lora_A")] = tensor
    prefix = next(iter(named)).partition(".")[0] + "."
    if prefix in ("diffusion_model.", "transformer."):
        result.unused = [key for key in named if not key.startswith(prefix)]
        named = {key[len(prefix) :]: tensor for key, tensor in named.items() if key.startswith(prefix)}
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in named.items():
        if key.endswith((".alpha", ".diff", ".diff_b", ".dora_scale")):
            module, part = key.rpartition(".")[0], key.rpartition(".")[2]
        else:
            at = key.rfind(".lora_")
            module, part = (
                key[:at],
                {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}.get(
                    key[at + 1 :], key[at + 1 :]
                ),
            )
            if at <= 0 or part not in ("lora_A.weight", "lora_B.weight"):
                raise RefusedError(f"contains non Lora keys: {key}")
        if part != "alpha" and module not in shapes:
            raise RefusedError(f"contains unexpected module keys: {key}")
        halves.setdefault(module, {})[part] = tensor
    for module, parts in halves.items():
        A, B = parts.get("lora_A.weight"), parts.get("lora_B.weight")
        if A is None or B is None:
            continue
        if A.shape[1] != shapes[module][1] or B.shape[0] != shapes[module][0]:
            raise RefusedError(f"{module}: dimension is not compatible")
        result.added[module] = _product(B, A, float(parts["alpha"]) / A.shape[0] if "alpha" in parts else 1.0)
    return result


def fastvideo(shapes: Shapes, tensors: Tensors) -> Applied:
    """FastVideo before mid-2026: `diffusion_model.` cut out, lora_A and lora_B only, `.lora_alpha` as a whole number.

    fastvideo/pipelines/lora_pipeline.py `set_lora_adapter`: every key is translated to the names of its model; here the
    shapes are under those of the original and of diffusers at once. `.alpha` is no factor and is ignored: the scale is
    1. A layer given twice is an error. Layers outside the blocks have no adapter ("embedder" is excluded).
    """
    result, used = Applied(), set()
    for key in tensors:
        stem = key.replace("diffusion_model.", "").removesuffix(".lora_B.weight")
        other = key.removesuffix(".lora_B.weight") + ".lora_A.weight"
        if not key.endswith(".lora_B.weight") or other not in tensors or stem not in shapes:
            continue
        if stem in result.added:
            raise RefusedError(f"{stem} already exists")
        if not stem.startswith("blocks."):
            continue
        A = tensors[other]
        alpha = tensors.get(key.removesuffix(".lora_B.weight") + ".lora_alpha")
        whole = A.shape[0] if alpha is None else int(alpha)
        result.added[stem] = _product(tensors[key], A, whole / A.shape[0] if whole else 1.0)
        used |= {key, other}
    result.unused = sorted(set(tensors) - used)
    return result


def sd_scripts(shapes: Shapes, tensors: Tensors, names: Mapping[str, str] | None = None) -> Applied:
    """sd-scripts: adapters for transformers, residual blocks and samplers, flattened behind `lora_unet_`, down and up.

    networks/lora.py `create_network_from_weights`, `LoRANetwork`: alpha / rows of down, 1 where there is no alpha. For
    SDXL, `names` are diffusers' for the original ones, which are translated. Other keys are passed over.
    """
    result, used = Applied(), set()
    for module in shapes:
        theirs = names[module] if names else module
        if not theirs.startswith(("down_blocks.", "mid_block.", "up_blocks.")):
            continue
        for stem in dict.fromkeys("lora_unet_" + name.replace(".", "_") for name in (module, theirs)):
            down, up, alpha = f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"
            if down in tensors and up in tensors:
                rank = tensors[down].shape[0]
                scale = float(tensors[alpha]) / rank if alpha in tensors else 1.0
                result.added[module] = _product(tensors[up], tensors[down], scale)
                used |= {down, up, alpha}
    result.unused = sorted(set(tensors) - used)
    return result


def fastvideo_hunyuan(shapes: Shapes, tensors: Tensors) -> Applied:
    """FastVideo's HunyuanVideo-1.5: the names that it runs with, fused; A and B; no adapters in `img_in` and the like.

    configs/models/dits/hunyuanvideo15.py `exclude_lora_layers`; the rest as for Wan.
    """
    result, used = Applied(), set()
    for module in shapes:
        for prefix in ("", "diffusion_model."):
            up, down, alpha = (f"{prefix}{module}.{end}" for end in ("lora_B.weight", "lora_A.weight", "lora_alpha"))
            excluded = any(part in module for part in ("img_in", "txt_in", "time_in", "vector_in"))
            if excluded or up not in tensors or down not in tensors:
                continue
            rank = tensors[down].shape[0]
            whole = int(tensors[alpha]) if alpha in tensors else rank
            result.added[module] = _product(tensors[up], tensors[down], whole / rank if whole else 1.0)
            used |= {up, down, alpha}
    result.unused = sorted(set(tensors) - used)
    return result


def _casa(prefixes: tuple[str, ...]) -> Callable[[Shapes, Tensors], Applied]:
    def load(shapes: Shapes, tensors: Tensors) -> Applied:
        """The merging loaders of the CASA repository, Krea/utils/lora.py and RollingForcing/utils/lora.py.

        One prefix is cut off, the first in their list that fits; lora_A / lora_B or lora_down / lora_up; `.alpha` or
        `.lora_alpha`, without which the scale is 1. What matches no parameter is counted and passed over.
        """
        result, used = Applied(), set()
        for key in tensors:
            for up, down in ((".lora_B.weight", ".lora_A.weight"), (".lora_up.weight", ".lora_down.weight")):
                stem = key.removesuffix(up)
                if not key.endswith(up) or stem + down not in tensors:
                    continue
                module, A = _without(stem, prefixes), tensors[stem + down]
                alpha = tensors.get(f"{stem}.alpha", tensors.get(f"{stem}.lora_alpha"))
                if module in shapes and len(shapes[module]) == 2:
                    scale = 1.0 if alpha is None else float(alpha) / A.shape[0]
                    result.added[module] = _product(tensors[key], A, scale)
                    used |= {key, stem + down, f"{stem}.alpha", f"{stem}.lora_alpha"}
        result.unused = sorted(set(tensors) - used)
        return result

    return load


krea = _casa(("diffusion_model.", "generator.model.", "generator.", "model.", "module."))
rolling_forcing = _casa(("diffusion_model.", "generator.", "generator.model.", "model.", "module."))

LOADERS: dict[str, Callable[[Shapes, Tensors], Applied]] = {
    "ComfyUI": comfyui,
    "musubi-tuner": musubi,
    "Wan2GP": wan2gp,
    "LightX2V": lightx2v,
    "FastVideo": fastvideo,
    "Krea": krea,
    "Rolling Forcing": rolling_forcing,
}


def _without(text: str, prefixes: tuple[str, ...]) -> str:
    return next((text[len(prefix) :] for prefix in prefixes if text.startswith(prefix)), text)


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
