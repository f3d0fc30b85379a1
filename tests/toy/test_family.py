"""The shipped weights: real formats, really trained, and the pair shows what it is meant to show."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from diffusers import WanTransformer3DModel
from peft import PeftConfig
from safetensors import safe_open

from loraport.errors import FileFormatError, MismatchError, SettingsError
from loraport.toy.adapters import attach
from loraport.toy.clips import STYLES, TINTS, draw_prompts, from_latents, render
from loraport.toy.demo import Column, run_demo
from loraport.toy.family import BASE, FAMILY, STUDENT, STYLE_FILES, adapter_path, oracle_path
from loraport.toy.judge import open_judge
from loraport.toy.measure import measure, psnr, tint
from loraport.toy.model import CONFIG, draw_noise, new_model, open_model
from loraport.toy.sample import sample_base, sample_student

CLIPS = 24
DRIFT = (0.2, 0.35)  # what docs/family.md says of ‖W_student − W_base‖ / ‖W_base‖, mean over the 40 matrices


@pytest.fixture(scope="module")
def base():
    return open_model("base")


@pytest.fixture(scope="module")
def drawn():
    generator = torch.Generator().manual_seed(77)
    return draw_prompts(CLIPS, generator), draw_noise(CLIPS, generator)


@pytest.fixture(scope="module")
def plain_samples(base, drawn):
    return from_latents(sample_base(base, *drawn)).clamp(-1, 1)


def means(clips, prompts, style="neon"):
    return {key: float(value.mean()) for key, value in measure(open_judge(), clips, prompts, style, None).items()}


@pytest.mark.parametrize("folder", [BASE, STUDENT])
def test_models_open_with_the_real_class(folder):
    model = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    for key, value in CONFIG.items():
        saved = model.config[key]
        assert (tuple(saved) if isinstance(value, tuple) else saved) == value, key
    assert 1e6 < sum(weight.numel() for weight in model.parameters()) < 3e6


def test_the_family_is_small_and_names_no_place_of_its_making():
    files = [path for path in FAMILY.rglob("*") if path.is_file()]
    assert files and sum(path.stat().st_size for path in files) < 10e6
    for path in files:
        if path.suffix == ".json":
            text = path.read_text()
        else:
            with safe_open(path, framework="pt") as opened:
                text = json.dumps(opened.metadata() or {})
        assert not re.search(r"/(work|tmp|home|root|Users)\b", text), path


def test_base_samples_are_what_was_asked_for(plain_samples, drawn):
    found = means(plain_samples, drawn[0])
    assert found["shape"] > 60 and found["colour"] > 80 and found["motion"] > 60


def test_an_untrained_model_fails_the_same_test(drawn):
    prompts, noise = drawn
    found = means(from_latents(sample_base(new_model(0), prompts, noise, steps=2)).clamp(-1, 1), prompts)
    assert found["shape"] < 60 and found["motion"] < 60


def test_the_judge_knows_clips_it_has_never_seen():
    generator = torch.Generator().manual_seed(123456)
    prompts = draw_prompts(64, generator)
    clips = render(prompts, generator)
    for name, style in STYLES.items():
        found = means(style(clips), prompts, name)
        assert found["style"] > 85 and found["shape"] > 90 and found["motion"] > 90, (name, found)
    assert means(clips, prompts, "retro")["style"] < 5


def test_student_drifted_as_far_as_documented():
    source, target = (
        load_file(folder / "transformer/diffusion_pytorch_model.safetensors") for folder in (BASE, STUDENT)
    )
    matrices = [name for name in source if name.startswith("blocks.") and source[name].ndim == 2]
    drifts = [float((target[n].float() - source[n].float()).norm() / source[n].float().norm()) for n in matrices]
    assert len(matrices) == 40
    assert DRIFT[0] < sum(drifts) / len(drifts) < DRIFT[1]


@pytest.mark.parametrize("style", STYLE_FILES)
def test_the_lora_gives_the_base_its_style(style, drawn, plain_samples):
    prompts, noise = (part[:8] for part in drawn)
    styled = attach(open_model("base"), adapter_path(style))
    shown = means(from_latents(sample_base(styled, prompts, noise)).clamp(-1, 1), prompts, style)
    assert shown["style"] > 75
    assert means(plain_samples[:8], prompts, style)["style"] < 10


@pytest.mark.parametrize("style", STYLE_FILES)
def test_scale_reaches_the_weights(style, base):
    """The file's alpha differs from its rank, and the loaded layer adds exactly alpha / rank times B A."""
    path = adapter_path(style)
    if path.is_dir():
        factors = load_file(path / "adapter_model.safetensors")
        prefix, config = "base_model.model.", PeftConfig.from_pretrained(path)
        rank, alpha = config.r, config.lora_alpha
    else:
        factors, prefix = load_file(path), "transformer."
        with safe_open(path, framework="pt") as opened:
            metadata = json.loads(opened.metadata()["lora_adapter_metadata"])
        rank, alpha = metadata["transformer.r"], metadata["transformer.lora_alpha"]
    assert alpha != rank
    name = "blocks.1.attn1.to_q"
    update = factors[f"{prefix}{name}.lora_B.weight"] @ factors[f"{prefix}{name}.lora_A.weight"]
    x = torch.randn(5, update.shape[1], generator=torch.Generator().manual_seed(0))
    layer = attach(open_model("base"), path).get_submodule(name)
    expected = base.get_submodule(name)(x) + alpha / rank * x @ update.T
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("style", STYLE_FILES)
def test_direct_reuse_lets_colours_through_and_a_trained_lora_does_not(style):
    columns = [
        Column("base", "reference", "base", adapter_path(style)),
        Column("student", "student", "student", None),
        Column("direct", "direct", "student", adapter_path(style)),
        Column("oracle", "oracle", "student", oracle_path(style)),
    ]
    result = run_demo(columns, style=style, clips=16, seed=3)
    tints = {column.role: float(column.values["tint"].mean()) for column in result.columns}
    assert tints["student"] < 70 < tints["direct"] < tints["reference"] - 2
    assert tints["direct"] + 2 < tints["oracle"]
    styles = {column.role: float(column.values["style"].mean()) for column in result.columns}
    assert styles["student"] < 10 < styles["direct"] < styles["reference"]
    fidelity = {column.role: float(column.values["psnr"].mean()) for column in result.columns[1:]}
    assert fidelity["student"] < fidelity["direct"] < fidelity["oracle"]


