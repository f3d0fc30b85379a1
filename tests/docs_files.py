"""The files that the documentation's commands name, at a tiny size; and the Hub's cache with the models of the presets.

One meaning for each name, on every page: `style.safetensors` is a LoRA of Wan, `wan/` the pipeline that it was trained
on, `fastwan/` the one distilled from it, and so on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from loraport.files.presets.table import ACCELERATORS, PRESETS
from tests import tiny
from tests.compare import pipelines as whole_pipelines
from tests.compare.pipelines import with_vae
from tests.evaluation import clips
from tests.families import sdxl_and_pruned, write_pipeline
from tests.parametrizations import forms
from tests.sampling import pipelines

ROOT = Path(__file__).parents[1]
COMMIT = "a" * 40
NOISES = ("high_noise", "low_noise")


def write_inputs(folder: Path) -> None:
    """Write every file and folder that a page takes as given."""
    state = tiny.tiny_state(0)
    base = _network(state)
    clips.write_manifest(folder / "comparison", clips.NOISES, prompts=2)
    clips.write_columns(folder / "clips", {"wan-style": 0.0, "fastwan-style": 0.1, "fastwan-moved": 0.05})
    pipelines.write_pipeline(folder / "wan", base)
    pipelines.as_fastvideo(pipelines.write_pipeline(folder / "fastwan", pipelines.drifted(base, 0.1)))
    fast = pipelines.drifted(base, 0.1)
    whole_pipelines.write_wan(folder / "fast", fast)
    whole_pipelines.write_wan(folder / "fast22", fast, second=pipelines.drifted(base, 0.1, seed=6))
    for name in ("wan", "fastwan"):
        with_vae(folder / name)
    for seed, name in enumerate(("style", "noir", "retro", "style-14b", "style_high_noise", "style_low_noise"), 2):
        tiny.write_lora(folder / f"{name}.safetensors", _few(state, seed))
    tiny.write_lora(folder / "accelerator.safetensors", _few(state, 9))
    for name in ("anna/lora", "ben/lora"):
        (folder / "loras" / name).parent.mkdir(parents=True)
        tiny.write_lora(folder / "loras" / f"{name}.safetensors", _few(state, len(name)))
    how_to = (ROOT / "docs/how-to/many-loras.md").read_text(encoding="utf-8")
    (folder / "jobs.jsonl").write_text(how_to.partition("```json\n")[2].partition("```")[0])
    shutil.copy(ROOT / "lab/src/loraport_lab/weights/adapters/neon.safetensors", folder / "moved.safetensors")
    half = {name: tensor.half() for name, tensor in state.items()}
    tiny.write_original(folder / "wan2.1_t2v_1.3B_fp16.safetensors", half)
    _rolling_forcing(folder / "rolling_forcing_dmd.pt", state)
    _experts(folder / "Wan2.2-T2V-A14B", state)
    _experts(folder / "lightning", tiny.drifted(state, 5))
    _sdxl_lora(folder / "sdxl-style.safetensors")
    h3 = forms.full()
    save_file(h3, folder / "h3-full.safetensors")
    save_file(forms.pruned(h3), folder / "h3-pruned.safetensors")
    forms.write_lora(folder / "h3-style.safetensors", forms.WIDTH)


def write_hub(cache: Path) -> None:
    """Write the repositories of the presets that the pages name into a cache of the Hub, as its client keeps them."""
    wan = tiny.tiny_state(0)
    near = tiny.drifted(wan, 3)
    source, target, _ = sdxl_and_pruned()
    contents: dict[str, Callable[[Path], object]] = {
        "wan2.1-t2v-1.3b": lambda root: tiny.write_diffusers(root, wan, shards=2),
        "wan2.1-t2v-14b": lambda root: tiny.write_diffusers(root, wan, shards=3),
        "fastwan2.1-t2v-1.3b": lambda root: tiny.write_diffusers(root, near),
        "rolling-forcing": lambda root: _rolling_forcing(root / "checkpoints" / "rolling_forcing_dmd.pt", near),
        "krea-realtime-14b": lambda root: _krea(root, near),
        "wan2.2-i2v-a14b-high": lambda root: _experts(root, wan),
        "lightx2v-wan2.2-i2v-a14b-high": lambda root: [
            tiny.write_original(root / f"wan2.2_i2v_A14b_{noise}_lightx2v_4step.safetensors", near) for noise in NOISES
        ],
        "sdxl": lambda root: write_pipeline(root, source.state_dict(), "unet", "StableDiffusionXLPipeline"),
        "ssd-1b": lambda root: write_pipeline(root, target.state_dict(), "unet", "StableDiffusionXLPipeline"),
    }
    for name, write in contents.items():
        write(_snapshot(cache, PRESETS[name].repo))
    for name in ("lightx2v-lora-wan2.1-t2v-14b", "longlive-plug-wan2.1-t2v-14b"):
        for seed, (place, _) in enumerate(ACCELERATORS[name].files, 30):
            where, _, inside = place.partition(":")
            repo, _, revision = where.partition("@")
            file = _snapshot(cache, repo, revision or COMMIT) / (inside or "adapter_model.safetensors")
            tiny.write_lora(file, _few(wan, seed))


def _snapshot(cache: Path, repo: str, commit: str = COMMIT) -> Path:
    """Make a repository of the Hub's cache with one commit, which `main` names, and return its folder."""
    repository = cache / f"models--{repo.replace('/', '--')}"
    root = repository / "snapshots" / commit
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    root.mkdir(parents=True)
    return root


def _few(state: tiny.State, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A LoRA on a square, a tall and a wide layer."""
    found = tiny.lora_factors(state, seed)
    return {name: found[name] for name in ("blocks.0.self_attn.q", "blocks.1.ffn.0", "blocks.1.ffn.2")}


def _network(state: tiny.State) -> WanTransformer3DModel:
    """A network of diffusers' class with the weights of the state, wherever they fit."""
    network, given = pipelines.tiny_transformer(0), tiny.in_diffusers_names(state)
    own = network.state_dict()
    network.load_state_dict({name: given[name] if given[name].shape == W.shape else W for name, W in own.items()})
    return network


def _krea(root: Path, state: tiny.State) -> None:
    tiny.write_original(root / PRESETS["krea-realtime-14b"].inside, state, "model.")


def _rolling_forcing(path: Path, state: tiny.State) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny.write_pickle(path, {"generator": tiny.drifted(state, 7), "generator_ema": tiny.drifted(state, 8)})


def _experts(folder: Path, state: tiny.State) -> None:
    for seed, noise in enumerate(NOISES, 20):
        tiny.write_shards(folder / f"{noise}_model", tiny.drifted(state, seed))


def _sdxl_lora(path: Path) -> None:
    """A LoRA of diffusers' names on SDXL's self-attention."""
    source, _, _ = sdxl_and_pruned()
    generator, tensors = torch.Generator().manual_seed(4), {}
    for name, module in source.named_modules():
        if isinstance(module, torch.nn.Linear) and "attn1" in name:
            out, inn = module.weight.shape
            tensors[f"unet.{name}.lora_A.weight"] = 0.1 * torch.randn(2, inn, generator=generator)
            tensors[f"unet.{name}.lora_B.weight"] = 0.1 * torch.randn(out, 2, generator=generator)
    save_file(tensors, path)
