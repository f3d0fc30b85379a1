"""The shipped weights: real formats, really trained, and the pair shows what it is meant to show."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from diffusers import WanTransformer3DModel
from peft import PeftConfig
from safetensors import safe_open

from loraport.analysis.measures.rigidity import spectral_change
from loraport.errors import FileFormatError, MismatchError, SettingsError
from loraport_lab.demo import Column, run_demo
from loraport_lab.family.adapters import attach
from loraport_lab.family.clips import EFFECTS, TINTS, draw_prompts, from_latents, render, render_effect, visible
from loraport_lab.family.family import (
    ADAPTERS,
    BASE,
    CELLS,
    FAMILY,
    STUDENTS,
    adapter_path,
    find_adapter,
    find_student,
    oracle_path,
    student_path,
    target_place,
)
from loraport_lab.family.judge import open_judge
from loraport_lab.family.measure import flicker, measure, psnr, sharpness, tint
from loraport_lab.family.model import CONFIG, new_model, open_base, open_student
from loraport_lab.family.sample import draw_noise, sample_base, sample_student, trajectory

CLIPS = 12
DOCS = Path(__file__).parents[3] / "docs"
REGIME = 0.005  # the paper finds a spectral change ρ₂ of at most 0.003 on real pairs
IN_THE_REGIME = ("few-step", "matched")


@pytest.fixture(scope="module")
def base():
    return open_base()


@pytest.fixture(scope="module")
def drawn():
    generator = torch.Generator().manual_seed(77)
    return draw_prompts(CLIPS, generator), draw_noise(CLIPS, generator, 4)


@pytest.fixture(scope="module")
def plain_samples(base, drawn):
    return from_latents(sample_base(base, *drawn)).clamp(-1, 1)


def means(clips, prompts, effect="plain"):
    return {key: float(value.mean()) for key, value in measure(open_judge(), clips, prompts, effect, None).items()}


MODELS = [BASE, *(student_path(name) for name, student in STUDENTS.items() if not student.accelerator)]


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_models_open_with_the_real_class(folder):
    model = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    for key, value in CONFIG.items():
        saved = model.config[key]
        assert (tuple(saved) if isinstance(value, tuple) else saved) == value, key
    assert 4e6 < sum(weight.numel() for weight in model.parameters()) < 5e6


def test_the_family_is_small_and_names_no_place_of_its_making():
    files = [path for path in FAMILY.rglob("*") if path.is_file()]
    assert files and sum(path.stat().st_size for path in files) < 60e6
    for path in files:
        if path.suffix == ".json":
            text = path.read_text()
        else:
            with safe_open(path, framework="pt") as opened:
                text = json.dumps(opened.metadata() or {})
        assert not re.search(r"/(work|tmp|home|root|Users)\b", text), path


@pytest.mark.slow
def test_base_samples_are_what_was_asked_for(plain_samples, drawn):
    found = means(plain_samples, drawn[0])
    assert all(found[name] > 75 for name in ("shape", "colour", "background", "motion")), found


def test_an_untrained_model_fails_the_same_test(drawn):
    prompts, noise = drawn
    found = means(from_latents(sample_base(new_model(0), prompts, noise, steps=2)).clamp(-1, 1), prompts)
    assert found["shape"] < 60 and found["motion"] < 60


@pytest.mark.parametrize("effect", EFFECTS)
def test_the_judge_knows_clips_it_has_never_seen(effect):
    generator = torch.Generator().manual_seed(123456)
    prompts = draw_prompts(64, generator)
    found = means(render_effect(prompts, generator, effect), prompts, effect)
    assert found["effect"] > 85 and min(found[name] for name in visible(effect)) > 90, found
    others = {name: means(render(prompts, generator), prompts, name)["effect"] for name in EFFECTS if name != "plain"}
    assert max(others.values()) < 5, others


def matrices(model) -> dict[str, torch.Tensor]:
    """The weights that a LoRA adapts: every matrix of a block."""
    return {
        name: weight for name, weight in model.named_parameters() if name.startswith("blocks.") and weight.ndim == 2
    }


@pytest.fixture(scope="module")
def drifts(base):
    """Student -> mean over the 40 matrices of ‖ΔW‖ / ‖W‖ and of the drift's spectral change ρ₂."""
    sources = matrices(base)
    spectra = {name: torch.linalg.svdvals(weight) for name, weight in sources.items()}
    assert len(sources) == 40
    means = {}
    for student in STUDENTS:
        targets = matrices(open_student(student))
        sizes = [float((targets[name] - weight).norm() / weight.norm()) for name, weight in sources.items()]
        changes = [spectral_change(spectra[name], torch.linalg.svdvals(targets[name])) for name in sources]
        means[student] = sum(sizes) / 40, sum(changes) / 40
    return means


