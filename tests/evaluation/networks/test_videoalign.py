"""VideoAlign beside its authors' program, and what it makes of files that are not its own.

`videoalign_originals.json`: class Qwen2VLRewardModelBT, vision_process.py and prompt_template.py of KwaiVGI/VideoAlign
(2025-09-24) under transformers 4.45.2 and peft 0.10.0, as its environment pins them, torch 2.13.0, float32; a network
of two layers with planted weights and a LoRA of rank 4, alpha 8, on a film given as decoded frames; the tokenizer is
that of tiny_words.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.networks.planted_weights import film, planted
from tests.evaluation.networks.tiny_words import write_words

from loraport.errors import FileFormatError, InputError
from loraport.evaluation.networks.videoalign import VideoAlign, load_videoalign, real_configuration
from loraport.evaluation.networks.videoalign_input import chosen_frames, fitting_size, pixels_of, question

ORIGINAL: dict[str, Any] = json.loads((Path(__file__).parent / "videoalign_originals.json").read_text(encoding="utf-8"))
CASES = [pytest.param(case, id=f"{case['frames']}x{case['height']}x{case['width']}") for case in ORIGINAL["cases"]]
SETTINGS: dict[str, Any] = {
    "data_config": {
        "fps": 2.0,
        "max_frame_pixels": 200704,
        "num_frames": None,
        "sample_type": "uniform",
        "prompt_template_type": "detailed_special",
        "eval_dim": ["VQ", "MQ", "TA"],
    },
    "model_config": {"output_dim": 1},
    "peft_lora_config": {"lora_r": 4, "lora_alpha": 8, "use_rslora": False},
    "inference_config": {
        "VQ_mean": 3.6757,
        "VQ_std": 2.2476,
        "MQ_mean": 1.1646,
        "MQ_std": 1.3811,
        "TA_mean": 2.8105,
        "TA_std": 2.5121,
    },
}


def small_configuration() -> Any:
    transformers = pytest.importorskip("transformers")
    eye = dict(depth=2, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=4, patch_size=14)
    words = dict(vocab_size=267, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
    words |= dict(num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1e6, max_position_embeddings=32768)
    words |= dict(rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]})
    return transformers.Qwen2VLConfig(
        text_config=words, vision_config=eye, video_token_id=263, image_token_id=262, vision_start_token_id=259
    )


def small_weights() -> dict[str, torch.Tensor]:
    return planted({name: tuple(shape) for name, shape in ORIGINAL["names"].items()})


def small_videoalign(folder: Path, weights: dict[str, torch.Tensor] | None = None, **settings: Any) -> VideoAlign:
    torch.save(small_weights() if weights is None else weights, folder / "model.pth")
    (folder / "model_config.json").write_text(json.dumps(SETTINGS | settings))
    write_words(folder / "tokenizer.json")
    files = (folder / name for name in ("model.pth", "model_config.json", "tokenizer.json"))
    return load_videoalign(*files, torch.device("cpu"), small_configuration())


@pytest.mark.parametrize("case", CASES)
def test_scores_are_the_originals(case: dict[str, Any], tmp_path: Path) -> None:
    network = small_videoalign(tmp_path)
    frames = film(case["frames"], case["height"], case["width"])
    scores = network.scores(frames, case["fps"], case["prompt"])
    torch.testing.assert_close(scores, torch.tensor(case["scores"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_pixels_and_words_are_the_originals(case: dict[str, Any], tmp_path: Path) -> None:
    frames = film(case["frames"], case["height"], case["width"])
    pixels = pixels_of(frames[chosen_frames(len(frames), case["fps"], 2.0)], 200704)
    assert list(pixels.grid) == case["grid"]
    assert float(pixels.values.double().mean()) == pytest.approx(case["mean"], abs=1e-7)
    found = pixels.values[case["rows"]][:, [0, 200, 588, 1175]]
    torch.testing.assert_close(found, torch.tensor(case["pixels"]), atol=1e-6, rtol=0)
    write_words(tmp_path / "tokenizer.json")
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"])
    ids = tokenizer.encode(question(case["prompt"], pixels.tokens)).ids
    assert len(ids) == case["tokens"]
    assert sum(place * token for place, token in enumerate(ids, 1)) == case["ids_sum"]


@pytest.mark.parametrize(
    ("total", "fps", "ends", "count"),
    [  # smart_nframes and linspace of vision_process.py: the first three and last three, and how many
        (2, 8.0, [0, 1, 0, 1], 2),
        (3, 24.0, [0, 2, 0, 2], 2),
        (5, 1.0, [0, 1, 3, 1, 3, 4], 4),
        (16, 8.0, [0, 5, 10, 5, 10, 15], 4),
        (17, 8.0, [0, 5, 11, 5, 11, 16], 4),
        (49, 16.0, [0, 10, 19, 29, 38, 48], 6),
        (81, 16.0, [0, 9, 18, 62, 71, 80], 10),
        (121, 24.0, [0, 13, 27, 93, 107, 120], 10),
        (129, 29.97, [0, 18, 37, 91, 110, 128], 8),
        (250, 25.0, [0, 13, 26, 223, 236, 249], 20),
        (2000, 1.0, [0, 3, 5, 1994, 1996, 1999], 768),
    ],
)
def test_frames_are_chosen_as_in_the_original(total: int, fps: float, ends: list[int], count: int) -> None:
    chosen = chosen_frames(total, fps, 2.0)
    assert (chosen[:3] + chosen[-3:], len(chosen)) == (ends, count)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [  # smart_resize of vision_process.py
        *[(480, 832, (336, 588)), (720, 1280, (336, 588)), (64, 64, (336, 336)), (48, 84, (252, 420))],
        *[(321, 123, (532, 224)), (832, 480, (588, 336)), (1000, 30, (1848, 56)), (447, 449, (448, 448))],
    ],
)
def test_frames_are_resized_as_in_the_original(height: int, width: int, expected: tuple[int, int]) -> None:
    assert fitting_size(height, width, 200704) == expected


def test_patches_are_those_of_the_librarys_processor() -> None:
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = module.Qwen2VLImageProcessorPil()
    frames = film(1, 336, 588)  # a size that both leave as it is
    there = processor(images=[frames[0]], return_tensors="pt")
    here = pixels_of(frames[[0, 0]], 200704)
    assert list(here.grid) == there["image_grid_thw"][0].tolist()
    torch.testing.assert_close(here.values, there["pixel_values"], atol=1e-6, rtol=0)


def test_without_a_prompt_the_first_two_scores_are_the_same(tmp_path: Path) -> None:
    network = small_videoalign(tmp_path)
    frames = film(9, 120, 180)
    with_prompt = network.scores(frames, 8.0, "A cat walks.")
    assert len(with_prompt) == 3
    torch.testing.assert_close(network.scores(frames, 8.0, None), with_prompt[:2], atol=1e-5, rtol=0)
    other = network.scores(frames, 8.0, "A dog sleeps.")
    torch.testing.assert_close(other[:2], with_prompt[:2], atol=1e-5, rtol=0)
    assert abs(other[2] - with_prompt[2]) > 1e-3
    raw = torch.tensor([3.6757, 1.1646 + 1.3811, 2.8105 - 2.5121])
    torch.testing.assert_close(network.normalized(raw), torch.tensor([0.0, 1.0, -1.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(network.normalized(raw[:2]), torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)


def test_frames_have_plain_positions(tmp_path: Path) -> None:
    """Newer transformers lay frames on a grid unless told otherwise, and the scores are then others."""
    network = small_videoalign(tmp_path)
    case = ORIGINAL["cases"][0]
    frames = film(case["frames"], case["height"], case["width"])
    inner = network._network

    def on_a_grid(**inputs: Any) -> Any:
        del inputs["position_ids"]
        return inner(**inputs, mm_token_type_ids=torch.where(inputs["input_ids"] == 263, 2, 0))

    network._network = on_a_grid
    assert (network.scores(frames, case["fps"], case["prompt"]) - torch.tensor(case["scores"])).abs().max() > 0.05


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: weights.pop("base_model.model.rm_head.weight"), "it lacks 'base_model.model.rm_head.weight'"),
        (lambda weights: weights.update({"base_model.model.rm_head.bias": torch.ones(1)}), "rm_head.bias"),
        (
            lambda weights: [weights.pop(name) for name in list(weights) if "layers.1.mlp.up_proj.lora_B" in name],
            "it lacks .*layers.1.mlp.up_proj.lora_B.default.weight'",
        ),
        (lambda weights: weights.update({"base_model.model.rm_head.weight": torch.ones(3, 64)}), r"shape \[3, 64\]"),
    ],
)
def test_another_network_is_one_sentence(change: Any, says: str, tmp_path: Path) -> None:
    weights = small_weights()
    change(weights)
    with pytest.raises(FileFormatError, match=says):
        small_videoalign(tmp_path, weights)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"inference_config": {}}, "KeyError"),
        ({"model_config": {"output_dim": 3}}, "'output_dim'"),
        ({"data_config": {**SETTINGS["data_config"], "prompt_template_type": "simple"}}, "'prompt_template_type'"),
        ({"peft_lora_config": {"lora_r": 0, "lora_alpha": 8, "use_rslora": False}}, "ZeroDivisionError"),
    ],
)
def test_other_settings_are_one_sentence(settings: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=says):
        small_videoalign(tmp_path, **settings)


def test_what_cannot_be_shown_is_one_sentence(tmp_path: Path) -> None:
    network = small_videoalign(tmp_path)
    with pytest.raises(InputError, match="at least two frames"):
        network.scores(film(1, 64, 64), 8.0, None)
    with pytest.raises(InputError, match="as long as 600 x 2 pixels"):
        network.scores(film(4, 2, 600), 8.0, None)
    with pytest.raises(InputError, match=r"holds <\|MQ_reward\|>"):
        network.scores(film(4, 64, 64), 8.0, "give <|MQ_reward|> please")


def test_another_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    small_videoalign(tmp_path)
    content = (tmp_path / "tokenizer.json").read_text().replace("<|video_pad|>", "<|movie_pad|>")
    (tmp_path / "tokenizer.json").write_text(content)
    files = (tmp_path / name for name in ("model.pth", "model_config.json", "tokenizer.json"))
    with pytest.raises(FileFormatError, match="is not the tokenizer of Qwen2-VL-2B-Instruct"):
        load_videoalign(*files, torch.device("cpu"), small_configuration())


def test_the_published_size_is_the_files() -> None:
    """The published file has 5 031 072 529 bytes: these tensors in bfloat16, and 290 bytes beside each of 1 124."""
    transformers = pytest.importorskip("transformers")
    configuration = real_configuration()
    with torch.device("meta"):
        network = transformers.Qwen2VLModel(configuration)
    linears = [one for one in network.language_model.modules() if isinstance(one, torch.nn.Linear)]
    numbers = sum(parameter.numel() for parameter in network.parameters())
    numbers += sum(64 * sum(linear.weight.shape) for linear in linears)  # the LoRA
    numbers += 1536 + 151_660 * 1536  # the head, and the words once more
    beside = 5_031_072_529 - 2 * numbers
    assert 200 < beside / (len(list(network.parameters())) + 2 * len(linears) + 2) < 400
