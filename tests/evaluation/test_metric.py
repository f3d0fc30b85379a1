"""Declarations of metrics: what contradicts itself is refused, and gains point the declared way."""

import math

import pytest
import torch

from loraport.errors import SettingsError
from loraport.evaluation.metrics.metric import Instrument, Metric, WeightFile, Weights, mean_cosine, reading


def instrument(**changes):
    return Instrument("eye", 1, lambda folders, device: lambda clip, reference, prompt: {}, **changes)


def metric(**changes):
    return Metric(
        **{"name": "m", "title": "M", "words": "M.", "instrument": instrument(), "score": reading("m")} | changes
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"score": None},
        {"whole": lambda ours, theirs: 0.0, "needs": frozenset({"reference"})},
        {"score": None, "whole": lambda ours, theirs: 0.0},
        {"better": "ideal"},
        {"better": "higher", "ideal": 100.0},
        {"instrument": instrument(beside=True)},
        {"instrument": instrument(reads_prompt=True)},
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(changes):
    with pytest.raises(SettingsError, match="metric 'm'"):
        metric(**changes)


def test_a_whole_declaration_is_taken():
    metric(score=None, whole=lambda ours, theirs: 0.0, needs=frozenset({"reference"}))
    metric(instrument=instrument(beside=True, reads_prompt=True), needs=frozenset({"reference", "prompt"}))


@pytest.mark.parametrize(
    ("direction", "ideal", "gain"),
    [("higher", None, 2.0), (None, None, 2.0), ("lower", None, -2.0), ("ideal", 100.0, 2.0), ("ideal", 90.0, -2.0)],
)
def test_a_gain_points_to_what_is_better(direction, ideal, gain):
    assert metric(better=direction, ideal=ideal).gain(98.0, 96.0) == gain
    assert metric(better=direction, ideal=ideal).gain(96.0, 98.0) == -gain


def test_weights_say_their_size_and_how_to_fetch_them():
    weights = Weights("org/name", (WeightFile("a.bin", 5), WeightFile("sub/b.bin", 7)), "MIT")
    assert (weights.bytes, weights.command) == (12, "hf download org/name a.bin sub/b.bin")
    unknown = Weights("org/name", (WeightFile("a.bin"), WeightFile("b.bin", 7)), "MIT", revision="abc")
    assert (unknown.bytes, unknown.command) == (None, "hf download org/name a.bin b.bin --revision abc")


def test_the_mean_cosine_is_over_the_frames_that_both_have():
    here = {"v": torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])}
    there = {"v": torch.tensor([[3.0, 0.0], [1.0, 0.0]])}
    assert mean_cosine("v")(here, there) == pytest.approx(50)
    assert mean_cosine("v", 1)(here, there) == pytest.approx(100)
    assert math.isnan(mean_cosine("v")(here, None))
