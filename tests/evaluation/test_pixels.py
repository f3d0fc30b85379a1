"""Numbers from pixels, on clips whose answer is known."""

import math

import numpy as np
import pytest
import torch

from loraport.clips.clip import Clip
from loraport.evaluation.metrics.fidelity import Fidelity, moments, structural_similarity
from loraport.evaluation.metrics.flow import block_motion
from loraport.evaluation.metrics.pixels import Pixels, brightness, cuts


def texture(height=64, width=80, seed=0):
    """A picture with detail of several sizes: no block looks like another."""
    rng = np.random.default_rng(seed)
    picture = sum(
        np.kron(rng.random((-(-height // s), -(-width // s), 3)), np.ones((s, s, 1)))[:height, :width]
        for s in (1, 4, 16)
    )
    return (picture / 3 * 255).astype(np.uint8)


def moving(down, right, frames=5, fps=8.0):
    big = texture(160, 160)
    top, left = 48, 48
    views = [big[top - down * t : top - down * t + 64, left - right * t : left - right * t + 80] for t in range(frames)]
    return Clip(np.stack(views), fps)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 0), (0, -2), (-4, 5)])
def test_a_whole_shift_is_found_exactly(down, right):
    clip = moving(down, right, 2)
    shifts = block_motion(brightness(clip.frames[0]), brightness(clip.frames[1]))
    inner = shifts[1:-1, 1:-1].reshape(-1, 2)
    assert torch.equal(inner, torch.tensor([down, right]).float().expand_as(inner))


def test_half_a_pixel_is_found_to_a_fifth_and_a_plain_wall_does_not_move():
    smooth = torch.from_numpy(texture(64, 128).mean(2)).float() / 255
    smooth = torch.nn.functional.avg_pool2d(smooth[None, None], 3, 1, 1)[0, 0]
    first, second = smooth[:, 10:90], (smooth[:, 9:89] + smooth[:, 10:90]) / 2
    assert block_motion(first, second)[1:-1, 1:-1, 1].mean() == pytest.approx(0.5, abs=0.1)
    assert not block_motion(torch.full((64, 64), 0.5), torch.full((64, 64), 0.6)).any()


def test_the_speed_is_in_heights_a_second_whatever_the_rate_and_the_size():
    clip = moving(2, 0)
    speed = float(Pixels()(clip, None, None)["speed"])
    assert speed == pytest.approx(100 * 2 / 64 * 8, rel=0.1)  # blocks at the edge see what comes in
    assert float(Pixels()(Clip(clip.frames, 16.0), None, None)["speed"]) == pytest.approx(2 * speed)
    large = Clip(clip.frames.repeat(4, axis=1).repeat(4, axis=2), 8.0)
    assert float(Pixels()(large, None, None)["speed"]) == pytest.approx(speed, rel=0.1)


def test_blur_takes_sharpness_and_a_still_clip_has_no_change_no_flicker_no_speed_and_no_cut():
    still = Clip(np.repeat(texture()[None], 5, axis=0), 8.0)
    readings = Pixels()(still, None, None)
    assert [float(readings[name]) for name in ("change", "flicker", "speed", "cuts")] == [0, 0, 0, 0]
    soft = still.frames.astype(np.float32)
    soft = (soft + np.roll(soft, 1, axis=1) + np.roll(soft, 1, axis=2)) / 3
    blurred = Pixels()(Clip(soft.astype(np.uint8), 8.0), None, None)
    assert float(blurred["sharpness"]) < 0.8 * float(readings["sharpness"])


def test_flicker_is_what_comes_and_goes_and_a_steady_fade_has_none():
    plain = np.full((6, 16, 16, 3), 100, np.uint8)
    blinking, fading = plain.copy(), plain.copy()
    blinking[::2] += 10
    fading += np.arange(6, dtype=np.uint8)[:, None, None, None] * 10
    assert float(Pixels()(Clip(blinking), None, None)["flicker"]) == pytest.approx(100 * 20 / 255, rel=1e-3)
    assert float(Pixels()(Clip(fading), None, None)["flicker"]) == pytest.approx(0, abs=1e-3)
    assert float(Pixels()(Clip(fading), None, None)["change"]) == pytest.approx(100 * 10 / 255, rel=1e-3)


def test_one_frame_has_no_motion():
    readings = Pixels()(Clip(texture()[None]), None, None)
    assert all(math.isnan(float(readings[name])) for name in ("change", "flicker", "speed"))
    assert float(readings["cuts"]) == 0 and float(readings["sharpness"]) > 0


def test_a_cut_is_seen_and_fast_motion_is_none():
    def smooth(clip):
        return torch.nn.functional.avg_pool2d(torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255, 8)

    one, other = smooth(moving(1, 1, 6).frames), 1 - smooth(moving(-1, 1, 6).frames)
    assert cuts(torch.cat([one, other])) == [6]
    assert cuts(one) == []
    noise = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert cuts(noise) == []  # every step is as large
    assert cuts(torch.cat([one[:1], other[:1]])) == [1]


def fidelity(one, other, fps=(8.0, 8.0)):
    return {name: float(value) for name, value in Fidelity()(Clip(one, fps[0]), Clip(other, fps[1]), None).items()}


def test_fidelity_on_known_errors():
    frames = np.repeat(texture()[None], 3, axis=0)
    assert fidelity(frames, frames) == {"psnr": 99.0, "ssim": pytest.approx(1.0)}
    flat = np.full((2, 32, 32, 3), 100, np.uint8)
    assert fidelity(flat, flat + 10)["psnr"] == pytest.approx(20 * math.log10(255 / 10), abs=1e-4)
    assert all(math.isnan(value) for value in fidelity(frames, frames[:, :32]).values())


def test_structural_similarity_by_its_definition():
    one, other = (brightness(texture(24, 20, seed)).double() for seed in (0, 1))
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = torch.from_numpy(np.outer(line, line) / line.sum() ** 2)
    values = []
    for top in range(14):
        for left in range(10):
            a, b = one[top : top + 11, left : left + 11], other[top : top + 11, left : left + 11]
            mean, other_mean = (window * a).sum(), (window * b).sum()
            variance, other_variance = (window * (a - mean) ** 2).sum(), (window * (b - other_mean) ** 2).sum()
            covariance = (window * (a - mean) * (b - other_mean)).sum()
            values.append(
                (2 * mean * other_mean + 1e-4) * (2 * covariance + 9e-4)
                / ((mean**2 + other_mean**2 + 1e-4) * (variance + other_variance + 9e-4))
            )  # fmt: skip
    assert float(structural_similarity(one, other)) == pytest.approx(float(torch.stack(values).mean()), abs=1e-10)


@pytest.mark.parametrize(
    ("lengths", "rates", "pairs"),
    [
        ((3, 5), (8, 8), [(0, 0), (1, 1), (2, 2)]),
        ((5, 10), (8, 16), [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8)]),
        ((6, 3), (24, 8), [(0, 0), (3, 1)]),
        ((1, 3), (8, 16), [(0, 0)]),
    ],
)
def test_frames_are_compared_at_the_same_moment(lengths, rates, pairs):
    one, other = (Clip(np.zeros((n, 4, 4, 3), np.uint8), float(fps)) for n, fps in zip(lengths, rates, strict=True))
    assert moments(one, other) == pairs
