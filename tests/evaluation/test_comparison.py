"""Differences in pairs: intervals hold what they promise, and controls tell undoing from style."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from loraport.evaluation.comparison import column_means, differences
from loraport.evaluation.controls import own_effects, style_controls
from loraport.evaluation.grid import Column, Grid, Key
from loraport.evaluation.metrics.metric import Instrument, Metric, mean_cosine, reading
from loraport.evaluation.scores import Scores, score_grid

EYE = Instrument("eye", 1, lambda folders, device: lambda clip, reference, prompt: {})
NEED = frozenset({"reference"})


def metric(**changes):
    values = {"name": "m", "title": "M", "words": "M.", "instrument": EYE, "score": reading("x")}
    return Metric(**values | changes)


def keys(prompts, seeds):
    return [Key(f"{p:02d}", str(s)) for p in range(prompts) for s in range(seeds)]


def grid_of(*names, reference=None, all_keys=()):
    return Grid("g", tuple(Column(name, name, dict.fromkeys(all_keys)) for name in names), reference)


def scored(values):
    return Scores({"m": {column: dict(own) for column, own in values.items()}}, {})


@dataclass
class Seen:
    """What the comparison asks of a clip."""

    readings: dict
    frames: int = 3
    size: tuple = (8, 8)
    fps: float = 8.0


def test_an_interval_holds_nineteen_times_in_twenty_though_seeds_of_a_prompt_are_alike():
    rng, one, all_keys = np.random.default_rng(0), metric(), keys(10, 4)
    held = independent = 0
    for _ in range(400):
        base = rng.normal(size=40)
        per_prompt = np.repeat(rng.normal(size=10), 4)  # how much a prompt gains is the prompt's own
        gain = 0.5 + per_prompt + 0.5 * rng.normal(size=40)
        values = {"a": dict(zip(all_keys, base, strict=True)), "b": dict(zip(all_keys, base + gain, strict=True))}
        (found,) = differences(grid_of("a", "b", all_keys=all_keys), [one], scored(values), {}, "a")
        held += found.interval.low <= 0.5 <= found.interval.high
        reach = 2.02 * gain.std(ddof=1) / 40**0.5
        independent += abs(gain.mean() - 0.5) <= reach
    assert 0.92 <= held / 400 <= 0.975
    assert independent / 400 < 0.80  # what clips that count as independent would give


def test_intervals_of_several_columns_hold_together():
    rng, one, all_keys = np.random.default_rng(1), metric(), keys(8, 1)
    names = [f"c{number}" for number in range(6)]
    together = 0
    for _ in range(100):
        values = {"a": dict.fromkeys(all_keys, 0.0)}
        values |= {name: dict(zip(all_keys, rng.normal(size=8), strict=True)) for name in names}
        found = differences(grid_of("a", *names, all_keys=all_keys), [one], scored(values), {}, "a")
        together += all(each.interval.sign == 0 for each in found)
    assert together / 100 >= 0.89


def test_a_column_that_lacks_clips_is_compared_on_those_that_all_have():
    all_keys = keys(5, 1)
    values = {
        "a": dict.fromkeys(all_keys, 1.0),
        "b": {key: 2.0 + number for number, key in enumerate(all_keys)},
        "c": dict.fromkeys(all_keys[:3], 4.0),
    }
    found = differences(grid_of("a", "b", "c", all_keys=all_keys), [metric()], scored(values), {}, "a")
    assert [(one.column, one.clips, one.interval.value) for one in found] == [("b", 3, 2.0), ("c", 3, 3.0)]
    means = column_means(grid_of("a", "b", "c", all_keys=all_keys), [metric()], scored(values), {})
    assert [(mean.column, mean.clips) for mean in means] == [("a", 5), ("b", 5), ("c", 3)]


@pytest.mark.parametrize(
    ("direction", "ideal", "verdict", "value"),
    [
        ("higher", None, "better", 2.0),
        ("lower", None, "worse", 2.0),
        (None, None, "", 2.0),
        ("ideal", 100.0, "better", 2.0),
    ],
)
def test_a_verdict_points_to_what_is_better(direction, ideal, verdict, value):
    all_keys = keys(4, 1)
    values = {"a": dict.fromkeys(all_keys, 90.0), "b": dict.fromkeys(all_keys, 92.0)}
    one = metric(better=direction, ideal=ideal)
    (found,) = differences(grid_of("a", "b", all_keys=all_keys), [one], scored(values), {}, "a")
    assert (found.verdict, found.interval.value) == (verdict, value)


def whole_metric():
    def distance(clips, references):
        one, other = (torch.stack([each["v"] for each in side]).mean(0) for side in (clips, references))
        return float((one - other).norm())

    return metric(name="d", score=None, whole=distance, better="lower", needs=NEED)


def test_a_metric_of_whole_columns_is_compared_by_leaving_out_prompts():
    rng, one, all_keys = np.random.default_rng(2), whole_metric(), keys(8, 2)
    grid = grid_of("ref", "a", "b", reference="ref", all_keys=all_keys)
    held = 0
    for _ in range(60):
        clips = {}
        for name, away in {"ref": 0.0, "a": 3.0, "b": 2.0}.items():
            prompts = np.repeat(rng.normal(size=(8, 1)), 2, axis=0)
            points = np.array([away, 0.0]) + prompts * [1, 0] + 0.3 * rng.normal(size=(16, 2))
            clips |= {
                (name, key): Seen({"eye": {"v": torch.tensor(p)}}) for key, p in zip(all_keys, points, strict=True)
            }
        scores = score_grid(grid, clips, [one])
        (found,) = differences(grid, [one], scores, clips, "a")
        held += found.interval.low <= -1 <= found.interval.high
    assert held / 60 >= 0.88
    assert {mean.column for mean in column_means(grid, [one], scores, clips)} == {"a", "b"}


def worlds(*, drift, style, prompts=12):
    """Features of all columns: the source is `drift` from the target, and the LoRA adds `style` to either."""
    rng = np.random.default_rng(3)
    all_keys, clips = keys(prompts, 1), {}
    places = {
        "source": drift, "source+lora": drift + style, "target": 0 * drift, "direct": 0.5 * style,
        "undone": 0.5 * style + 0.6 * drift, "moved": 0.9 * style,
    }  # fmt: skip
    for key in all_keys:
        scene = rng.normal(size=4) * 0.5 + [4, 0, 0, 0]
        for name, place in places.items():
            features = torch.tensor(scene + place + 0.02 * rng.normal(size=4))[None]
            clips[name, key] = Seen({"eye": {"v": features}})
    return grid_of(*places, reference="source+lora", all_keys=all_keys), clips


def test_controls_tell_a_style_that_was_moved_from_a_distillation_that_was_undone():
    one = metric(score=mean_cosine("v"), needs=NEED, style=True, vector="v")
    grid, clips = worlds(drift=np.array([0, 3.0, 0, 0]), style=np.array([0, 0, 2.0, 0]))
    scores = score_grid(grid, clips, [one])
    controls = {control.column: control for control in style_controls(grid, [one], scores, "direct")}
    assert set(controls) == {"undone", "moved"}
    undone = controls["undone"]
    assert undone.gain.sign > 0 and undone.undoing.sign > 0 and undone.beyond.sign <= 0  # it only looks better
    effects = {effect.column: effect.interval for effect in own_effects(grid, [one], clips)}
    assert "target" not in effects
    assert effects["source+lora"].value > 90 and abs(effects["source"].value) < 5
    assert effects["direct"].value == pytest.approx(50, abs=3) and effects["undone"].value == pytest.approx(50, abs=3)
    assert effects["moved"].value == pytest.approx(90, abs=3)  # what the score alone does not tell


def test_without_drift_a_gain_in_style_is_a_gain_in_style():
    one = metric(score=mean_cosine("v"), needs=NEED, style=True, vector="v")
    grid, clips = worlds(drift=np.zeros(4), style=np.array([0, 0, 2.0, 0]))
    scores = score_grid(grid, clips, [one])
    (moved,) = (control for control in style_controls(grid, [one], scores, "direct") if control.column == "moved")
    assert moved.gain.sign > 0 and moved.beyond.sign > 0


def test_without_the_bare_models_there_are_no_controls_and_no_effects():
    one = metric(score=mean_cosine("v"), needs=NEED, style=True, vector="v")
    grid, clips = worlds(drift=np.array([0, 3.0, 0, 0]), style=np.array([0, 0, 2.0, 0]))
    less = Grid("g", tuple(column for column in grid.columns if column.name != "source"), grid.reference)
    kept = {place: clip for place, clip in clips.items() if place[0] != "source"}
    controls = style_controls(less, [one], score_grid(less, kept, [one]), "direct")
    assert [control.undoing for control in controls] == [None, None] and own_effects(less, [one], kept) == []


def test_one_clip_alone_has_an_open_interval():
    values = {"a": {Key("1", "0"): 1.0}, "b": {Key("1", "0"): 3.0}}
    (found,) = differences(grid_of("a", "b", all_keys=[Key("1", "0")]), [metric()], scored(values), {}, "a")
    assert found.interval.value == 2 and math.isinf(found.interval.high) and found.verdict == ""
