"""Every column of every family is, to the bit, what diffusers' own pipeline and loader make of it alone."""

import json
import shutil
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
from loraport.compare.pipelines.kinds import KINDS, as_bytes, decode
from loraport.compare.run import compare
from loraport.sampling.network import aligned
from loraport.sampling.schedules import Renoising, find_sampler
from tests.compare.pipelines import write_pairs
from tests.sampling.pipelines import as_fastvideo

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
    "hunyuan": Family(Course(3, 16, 16, 2, 3.0, 1), "attn.to_q"),
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


def clips_of(folder):
    """{(column, prompt, seed): frames} of a grid, by its manifest."""
    facts = json.loads((folder / "manifest.json").read_text())
    return {
        (row["column"], row["prompt"], row["seed"]): (row, read_clip(folder / row["measure"]).frames)
        for row in facts["clips"]
    }


def test_both_experts_get_their_own_files(pairs, tmp_path):
    """Made for each expert, and loaded on each; a name that says so finds the other expert's file."""
    family, (source, target) = FAMILIES["wan2.2"], pairs["wan2.2"]
    high = write_lora(tmp_path / "style-high_noise.safetensors", source, family)
    low = write_lora(tmp_path / "style-low_noise.safetensors", source, family, seed=9)
    course = replace(family.course, batch=2)
    compare(
        Comparison(str(high), str(source), str(target), tmp_path / "grid", ("core",), False, first=2, course=course)
    )
    clips = clips_of(tmp_path / "grid")
    facts = json.loads((tmp_path / "grid/manifest.json").read_text())
    for column, own in (("source+lora", True), ("core", False)):
        files = (
            [high, low] if own else [tmp_path / f"grid/loras/core-{side}_noise.safetensors" for side in ("high", "low")]
        )
        pipe = diffusers.WanPipeline.from_pretrained(source if own else target, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        for file, second in zip(files, (False, True), strict=True):
            pipe.load_lora_weights(load_file(file), adapter_name="a", load_into_transformer_2=second)
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                aligned(module)
        rows = [clips[column, prompt["id"], 0][0] for prompt in facts["prompts"]]
        made = pipe(
            [prompt["text"] for prompt in facts["prompts"]], height=32, width=32, num_frames=5, output_type="latent",
            generator=[torch.Generator().manual_seed(row["noise"]) for row in rows],
            **(dict(num_inference_steps=3, guidance_scale=3.0, negative_prompt=["a dog"] * 2) if own else
               dict(num_inference_steps=2, guidance_scale=1.0)),
        )  # fmt: skip
        assert len({row["sha256"] for row in rows}) == 2
        for number, prompt in enumerate(facts["prompts"]):
            with torch.no_grad():
                frames = decode(KINDS["WanPipeline"], pipe, pipe.vae, made.frames[number : number + 1])[0]
            assert np.array_equal(clips[column, prompt["id"], 0][1], frames), column


def test_a_base_with_accelerators_has_all_adapters(pairs, tmp_path):
    family, (source, _) = FAMILIES["wan"], pairs["wan"]
    lora = write_lora(tmp_path / "lora.safetensors", source, family)
    fast = write_lora(tmp_path / "fast.safetensors", source, replace(family, layers="to_"), seed=8)
    other = write_lora(tmp_path / "other.safetensors", source, replace(family, layers="to_"), seed=12)
    place = f"source+{fast}*0.5+{other}*0.25"
    asked = Comparison(str(lora), str(source), place, tmp_path / "grid", ("core",), first=1, course=family.course)
    assert compare(asked).lost == ()
    clips = clips_of(tmp_path / "grid")
    text = json.loads((tmp_path / "grid/manifest.json").read_text())["prompts"][0]["text"]
    for column, files in (("target", []), ("direct", ["direct"]), ("core", ["core"])):
        row, frames = clips[column, "01", 0]
        loaded = [fast, other, *(tmp_path / f"grid/loras/{file}.safetensors" for file in files)]
        strengths = [0.5, 0.25, *(1.0 for _ in files)]
        wanted = alone(
            source, family, family.course, loaded, strengths, source=False, prompt=text, seed=row["noise"]
        )  # fmt: skip
        assert np.array_equal(frames, wanted), column


def test_a_network_alone_with_the_rest_from_a_pipeline_is_the_whole_pipeline(pairs, tmp_path):
    family, (source, target) = FAMILIES["wan"], pairs["wan"]
    lora = write_lora(tmp_path / "lora.safetensors", source, family)
    alone_file = tmp_path / "network.safetensors"
    save_file(network_of(target, "transformer"), alone_file)
    digests = []
    for name, place, pipeline in (
        ("whole", target, None),
        ("alone", alone_file, str(target)),
        ("rest", alone_file, None),
    ):
        course = replace(family.course, pipeline=pipeline)
        result = compare(Comparison(str(lora), str(source), str(place), tmp_path / name, (), first=1, course=course))
        digests.append({key: row["sha256"] for key, (row, _) in clips_of(tmp_path / name).items()})
        assert ("are the source's" in " ".join(result.notes)) == (name == "rest")
    assert digests[0] == digests[1] == digests[2]  # the source's scheduler, VAE and text encoder are the target's here


def test_a_target_that_adds_noise_again_gets_it_from_the_clips_own_generator(pairs, tmp_path):
    """FastVideo's class: at its timesteps, by the loop that the scores have, the noise of the source's clip first."""
    family, (source, target) = FAMILIES["wan"], pairs["wan"]
    fast = as_fastvideo(shutil.copytree(target, tmp_path / "fastwan"))
    lora = write_lora(tmp_path / "lora.safetensors", source, family)
    course = replace(family.course, target_steps=None)
    compare(Comparison(str(lora), str(source), str(fast), tmp_path / "grid", (), first=1, course=course))
    clips, sampler = clips_of(tmp_path / "grid"), find_sampler(fast, None, ())
    facts = json.loads((tmp_path / "grid/manifest.json").read_text())
    assert facts["sampling"]["target"]["scheduler"]["times"] == [1000, 757, 522]
    pipe = diffusers.WanPipeline.from_pretrained(target, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.transformer, pipe.text_encoder, pipe.vae):
        aligned(module)
    row, frames = clips["target", "01", 0]
    generator = torch.Generator().manual_seed(row["noise"])
    noise = torch.randn(1, 4, 2, 4, 4, generator=generator)
    pipe.scheduler = Renoising.of(sampler, [generator])
    made = pipe(
        facts["prompts"][0]["text"], latents=noise, height=32, width=32, num_frames=5, guidance_scale=1.0,
        num_inference_steps=3, output_type="np",
    )  # fmt: skip
    assert np.array_equal(frames, as_bytes(made.frames[0]))


@pytest.mark.parametrize("offload", ["model", "group", "disk"])
def test_offload_changes_no_picture(pairs, tmp_path, offload, plain):
    """To the bit, but for the disk: on a processor the last bits depend on where in a file a weight lies."""
    family, (source, target) = FAMILIES["wan"], pairs["wan"]
    lora = write_lora(tmp_path / "lora.safetensors", source, family)
    course = replace(family.course, offload=offload)
    compare(Comparison(str(lora), str(source), str(target), tmp_path / "grid", (), first=1, course=course))
    clips = clips_of(tmp_path / "grid")
    assert clips.keys() == plain.keys()
    for key, (row, frames) in clips.items():
        assert np.abs(frames.astype(int) - plain[key][1]).max() <= (offload == "disk"), key
        assert offload == "disk" or row["sha256"] == plain[key][0]["sha256"]


@pytest.fixture(scope="module")
def plain(pairs, tmp_path_factory):
    family, (source, target) = FAMILIES["wan"], pairs["wan"]
    folder = tmp_path_factory.mktemp("plain")
    lora = write_lora(folder / "lora.safetensors", source, family)
    compare(Comparison(str(lora), str(source), str(target), folder / "grid", (), first=1, course=family.course))
    return clips_of(folder / "grid")