@pytest.mark.parametrize("student", IN_THE_REGIME)
def test_these_students_lie_in_the_papers_regime(student, drifts):
    assert 0.005 < drifts[student][0] < 0.03 and drifts[student][1] <= REGIME


def test_the_one_step_student_is_the_hard_case_and_lies_outside_of_the_regime(drifts):
    assert drifts["one-step"][1] > 2 * REGIME and drifts["one-step"][0] > 4 * drifts["few-step"][0]


def test_every_drift_is_as_documented(drifts):
    """The table in docs/lab/family.md has the drift and ρ₂ of every student in percent."""
    page = (DOCS / "lab" / "family.md").read_text(encoding="utf-8")
    for student, (size, change) in drifts.items():
        assert f"| {student} | {100 * size:.1f} % | {100 * change:.2f} % |" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_lora_gives_the_base_its_effect(name, drawn, plain_samples):
    effect = ADAPTERS[name].effect
    clips = 8 if effect == "swing" else 4
    prompts, noise = (part[:clips] for part in drawn)
    shown = means(
        from_latents(sample_base(attach(open_base(), adapter_path(name)), prompts, noise)).clamp(-1, 1), prompts, effect
    )
    assert shown["effect"] > (60 if effect == "swing" else 75)  # the motion comes in three clips of four
    assert means(plain_samples[:clips], prompts, effect)["effect"] < 10


@pytest.mark.parametrize("name", ADAPTERS)
def test_scale_reaches_the_weights(name, base):
    """The file's alpha differs from its rank, and the loaded layer adds exactly alpha / rank times B A."""
    path = adapter_path(name)
    if path.is_dir():
        factors = load_file(path / "adapter_model.safetensors")
        prefix, config = "base_model.model.", PeftConfig.from_pretrained(path)
        rank, alpha = config.r, config.lora_alpha
    else:
        factors, prefix = load_file(path), "transformer."
        with safe_open(path, framework="pt") as opened:
            metadata = json.loads(opened.metadata()["lora_adapter_metadata"])
        rank, alpha = metadata["transformer.r"], metadata["transformer.lora_alpha"]
    assert (rank, alpha) == (ADAPTERS[name].rank, ADAPTERS[name].alpha) and (alpha != rank or name == "noir-b")
    layer_name = "blocks.1.attn1.to_q"
    update = (
        factors[f"{prefix}{layer_name}.lora_B.weight"].float() @ factors[f"{prefix}{layer_name}.lora_A.weight"].float()
    )
    x = torch.randn(5, update.shape[1], generator=torch.Generator().manual_seed(0))
    layer = attach(open_base(), path).get_submodule(layer_name)
    expected = base.get_submodule(layer_name)(x) + alpha / rank * x @ update.T
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "clips"), [("noir", 16), ("retro", 8)], ids=["noir", "retro"])
def test_direct_reuse_lets_colours_through_and_a_trained_lora_does_not(name, clips):
    columns = [
        Column("base", "reference", "base", adapter_path(name)),
        Column("student", "student", "one-step", None),
        Column("direct", "direct", "one-step", adapter_path(name)),
        Column("oracle", "oracle", "one-step", oracle_path("one-step", name)),
    ]
    result = run_demo(columns, adapter=name, clips=clips, seed=3)
    tints = {column.role: float(column.values["tint"].mean()) for column in result.columns}
    assert tints["student"] < 70 < tints["direct"] < tints["reference"] - 2
    assert tints["direct"] + 2 < tints["oracle"]
    fidelity = {column.role: float(column.values["psnr"].mean()) for column in result.columns[1:]}
    assert fidelity["student"] < fidelity["direct"] < fidelity["oracle"]


