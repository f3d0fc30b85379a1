"""The clips are what their prompts say, the same for the same seed, and unlike each other in every style."""

import pytest
import torch

from loraport_lab.family.clips import (
    ATTRIBUTES,
    EFFECTS,
    FRAMES,
    MOTIONS,
    SHAPES,
    SIZE,
    SPEED,
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


def large_object(clips: torch.Tensor) -> torch.Tensor:
    """The centre (x, y) of what is white in each frame: [n, FRAMES, 2]."""
    white = (clips.amin(1) > 0.1).float()
    place = torch.arange(SIZE).float()
    mass = white.sum(dim=(2, 3))
    return torch.stack([(white.sum(2) * place).sum(2) / mass, (white.sum(3) * place).sum(2) / mass], dim=2)


def test_same_seed_same_clips_other_seed_other_clips():
    assert torch.equal(some_clips()[1], some_clips()[1])
    assert not torch.equal(some_clips()[1], some_clips(seed=1)[1])


def test_clips_fill_the_range_and_have_the_documented_shape():
    clips = some_clips()[1]
    assert clips.shape == (24, 3, FRAMES, SIZE, SIZE)
    assert -1 <= clips.min() < -0.8 and 0.8 < clips.max() <= 1 + 1e-6


def test_latents_are_invertible():
    clips = some_clips()[1]
    assert torch.equal(from_latents(to_latents(clips)), clips)
    assert to_latents(clips).shape == (24, 54, 4, 12, 12)


@pytest.mark.parametrize("motion", range(len(MOTIONS)))
def test_the_shape_moves_the_way_the_prompt_says(motion):
    places = large_object(render(torch.tensor([[0, 5, 1, motion, 3]] * 8), rng()))
    wanted = torch.tensor(list(MOTIONS.values())[motion])
    assert torch.allclose(places[:, -1] - places[:, 0], wanted * SPEED * (FRAMES - 1), atol=0.4)


def test_a_swing_goes_there_and_comes_back():
    prompts = torch.tensor([[0, 5, 1, 1, 3]] * 8)  # a white circle to the right, a blue one at rest, on the lagoon
    x = large_object(render_effect(prompts, rng(), "swing"))[..., 0]
    assert torch.allclose(x[:, 0], x[:, -1], atol=0.1)
    assert torch.allclose(x[:, 3] - x[:, 0], torch.tensor(6 * SPEED), atol=0.4)
    straight = large_object(render(prompts, rng()))[..., 0]
    assert ((straight[:, -1] - straight[:, 0]).abs() > 5).all()


def test_what_an_effect_hides_is_not_visible():
    assert visible("noir") == ("shape", "motion")
    assert set(ATTRIBUTES) - set(visible("neon")) == {"background"}
    assert visible("swing") == visible("plain") == tuple(ATTRIBUTES)
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
        prompts = torch.tensor([[shape, 5, 0, motion, 5] for motion in range(4) for _ in range(16)])
        clips = render(prompts, rng())
        border = torch.cat([clips[..., 0, :], clips[..., -1, :], clips[..., 0], clips[..., -1]], dim=-1)
        assert border.amax() < 0.5, f"a {SHAPES[shape]} reaches over the border of a dark night with stars"


def test_the_large_object_covers_little_of_the_ball():
    prompts = torch.tensor([[0, 5, 0, motion, 1] for motion in range(4) for _ in range(32)])
    clips = render(prompts, rng(4))
    yellow = ((clips[:, 0] > 0) & (clips[:, 2] < -0.5)).float().sum(dim=(2, 3))  # pixels of a yellow ball, by frame
    assert yellow.min() > 0.6 * yellow.max()


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
    for column, words in enumerate(ATTRIBUTES.values()):
        assert set(prompts[:, column].tolist()) == set(range(len(words)))
    assert describe(torch.tensor([3, 1, 2, 0, 5])) == "yellow cross moving left, white ball, dusk"
    words = embed(torch.arange(2)[:, None].expand(-1, len(ATTRIBUTES))).flatten(0, 1)
    assert len(torch.cat([words, embed_nothing(1)[0, :1]]).unique(dim=0)) == 2 * len(ATTRIBUTES) + 1
