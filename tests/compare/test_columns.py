"""Every column of every family is, to the bit, what diffusers' own pipeline and loader make of it alone."""

import json
from dataclasses import dataclass, replace

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("av")
pytest.importorskip("transformers")

from loraport.clips.read import read_clip
from loraport.compare.grid.requests import Comparison, Course
from loraport.compare.pipelines.kinds import as_bytes
from loraport.compare.run import compare
from loraport.sampling.network import aligned
from tests.compare.pipelines import write_pairs

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Family:
    """How a family is sampled here."""

    course: Course
    layers: str
    """Part of the names of the layers that the LoRA is on."""
    prefix: str = "transformer"
    encoders: bool = False


VIDEO = Course(frames=5, height=32, width=32, source_steps=3, source_guidance=3.0, target_steps=2, negative="a dog")
FAMILIES = {
    "wan": Family(VIDEO, "attn1.to_q"),
    "wan2.2": Family(VIDEO, "attn1.to_q"),
    "anyflow": Family(VIDEO, "attn1.to_q"),
    "hunyuan": Family(Course(3, 16, 16, 3, 3.0, 2), "attn.to_q"),
    "sdxl": Family(Course(None, 32, 32, 3, 3.0, 2, 2.0), "attn1.to_q", "unet", encoders=True),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pipelines"))


def network_of(folder, part):
    return load_file(next((folder / part).glob("*.safetensors")))


def write_lora(path, folder, family, seed=3, rank=2):
    """A LoRA as diffusers writes it, with an alpha in its header's place: none, so that the scale is 1."""
    generator, state = torch.Generator().manual_seed(seed), {}
    weights = {family.prefix: network_of(folder, family.prefix)}
    if family.encoders:
        weights |= {part: network_of(folder, part) for part in ("text_encoder", "text_encoder_2")}
    for part, tensors in weights.items():
        for name, W in tensors.items():
            layer = name.removesuffix(".weight")
            if W.ndim == 2 and (family.layers if part == family.prefix else "q_proj") in layer:
                A = torch.randn(rank, W.shape[1], generator=generator) / W.shape[1] ** 0.5
                layer = layer if part == family.prefix or "text_model" in layer else f"text_model.{layer}"
                state[f"{part}.{layer}.lora_A.weight"] = A
                state[f"{part}.{layer}.lora_B.weight"] = 0.5 * torch.randn(W.shape[0], rank, generator=generator)
    save_file(state, path, metadata={"format": "pt", "modelspec.trigger_phrase": "style"})
    return path


def alone(folder, family, course, files, strengths, *, source, prompt, seed):
    """The frames of one clip by diffusers alone: its own pipeline, loader and call."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for number, file in enumerate(files):
        if hasattr(pipe, "load_lora_weights"):
            pipe.load_lora_weights(load_file(file), adapter_name=f"a{number}")
            if getattr(pipe, "transformer_2", None) is not None:
                pipe.load_lora_weights(load_file(file), adapter_name=f"a{number}", load_into_transformer_2=True)
        else:
            pipe.transformer.load_lora_adapter(load_file(file), prefix="transformer", adapter_name=f"a{number}")
    if files:
        target = pipe if hasattr(pipe, "set_adapters") else pipe.transformer
        target.set_adapters([f"a{number}" for number in range(len(files))], strengths)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            aligned(module)  # else the last bits depend on where in a file a weight lies
    steps, guidance = (
        (course.source_steps, course.source_guidance)
        if source
        else (course.target_steps, course.target_guidance or 1.0)
    )
    words = {"num_frames": course.frames} if course.frames else {}
    if hasattr(pipe, "guider"):
        pipe.guider = pipe.guider.new(guidance_scale=guidance)
    else:
        words["guidance_scale"] = guidance
    if guidance > 1 and course.negative:
        words["negative_prompt"] = course.negative
    made = pipe(
        prompt, generator=torch.Generator().manual_seed(seed), height=course.height, width=course.width,
        num_inference_steps=steps, output_type="np", **words,
    )  # fmt: skip
    return as_bytes(made.frames[0]) if course.frames else as_bytes(made.images)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_column_is_what_it_is_alone(name, pairs, tmp_path):
    family, (source, target) = FAMILIES[name], pairs[name]
    lora = write_lora(tmp_path / "lora.safetensors", source, family)
    other = write_lora(tmp_path / "other.safetensors", target, replace(family, layers="to_v"), seed=4)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\n")
    asked = Comparison(
        str(lora), str(source), str(target), tmp_path / "grid", ("core", f"{other}*0.5"), prompts=str(prompts), seeds=2,
        course=family.course,
    )  # fmt: skip
    result = compare(asked)
    facts = json.loads((tmp_path / "grid/manifest.json").read_text())
    names = [column["name"] for column in facts["columns"]]
    assert names == ["source", "source+lora", "target", "direct", "core", "other*0.5"]
    assert result.lost == () and len(facts["clips"]) == 6 * 2 and facts["sampling"]["same_noise"]
    assert [prompt["text"] for prompt in facts["prompts"]] == ["style, a red ball"]
    made = tmp_path / "grid/loras"
    two = name == "wan2.2"
    files = {
        "source+lora": [lora],
        "direct": [made / ("direct-high_noise.safetensors" if two else "direct.safetensors")],
        "core": [made / ("core-high_noise.safetensors" if two else "core.safetensors")],
        "other*0.5": [other],
    }
    seen = {}
    for row in facts["clips"]:
        if row["seed"] == 1:
            seen[row["column"]] = row, read_clip(tmp_path / "grid" / row["measure"]).frames
    for column, (row, frames) in seen.items():
        own = column in ("source", "source+lora")
        if two and column in ("core", "direct"):
            continue  # two files: below
        wanted = alone(
            source if own else target, family, family.course, files.get(column, []), [0.5 if "*" in column else 1.0],
            source=own, prompt="style, a red ball", seed=row["noise"],
        )  # fmt: skip
        assert np.array_equal(frames, wanted), column
    changed = [np.abs(seen[one][1].astype(int) - seen[other][1]).mean() for one, other in
               (("source", "source+lora"), ("target", "direct"), ("direct", "core"), ("source", "target"))]  # fmt: skip
    assert min(changed) > 0