@pytest.mark.slow
def test_a_motion_breaks_on_the_causal_student_and_a_trained_lora_does_not():
    """The structural failure: the swing needs frames that this student has not made yet when it needs them."""
    columns = [
        Column("base", "reference", "base", adapter_path("swing")),
        Column("direct", "direct", "causal", adapter_path("swing")),
        Column("oracle", "oracle", "causal", oracle_path("causal", "swing")),
    ]
    effects = {c.role: float(c.values["effect"].mean()) for c in run_demo(columns, adapter="swing", clips=8).columns}
    assert effects["direct"] + 10 < effects["oracle"] and effects["direct"] + 10 < effects["reference"]


@pytest.mark.parametrize(("student", "adapter"), CELLS)
def test_every_oracle_came_closer_on_clips_that_it_was_not_trained_on(student, adapter):
    path = oracle_path(student, adapter)
    curve = json.loads(path.with_suffix(".json").read_text())["held_out"]
    assert path.exists() and curve[-1] < curve[0]


def test_the_accelerator_is_a_lora_beside_which_others_are_loaded():
    assert target_place("accelerator").startswith("source+") and target_place("causal") == str(student_path("causal"))
    fused, base = open_student("accelerator"), open_base()
    assert type(fused.blocks[0].attn1.to_q) is torch.nn.Linear
    assert not torch.equal(fused.blocks[0].attn1.to_q.weight, base.blocks[0].attn1.to_q.weight)
    assert torch.equal(fused.proj_out.weight, base.proj_out.weight)


def test_the_same_seed_gives_the_same_demo():
    columns = [Column("student", "reference", "matched", None), Column("again", "student", "matched", None)]
    once, twice = (run_demo(columns, adapter="noir", clips=4, seed=5).columns[0].frames for _ in range(2))
    assert torch.equal(once, twice)
    assert not torch.equal(once, run_demo(columns, adapter="noir", clips=4, seed=6).columns[0].frames)


def test_a_trajectory_starts_at_the_noise_and_ends_at_the_sample(base, drawn):
    prompts, noise = (part[:2] for part in drawn)
    states = list(trajectory(base, prompts, noise))
    assert len(states) == 11 and torch.equal(states[0], noise[:, 0])
    assert torch.equal(states[-1], sample_base(base, prompts, noise)) and not torch.equal(states[-1], states[-2])


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


def test_sharpness_and_flicker_fall_with_blur_and_with_stillness():
    generator = torch.Generator().manual_seed(0)
    clips = render(draw_prompts(4, generator), generator)
    blurred = torch.nn.functional.avg_pool3d(clips, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    assert (sharpness(blurred) < sharpness(clips)).all() and (flicker(clips) > 0).all()
    assert torch.equal(flicker(clips[:, :, :1].expand_as(clips)), torch.zeros(4))


@pytest.mark.parametrize("name", STUDENTS)
def test_student_samples_follow_the_prompt(name, drawn):
    prompts, noise = drawn
    latents = sample_student(open_student(name), STUDENTS[name], prompts, noise)
    found = means(from_latents(latents).clamp(-1, 1), prompts)
    assert found["colour"] > 90 and found["background"] > 90 and found["motion"] > 90 and found["shape"] > 30


def test_a_file_without_factors_is_refused(tmp_path):
    save_file({"diffusion_model.blocks.0.self_attn.q.diff": torch.zeros(256, 256)}, tmp_path / "dense.safetensors")
    with pytest.raises(FileFormatError, match="--as lora"):
        attach(open_base(), tmp_path / "dense.safetensors")


def test_a_lora_of_a_deeper_model_is_refused(tmp_path):
    factors = load_file(adapter_path("retro"))
    moved = {key.replace("blocks.3.", "blocks.9."): value for key, value in factors.items()}
    save_file(moved, tmp_path / "deeper.safetensors")
    with pytest.raises(MismatchError, match="tiny Wan"):
        attach(open_base(), tmp_path / "deeper.safetensors")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(SettingsError, match="noir, retro"):
        find_adapter("oil")
    with pytest.raises(SettingsError, match="one-step"):
        find_student("two-step")
