"""The advice that the program ships follows from the map's table, and its fit finds what was planted."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from loraport.diagnosis.rule.advice import SAFE
from loraport.diagnosis.rule.measured_map import DATA
from loraport.plain_json import json_text
from loraport.sampling.statistics import Interval
from loraport_lab.regime.advice import (
    MapPoint,
    advice_csv,
    advice_json,
    done,
    fit,
    mean_regret,
    points_of_map,
    sureness,
    told_by_others,
)
from loraport_lab.regime.points import shipped_base
from loraport_lab.regime.table import Line, read_lines
from loraport_lab.training.recipe import SHIPPED

MAP = Path(__file__).parents[2] / "results" / "map" / "map.csv"


def test_the_programs_file_and_the_docs_table_follow_from_the_map():
    points = points_of_map(read_lines(MAP))
    assert DATA.read_text(encoding="utf-8") == json_text(advice_json(points), indent=1, ensure_ascii=False) + "\n"
    assert MAP.with_name("map-advice.csv").read_bytes() == advice_csv(points)


def planted(width, head, casa, undo, *, student="few-step", adapter="noir"):
    """A point of a base of this width, with what two rules gain there."""
    none = Interval(0.0, -1.0, 1.0)
    line = Line(
        "here", width, 4, 100, 0, student, head, 10, adapter, 1.0, 1, "direct", 20.0, none, none, none, None,
        {"drift": 0.05, "rho2": 0.01, "lora": 0.1, "head_drift": head, "kept": 0.5},
    )  # fmt: skip
    gains = {"direct": 0.0, "casa": casa, SAFE: undo, "arbitrate-only": 0.0}
    return MapPoint(line, gains, dict.fromkeys(gains, 0.0))


def divided(width):
    """Undo is right below 0.45, nothing is between 0.45 and 0.55, and casa is right above."""
    beside = planted(width, 0.35, -0.5, -0.5, student="accelerator")
    low = [planted(width, head, -0.5, 0.5) for head in (0.3, 0.4)]
    between = [planted(width, 0.5, -0.5, -0.1, adapter=name) for name in ("noir", "neon", "swing")]
    return [beside, *low, *between, planted(width, 0.6, 1.0, 0.2)]


def test_the_fit_finds_where_rules_change():
    thresholds = fit([*divided(64), *divided(96)])
    assert (thresholds.accelerated, thresholds.unsure, thresholds.casa) == ("direct", 0.45, 0.55)
    told = told_by_others([*divided(64), *divided(96)])
    assert [verdict for _, verdict in told[:7]] == ["direct", SAFE, SAFE, "choose", "choose", "choose", "casa"]
    assert mean_regret([point for point, _ in told], lambda point: SAFE) > 0.1


def test_a_base_is_told_by_the_others_alone():
    odd = [planted(128, 0.3, 1.0, 0.0), planted(128, 0.6, -1.0, 0.5)]  # the other way round
    told = [verdict for point, verdict in told_by_others([*divided(64), *divided(96), *odd]) if point.line.width == 128]
    assert told == [SAFE, "casa"]


def test_the_shipped_familys_pairs_are_counted_apart_from_points_of_its_base_and_of_other_seeds():
    schedule, base = SHIPPED.last_schedule("matched"), shipped_base()
    point = planted(base.width, 0.5, 0.1, 0.1, student="matched")
    shipped = replace(point.line, base_steps=base.steps, rate=schedule.rate, steps=schedule.steps)
    assert replace(point, line=shipped).shipped
    for other in ({"seed": 1}, {"rate": 1e-4}, {"where": "card"}, {"strength": 2.0}):
        assert not replace(point, line=replace(shipped, **other)).shipped


def test_sureness_counts_students_and_is_never_whole():
    told = told_by_others([*divided(64), *divided(96)])
    sure = sureness(told)
    assert sure["casa"] == pytest.approx(3 / 4) and sure[SAFE] == pytest.approx(5 / 6)  # of 2 and of 4 students
    more = [
        (replace(point, line=replace(point.line, adapter=name)), verdict) for point, verdict in told for name in "ab"
    ]
    assert sureness(more) == pytest.approx(sure)  # two LoRAs a student say no more
    assert done("choose") == SAFE and done("casa") == "casa"