def test_the_same_seed_gives_the_same_demo():
    columns = [Column("student", "reference", "student", None), Column("again", "student", "student", None)]
    once, twice = (run_demo(columns, style="noir", clips=4, seed=5).columns[0].frames for _ in range(2))
    assert torch.equal(once, twice)
    assert not torch.equal(once, run_demo(columns, style="noir", clips=4, seed=6).columns[0].frames)


@pytest.mark.parametrize(("style", "colour"), TINTS.items())
def test_tint_is_full_on_its_own_line_and_not_elsewhere(style, colour):
    shades = torch.rand(4, 1, 2, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    pure = shades * torch.tensor(colour)[:, None, None, None] * 2 - 1
    assert torch.allclose(tint(pure, colour), torch.full((4,), 100.0), atol=0.1)
    assert (tint(pure.flip(1) * torch.tensor([-1.0, 1.0, 1.0])[:, None, None, None], colour) < 90).all()


def test_psnr_by_hand():
    clips = torch.zeros(2, 3, 2, 4, 4)
    other = torch.stack([clips[0] + 0.2, clips[1]])  # an error of 0.1 of the full range; none
    assert torch.allclose(psnr(other, clips), torch.tensor([20.0, 99.0]), atol=1e-4)


def test_student_samples_follow_the_prompt(drawn):
    prompts, noise = drawn
    found = means(from_latents(sample_student(open_model("student"), prompts, noise)).clamp(-1, 1), prompts)
    assert found["colour"] > 70 and found["shape"] > 40


def test_a_file_without_factors_is_refused(tmp_path):
    save_file({"diffusion_model.blocks.0.self_attn.q.diff": torch.zeros(128, 128)}, tmp_path / "dense.safetensors")
    with pytest.raises(FileFormatError, match="--as lora"):
        attach(open_model("base"), tmp_path / "dense.safetensors")


def test_a_lora_of_a_deeper_model_is_refused(tmp_path):
    factors = load_file(adapter_path("retro"))
    moved = {key.replace("blocks.3.", "blocks.9."): value for key, value in factors.items()}
    save_file(moved, tmp_path / "deeper.safetensors")
    with pytest.raises(MismatchError, match="tiny Wan"):
        attach(open_model("base"), tmp_path / "deeper.safetensors")


def test_an_unknown_style_lists_the_known_ones():
    with pytest.raises(SettingsError, match="noir, retro"):
        adapter_path("oil")
