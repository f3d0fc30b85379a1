"""Every file that is written does in its loaders what it should; `inspect` says of any file what they do with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
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
from tests.contracts.loaders import LOADERS, Applied, RefusedError
from tests.dialects import CASES, SHAPES, Written, spelled, write

NAMES = {
    **{layer: layer for layer in SHAPES},
    **{spelled(layer, "diffusers"): layer for layer in SHAPES},
    **{spelled(layer, "fastvideo"): layer for layer in SHAPES},
}
ORIGINAL = dict(SHAPES)
MODELS = dict.fromkeys(LOADERS, ORIGINAL) | {"FastVideo": {name: SHAPES[layer] for name, layer in NAMES.items()}}

TAKEN = [
    ("comfy", "ComfyUI"),
    ("comfy", "Wan2GP"),
    ("comfy", "LightX2V"),
    ("comfy", "FastVideo"),
    ("comfy", "Krea"),
    ("comfy", "Rolling Forcing"),
    ("kohya", "ComfyUI"),
    ("kohya", "musubi-tuner"),
    ("kohya", "Wan2GP"),
]


def loaded(loader: str, path: Path) -> Applied:
    result = LOADERS[loader](MODELS[loader], load_file(path))
    return Applied({NAMES[name]: delta for name, delta in result.added.items()}, result.unused)


def right(applied: Applied, deltas: dict[str, Tensor]) -> set[str]:
    """The layers that the loader changes as it should."""
    return {
        layer
        for layer, delta in deltas.items()
        if layer in applied.added and float((applied.added[layer] - delta).norm()) <= 1e-5 * float(delta.norm())
    }


@pytest.fixture
def given(tmp_path: Path) -> Callable[[str], Written]:
    (tmp_path / "in").mkdir()
    return lambda case: write(CASES[case], tmp_path / "in")


@pytest.mark.parametrize("case", ["g1-header-patterns", "g3-rslora", "g4-alpha", "g5", "g10"])
@pytest.mark.parametrize(("format", "loader"), TAKEN)
def test_what_is_written_is_loaded_whole(given: Any, tmp_path: Path, case: str, format: str, loader: str) -> None:
    written = given(case)
    out = tmp_path / "out.safetensors"
    convert(str(written.path), format, str(out), dtype="fp32")
    applied = loaded(loader, out)
    assert right(applied, written.deltas) == set(SHAPES) == set(applied.added) and not applied.unused


def _renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


def _alpha_one(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.ones(()) if key.endswith(".alpha") else value for key, value in tensors.items()}


def _no_alpha(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if not key.endswith(".alpha")}


def _with_alpha(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    stems = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    return tensors | {f"{stem}.alpha": torch.ones(()) for stem in stems}


def _diffusers_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "diffusion_model." + spelled(layer, "diffusers") + ending: tensors[f"diffusion_model.{layer}{ending}"]
        for layer in SHAPES
        for ending in (".lora_A.weight", ".lora_B.weight")
    }


WRONG: list[tuple[str, str, Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = [
    # a file that is right but for one rule, and a loader that the rule is of
    ("comfy", "ComfyUI", _renamed("diffusion_model.", "transformer.")),
    ("comfy", "ComfyUI", _renamed("diffusion_model.", "")),
    ("comfy", "ComfyUI", _diffusers_names),
    ("comfy", "ComfyUI", _with_alpha),
    ("kohya", "ComfyUI", _alpha_one),
    ("kohya", "ComfyUI", _renamed("lora_unet_", "lora_unet__")),
    ("kohya", "ComfyUI", _renamed("_attn_", ".attn.")),
    ("comfy", "LightX2V", _renamed("diffusion_model.", "transformer.")),
    ("comfy", "Wan2GP", _renamed("diffusion_model.", "model.")),
    ("comfy", "Wan2GP", _diffusers_names),
    ("comfy", "Wan2GP", _with_alpha),
    ("kohya", "Wan2GP", _alpha_one),
    ("comfy", "Wan2GP", _renamed(".lora_A.", ".lora_A.default.")),
    ("comfy", "LightX2V", _diffusers_names),
    ("comfy", "LightX2V", _with_alpha),
    ("comfy", "FastVideo", _renamed("diffusion_model.", "transformer.")),
    ("comfy", "FastVideo", lambda tensors: _renamed("lora_A", "lora_down")(_renamed("lora_B", "lora_up")(tensors))),
    ("comfy", "Krea", _renamed("diffusion_model.", "transformer.")),
    ("comfy", "Krea", _with_alpha),
    ("comfy", "Rolling Forcing", _renamed("diffusion_model.", "generator.model.")),
    ("kohya", "musubi-tuner", _alpha_one),
    ("kohya", "musubi-tuner", _no_alpha),
    ("kohya", "musubi-tuner", lambda tensors: _renamed("lora_down", "lora_A")(_renamed("lora_up", "lora_B")(tensors))),
]


@pytest.mark.parametrize(("format", "loader", "spoil"), WRONG)
def test_a_file_that_breaks_one_rule_fails(given: Any, tmp_path: Path, format: str, loader: str, spoil: Any) -> None:
    written = given("g4-alpha")
    out = tmp_path / "out.safetensors"
    convert(str(written.path), format, str(out), dtype="fp32")
    assert right(loaded(loader, out), written.deltas) == set(SHAPES)
    save_file(spoil(load_file(out)), out)
    with contextlib.suppress(RefusedError):
        assert right(loaded(loader, out), written.deltas) < set(SHAPES)


EXTRA: dict[str, Tensor] = {"diffusion_model.blocks.0.norm3.diff": torch.ones(24)}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("case", CASES)
def test_inspect_says_what_a_loader_does(case: str, loader: str, tmp_path: Path) -> None:
    """yes: every layer as it should be; partly: some, or at another strength; no: none, or an error."""
    written = write(CASES[case], tmp_path)
    facts = facts_of(read_lora(written.path))
    assert facts is not None
    (said,) = [one for one in verdicts(facts) if one.loader == loader]
    path = written.path / "adapter_model.safetensors" if written.path.is_dir() else written.path
    try:
        applied = loaded(loader, path)
    except RefusedError:
        applied = Applied()
    done = right(applied, written.deltas)
    seen = "yes" if done == set(written.deltas) else "partly" if applied.added else "no"
    assert (said.takes, said.loader) == (seen, loader), said.reasons
    assert said.source.startswith("github.com/") and (said.takes == "yes" or said.reasons)


def test_every_loader_of_the_table_is_known_here_or_run_for_real() -> None:
    rows = [loader for loader in TABLE if "wan" in loader.spellings]
    assert {loader.name for loader in rows} == {*LOADERS, "diffusers", "PEFT"}
    assert {(loader.format, loader.name) for loader in rows if loader.name in LOADERS} <= set(TAKEN)
