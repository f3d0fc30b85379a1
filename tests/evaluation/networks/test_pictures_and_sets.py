"""Preprocessing and vectors beside transformers' own, and the distance of two sets in closed form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluation.networks.planted_weights import film, planted, shapes_of
from tests.evaluation.networks.tiny_words import write_words

from loraport.errors import FileFormatError, InputError
from loraport.evaluation.networks import clip, dinov2
from loraport.evaluation.networks.discrepancy import discrepancy
from loraport.evaluation.networks.pictures import evenly
from loraport.evaluation.networks.texts import clip_tokens, read_vocabulary

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
SIZES = [(120, 180), (333, 224), (225, 301), (224, 225)]


def saved(network: Any, folder: Path, safe: bool = True) -> Any:
    network.load_state_dict(planted(shapes_of(network)))
    network.eval().save_pretrained(folder)
    if not safe:  # as OpenAI's were saved, with what later versions work out themselves
        beside = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
        torch.save(network.state_dict() | beside, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return network


def small_clip() -> Any:
    inner = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=16)
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=inner | dict(vocab_size=300, max_position_embeddings=77, bos_token_id=256, eos_token_id=258),
            vision_config=inner | dict(image_size=224, patch_size=32),
            projection_dim=16,
        )
    )


def processed(kind: str, frames: np.ndarray, **options: Any) -> torch.Tensor:
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = {"clip": CLIPImageProcessorPil, "dinov2": BitImageProcessorPil}[kind](**options)
    return processor(images=list(frames), return_tensors="pt")["pixel_values"]


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_clip_is_transformers(height: int, width: int, tmp_path: Path) -> None:
    original = saved(small_clip(), tmp_path, safe=height % 2 == 0)
    frames = film(2, height, width)
    network = clip.load_clip(tmp_path, CPU)
    pictures = original.get_image_features(pixel_values=processed("clip", frames)).pooler_output
    pictures = pictures / pictures.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(clip.picture_vectors(network, frames), pictures, atol=2e-6, rtol=0)
    write_words(tmp_path / "tokenizer.json")
    words = read_vocabulary(tmp_path / "tokenizer.json")
    text = original.get_text_features(input_ids=clip_tokens(words, "a cat<|im_end|>")).pooler_output[0]
    text = text / text.norm()
    torch.testing.assert_close(clip.text_vector(network, words, "a cat<|im_end|>"), text, atol=2e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_dinov2_is_transformers(height: int, width: int, tmp_path: Path) -> None:
    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=518, patch_size=14)
    original = saved(transformers.Dinov2Model(transformers.Dinov2Config(**size)), tmp_path)
    frames = film(2, height, width)
    published = dict(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3)
    published |= dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    expected = original(pixel_values=processed("dinov2", frames, **published)).pooler_output
    expected = expected / expected.norm(dim=-1, keepdim=True)
    found = dinov2.dinov2_vectors(dinov2.load_dinov2(tmp_path, CPU), frames)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_a_folder_that_is_not_the_network_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no config"):
        clip.load_clip(tmp_path, CPU)
    size = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    saved(transformers.Dinov2Model(transformers.Dinov2Config(**size)), tmp_path)
    with pytest.raises(FileFormatError, match="is not a CLIPModel"):
        clip.load_clip(tmp_path, CPU)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(FileFormatError, match="is not a Dinov2Model"):
        dinov2.load_dinov2(tmp_path, CPU)


def test_prompts_are_cleaned_and_cut(tmp_path: Path) -> None:
    write_words(tmp_path / "tokenizer.json")
    words = read_vocabulary(tmp_path / "tokenizer.json")
    plain = clip_tokens(words, 'the "cat\'s" & dog')
    assert torch.equal(clip_tokens(words, " the \u201ccat\u2019s\u201d &amp;amp; dog "), plain)
    assert not torch.equal(clip_tokens(words, "the cats dog"), plain)
    assert clip_tokens(words, "x" * 500).shape == (1, 77)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FileFormatError, match="is not a tokenizer"):
        read_vocabulary(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(1, 8, [0]), (3, 8, [0, 1, 2]), (8, 8, list(range(8))), (81, 5, [0, 20, 40, 60, 80])],
)
def test_frames_are_evenly_spread(count: int, most: int, expected: list[int]) -> None:
    assert evenly(count, most) == expected


def test_discrepancy_in_closed_form() -> None:
    one, other = torch.eye(4)[:1], torch.eye(4)[1:2]
    assert discrepancy(one, one) == 0
    assert discrepancy(one, other) == pytest.approx(1000 * 2 * (1 - math.exp(-2 / 200)), rel=1e-12)
    assert discrepancy(torch.cat([one, other]), other) == pytest.approx(discrepancy(one, other) / 4, rel=1e-9)


def test_discrepancy_is_cmmd() -> None:
    """Against mmd() of sayakpaul/cmmd-pytorch (2024-04-05), which printed this for the same vectors in float64."""
    drawn = np.random.RandomState(5)
    one, other = drawn.standard_normal((7, 16)), drawn.standard_normal((5, 16)) + 1
    assert discrepancy(torch.from_numpy(one), torch.from_numpy(other)) == pytest.approx(145.8342114017399, rel=1e-9)
