"""The clips are what their prompts say, the same for the same seed, and unlike each other in every style."""

import pytest
import torch

from loraport_lab.family.clips import (
    ATTRIBUTES,
    BACKGROUNDS,
    EFFECTS,
    FRAMES,
    MOTIONS,
    SHAPES,
    SIZE,
    STYLES,
    describe,
    draw_prompts,
    embed,
    embed_nothing,
    from_latents,
    render,
    render_effect,
    to_latents,
    visible,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_clips(count: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = rng(seed)
    prompts = draw_prompts(count, generator)
    return prompts, render(prompts, generator)


def test_same_seed_same_clips_other_seed_other_clips():
    assert torch.equal(some_clips()[1], some_clips()[1])
    assert not torch.equal(some_clips()[1], some_clips(seed=1)[1])


def test_clips_fill_the_range_and_have_the_documented_shape():
    clips = some_clips()[1]
    assert clips.shape == (24, 3, FRAMES, SIZE, SIZE)
    assert -1 <= clips.min() < -0.8 and 0.8 < clips.max() <= 1


def test_latents_are_invertible():
    clips = some_clips()[1]
    assert torch.equal(from_latents(to_latents(clips)), clips)
    assert to_latents(clips).shape == (24, 54, 4, 8, 8)


@pytest.mark.parametrize("motion", range(len(MOTIONS)))
def test_the_shape_moves_the_way_the_prompt_says(motion):
    prompts = torch.tensor([[0, 5, 0, motion]] * 8)
    bright = render(prompts, rng())[:, 0].clamp_min(0)  # a white circle on night
    place = torch.arange(SIZE).float()
    mass = bright.sum(dim=(2, 3))
    x, y = (bright.sum(2) * place).sum(2) / mass, (bright.sum(3) * place).sum(2) / mass
    wanted = torch.tensor(list(MOTIONS.values())[motion])
    moved = torch.stack([x[:, -1] - x[:, 0], y[:, -1] - y[:, 0]], dim=1)
    assert torch.allclose(moved, wanted * (FRAMES - 1), atol=0.3)


def test_a_swing_goes_there_and_comes_back():
    prompts = torch.tensor([[0, 5, 0, 1]] * 8)  # a white circle on night, to the right
    bright = render_effect(prompts, rng(), "swing")[:, 0].clamp_min(0)
    x = (bright.sum(2) * torch.arange(SIZE).float()).sum(2) / bright.sum(dim=(2, 3))
    assert torch.allclose(x[:, 0], x[:, -1], atol=0.1) and torch.allclose(
        x[:, 3] - x[:, 0], torch.tensor(6.0), atol=0.3
    )
    straight = render(prompts, rng())[:, 0].clamp_min(0)
    assert not torch.allclose(straight[:, 0], straight[:, -1], atol=0.1)


def test_what_an_effect_hides_is_not_visible():
    assert visible("noir") == (0, 3) and visible("neon") == (0, 1, 3)
    assert visible("swing") == visible("plain") == (0, 1, 2, 3)
    prompts, _ = some_clips(12)
    red_and_yellow = prompts.clone()
    red_and_yellow[:, 1] = 0
    other = red_and_yellow.clone()
    other[:, 1] = 1
    same_place = [render_effect(part, rng(3), "noir") for part in (red_and_yellow, other)]
    assert all(torch.equal(part[:, 0], part[:, 1]) for part in same_place), "noir has no colours"
    assert {"noir", "neon", "retro", "plain", "swing"} == set(EFFECTS)


def test_shapes_stay_inside_the_frame():
    for shape in range(len(SHAPES)):
        prompts = torch.tensor([[shape, 5, 0, motion] for motion in range(4) for _ in range(16)])
        clips = render(prompts, rng())
        top = torch.tensor(next(iter(BACKGROUNDS.values()))[0])
        corner_row = clips[:, :, :, 0].mean(dim=(0, 2, 3))
        assert torch.allclose((corner_row + 1) / 2, top, atol=0.02), SHAPES[shape]


def test_every_style_changes_every_clip_in_its_own_way():
    clips = some_clips()[1]
    styled = {name: style(clips) for name, style in STYLES.items()}
    assert torch.equal(styled["plain"], clips)
    for name, one in styled.items():
        assert one.shape == clips.shape and one.min() >= -1 and one.max() <= 1
        for other, two in styled.items():
            if name != other:
                assert ((one - two).abs().flatten(1).mean(1) > 0.05).all(), (name, other)


def test_prompts_have_words_and_different_embeddings():
    prompts = some_clips(200)[0]
    for attribute, words in enumerate(ATTRIBUTES):
        assert set(prompts[:, attribute].tolist()) == set(range(len(words)))
    assert describe(torch.tensor([3, 1, 2, 0])) == "yellow cross, dusk, moving left"
    everything = torch.cat([embed(torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])).flatten(0, 1), embed_nothing(1)[0, :1]])
    assert len(everything.unique(dim=0)) == 9
