"""The score's agreement with other measures, on rows that are planted."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")

from loraport_lab.bench.agreement import agreement, compared_rows

CLIPS = 40
NOISE = torch.linspace(-1, 1, CLIPS)


def planted(psnr: dict[str, float], end: dict[str, float], **groups: str):
    """A cell whose rows have these means; the measures other than fidelity follow it."""
    rows = {}
    for place, name in enumerate(psnr):
        value = psnr[name] + 0.3 * NOISE.roll(place)
        values = dict.fromkeys(("psnr", "effect", "likeness", "shape"), value)
        values |= {"sharpness": 100 - value, "flicker": 100 - value, "end": end[name] + 0.01 * NOISE.roll(place)}
        group = groups.get(name, "frame" if name == "direct" else "method")
        chosen = "direct" if group == "calibrated" else None
        features = torch.randn(CLIPS, 4, generator=torch.Generator().manual_seed(place)) + psnr[name]
        rows[name] = SimpleNamespace(row=name, group=group, values=values, features=features, facts={"chosen": chosen})
    prompts = tuple(map(str, range(CLIPS)))
    real = torch.randn(CLIPS, 4)
    return SimpleNamespace(cell=SimpleNamespace(name="planted"), rows=rows, real=real, prompts=prompts)


PSNR = {"direct": 20.0, "a": 22.0, "b": 21.0, "c": 18.0, "d": 20.5}
RIGHT = {"direct": 1.0, "a": 0.2, "b": 0.5, "c": 2.0, "d": 0.8}


@pytest.mark.parametrize(("turned", "expected"), [(1, 1.0), (-1, -1.0)])
def test_a_score_that_ranks_alike_agrees_and_one_that_ranks_upside_down_does_not(turned, expected):
    cell = planted(PSNR, {name: turned * value for name, value in RIGHT.items()})
    found = {line.measure: line for line in agreement([cell])}
    assert found["psnr"].mean == found["effect"].mean == pytest.approx(expected)
    assert found["sharpness"].mean == pytest.approx(-expected)  # further from 100 is worse
    assert (found["psnr"].agree, found["psnr"].disagree) == ((4, 0) if turned == 1 else (0, 4))
    assert found["psnr"].lowest_cell == "planted" and "tint" not in found and "fréchet" in found


def test_a_difference_that_is_not_sure_has_no_side():
    close = {**PSNR, "a": 20.0001}
    lines = {line.measure: line for line in agreement([planted(close, RIGHT)])}
    assert lines["psnr"].agree == 3 and lines["psnr"].disagree == 0


def test_near_rows_are_counted_apart():
    psnr = {"direct": 20.0, "a": 20.2, "b": 20.4, "c": 20.6, "far": 10.0}
    end = {"direct": 1.0, "a": 1.1, "b": 1.2, "c": 1.3, "far": 9.0}
    line = next(line for line in agreement([planted(psnr, end)]) if line.measure == "psnr")
    assert line.near_mean == pytest.approx(-1) and line.mean > line.near_mean  # the far row flatters


def test_chosen_rows_and_the_frame_are_not_counted():
    cell = planted(
        {**PSNR, "kept": 20.0, "oracle": 25.0}, {**RIGHT, "kept": 1.0, "oracle": 0.1}, kept="calibrated", oracle="frame"
    )
    assert {row.row for row in compared_rows(cell)} == set(PSNR)
    few = planted({"direct": 20.0, "a": 21.0}, {"direct": 1.0, "a": 0.5})
    assert agreement([few]) == []
