"""Points of the map are made from shared stages, looked at on the way, measured, and told apart by statistics."""

import csv
import shutil
from dataclasses import replace
from itertools import product
from math import log10
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from safetensors.torch import load_file

from loraport.errors import SettingsError
from loraport.sampling.statistics import Interval
from loraport_lab.bench.material import Cell
from loraport_lab.bench.rows import rows_of
from loraport_lab.family.family import ADAPTERS, STUDENTS
from loraport_lab.regime.cells import METHODS, Subject, measure_cell, read_cell, statistics
from loraport_lab.regime.explain import explain
from loraport_lab.regime.factors import FACTORS, accounted, crossed, luck
from loraport_lab.regime.figure import draw_map
from loraport_lab.regime.points import (
    SCALE,
    Base,
    Distillation,
    MapCell,
    Places,
    Point,
    cells_of,
    points_of,
)
from loraport_lab.regime.run import SHORT_TABLES, beside, chosen, collect, explanation_csv, make_map, write_map
from loraport_lab.regime.stages import Workshop
from loraport_lab.regime.summary import loras_csv, paradigms_csv, regimes_csv, summary_csv
from loraport_lab.regime.table import (
    OF_THE_LAB,
    STATISTICS,
    Line,
    as_a_file,
    as_csv,
    lines_of,
    lines_of_lab,
    read_lines,
)
from loraport_lab.training.fit import Schedule
from loraport_lab.training.recipe import SHIPPED, Rounds

BRIEF = Schedule(steps=2, rate=1e-3, batch=2, warmup=1, save_every=1)
TINY = replace(
    SCALE, adapters=BRIEF, start=1, oracle=Rounds(BRIEF, most=1, gain=0.0), warmup=1, batch=2, trajectories=3,
    styled=3, held_out=1, clips=3, judge=BRIEF,
)  # fmt: skip
BASE = Base(64, 2)
FEW = Distillation("few-step", 1e-3, (1, 3))
MATCHED = Distillation("matched", 1e-3, (1, 6))  # in two of three steps the critic moves, not the student


RESULTS = Path(__file__).parents[2] / "results"


class PulledPlugError(Exception):
    """Ends a training in the middle of a step."""


def workshop(out, stop_at=None, taken=None) -> Workshop:
    def progress(stage: str, step: int, steps: int, loss: float) -> None:
        if taken is not None:
            taken.append((stage, step))
        if (stage, step) == stop_at:
            raise PulledPlugError

    return Workshop(Places(out), TINY, torch.device("cpu"), progress)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder in which the base, its adapters and the trajectories are there."""
    folder = tmp_path_factory.mktemp("map")
    torch.set_num_threads(1)
    workshop(folder).make_base(BASE)
    return folder


def weights(folder, student):
    return load_file(folder / "students" / student / "transformer/diffusion_pytorch_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("how", [FEW, MATCHED], ids=lambda how: how.student)
def test_a_later_look_is_as_if_one_had_not_looked_before(out, tmp_path, how):
    short, long = points_of(((BASE, how),))
    shutil.copytree(out, tmp_path, symlinks=True, dirs_exist_ok=True)
    taken = []
    later = weights(workshop(tmp_path, taken=taken).make_student(long), how.student)
    assert len(taken) == len(set(taken)), "a step was taken twice"
    earlier = weights(tmp_path / "points" / short.name, how.student)
    assert not all(torch.equal(earlier[name], later[name]) for name in later)
    alone = Point(BASE, replace(how, steps=(max(how.steps),)), max(how.steps))
    shutil.rmtree(tmp_path / "points")
    once = weights(workshop(tmp_path).make_student(alone), how.student)
    assert all(torch.equal(once[name], later[name]) for name in later)


@pytest.mark.slow
def test_a_killed_map_goes_on_where_it_was(out, tmp_path):
    cells = cells_of(points_of(((BASE, FEW),)))
    shutil.copytree(out, tmp_path, symlinks=True, dirs_exist_ok=True)
    with pytest.raises(PulledPlugError):
        make_map(workshop(tmp_path, stop_at=("few-step", 2)), cells)
    taken = []
    make_map(workshop(tmp_path, taken=taken), cells)
    assert ("few-step", 1) not in taken and ("few-step", 3) in taken
    make_map(workshop(tmp_path, taken=(again := [])), cells)
    assert again == []
    lines = collect(Places(tmp_path), cells)
    assert {line.row for line in lines} == {"student", "oracle", *METHODS}
    assert {(line.steps, line.adapter) for line in lines} == {
        (steps, name) for steps in (1, 3) for name in ("noir", "swing")
    }
    assert all(line.fidelity == Interval(0.0, 0.0, 0.0) for line in lines if line.row == "direct")
    drifts = {line.steps: line.statistics["drift"] for line in lines}
    assert 0 < drifts[1] < drifts[3]
    write_map(lines, tmp_path)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert as_csv(read_lines(tmp_path / "map.csv")) == as_csv(lines)


@pytest.mark.slow
def test_a_stronger_lora_is_measured_against_the_base_with_the_stronger_lora(out):
    point = Point(BASE, replace(FEW, steps=(1,)), 1)
    folder = workshop(out).make_student(point)
    cells = [MapCell(point, ADAPTERS["noir"], amount) for amount in (1.0, 2.0)]
    plain, strong = (Subject(cell, folder, 3, torch.device("cpu")) for cell in cells)
    name = next(iter(plain.layers))
    assert torch.allclose(strong.layers[name].lora.dense(), 2 * plain.layers[name].lora.dense())
    assert not torch.equal(plain.reference(Places(out)), strong.reference(Places(out)))
    measure_cell(strong, Places(out), out / "strong.json")
    facts = read_cell(out / "strong.json")
    assert "oracle" not in facts["rows"] and set(facts["statistics"]) == set(STATISTICS)
    numbers = {amount: statistics({name: one.layers[name]}) for amount, one in ((1, plain), (2, strong))}
    assert numbers[2]["lora"] == pytest.approx(2 * numbers[1]["lora"]) and numbers[2]["rho2"] == numbers[1]["rho2"]
    assert all(line.closed is None for line in lines_of(cells[1], facts))


@pytest.mark.slow
def test_loras_trained_longer_are_other_loras_on_the_same_base_and_student(out, tmp_path):
    shutil.copytree(out, tmp_path, symlinks=True, dirs_exist_ok=True)
    point = Point(replace(BASE, lora_length=2), replace(FEW, steps=(1,)), 1)
    taken = []
    folder = workshop(tmp_path, taken=taken).make_oracle(point, ADAPTERS["noir"])
    assert ("noir", 4) in taken and not any(stage == "base" for stage, _ in taken)
    assert taken.count(("few-step", 1)) <= 1, "the student was trained twice"
    usual = workshop(tmp_path).make_student(replace(point, base=BASE))
    for name in ("base", "students"):
        assert (folder / name).resolve() == (usual / name).resolve()
    for kept in ("adapters/noir", "checkpoints/noir-trajectories"):
        assert (folder / kept).resolve() != (usual / kept).resolve()
    longer, shorter = (load_file(next((one / "adapters/noir").glob("*.safetensors"))) for one in (folder, usual))
    assert longer.keys() == shorter.keys() and not all(torch.equal(longer[name], shorter[name]) for name in longer)


def test_patterns_choose_points():
    cells = cells_of(points_of(((BASE, FEW), (BASE, MATCHED))))
    assert chosen(cells, []) == cells
    assert [cell.point.steps for cell in chosen(cells, ["*/few-step-*"])] == [1, 1, 3, 3]
    with pytest.raises(SettingsError, match="fits no point"):
        chosen(cells, ["w999*"])


def test_a_grid_asks_for_strengths_at_the_last_point_of_some():
    cells = cells_of(points_of(((BASE, Distillation("few-step", 1e-4, (1, 2))), (BASE, FEW))))
    assert {(cell.point.steps, cell.strength) for cell in cells if cell.strength != 1} == {(2, 0.5), (2, 2.0)}
    assert len({(cell.point.name, cell.adapter.name, cell.strength) for cell in cells}) == len(cells) == 12


def made_up(width: int, rho2: float, gain: float, row: str = "casa", where: str = "here") -> Line:
    still = dict.fromkeys(STATISTICS, 0.5)
    interval = Interval(gain, gain - 0.1, gain + 0.1)
    return Line(
        where, width, 4, 100, 0, "few-step", rho2, 10, "noir", 1.0, 1, row, 20 + gain, interval, interval, interval,
        None, still | {"rho2": rho2},
    )  # fmt: skip


def map_of(gain_of) -> list[Line]:
    return [
        made_up(width, rho2, gain_of(width, rho2))
        for width in (64, 128, 256)
        for rho2 in (0.001, 0.003, 0.01, 0.03, 0.1)
    ]


def test_what_decides_the_sign_is_found_and_what_does_not_is_not():
    by_rho2 = {one.statistic: one for one in explain(map_of(lambda width, rho2: 1.0 if rho2 < 0.02 else -1.0), "casa")}
    assert by_rho2["rho2"].correlation < -0.8 and by_rho2["rho2"].signs == 1.0 and by_rho2["rho2"].guess == 0.6
    assert abs(by_rho2["width"].correlation) < 0.01 and by_rho2["width"].within is None
    by_width = {one.statistic: one for one in explain(map_of(lambda width, rho2: width / 100 - 1), "casa")}
    assert by_width["width"].correlation == pytest.approx(1.0)
    assert by_width["rho2"].within is None or abs(by_width["rho2"].within) < 0.01
    assert "drift" not in by_width, "a statistic that is the same everywhere explains nothing"


def test_a_factor_accounts_for_what_was_made_by_it_and_for_no_more():
    places = list(product((64, 96, 128), ("few-step", "one-step", "matched"), ("noir", "swing"), (0.002, 0.005, 0.02)))
    tilt = {"noir": 0.1, "swing": -0.2}
    lines = [
        replace(made_up(width, rho2, tilt[adapter] * log10(rho2)), student=student, adapter=adapter)
        for width, student, adapter, rho2 in places
    ]
    assert accounted(lines, ["drift, for style and motion apart"]) == pytest.approx(1)
    assert accounted(lines, list(FACTORS)) == pytest.approx(1)
    for name in ("base model", "paradigm"):
        assert accounted(lines, [name]) < 0.01
    assert accounted(lines, ["drift (log ρ₂ and its square)"]) < accounted(lines, ["style or motion"]) < 1
    assert accounted(lines[:3], list(FACTORS)) is None
    doubtful = [replace(line, fidelity=Interval(line.fidelity.value, -9.0, 9.0)) for line in lines]
    assert luck(lines) < 0.1 < 1 < luck(doubtful)
    assert crossed([*lines, replace(lines[0], strength=2.0), replace(lines[0], where="card")], "casa") == lines


def test_ranges_of_drift_are_told_apart_for_styles_and_motion():
    some = [made_up(64, 0.002, 0.5), replace(made_up(64, 0.002, -2.0), adapter="swing"), made_up(64, 0.006, 2.5)]
    lines = [replace(line, row=row) for line in some for row in ("casa", "direct")]
    lines += [replace(line, student="accelerator") for line in lines] + [replace(line, strength=2.0) for line in lines]
    table = list(csv.DictReader(regimes_csv(lines).decode().splitlines()))
    assert [(row["ρ₂, %"], row["students"], row["LoRAs"]) for row in table] == [
        ("0 to 0.4", "1", "2"),
        ("0.4 to 1", "1", "1"),
    ]
    style, motion = (f"{kind}: casa" for kind in ("style", "motion"))
    assert [row[style] for row in table] == ["+0.50 (1 / 0)", "+2.50 (1 / 0)"]
    assert [row[motion] for row in table] == ["−2.00 (0 / 1)", "–"]
    table = list(csv.DictReader(paradigms_csv(lines).decode().splitlines()))
    assert [(row["paradigm"], row["LoRAs"], row[style]) for row in table] == [
        ("accelerator", "3", "+1.50 (2 / 0)"),
        ("few-step", "3", "+1.50 (2 / 0)"),
    ]


def test_loras_of_several_sizes_stand_side_by_side():
    usual, other = made_up(64, 0.002, 0.5), made_up(96, 0.002, 0.5)
    some = [
        usual,
        replace(usual, strength=2.0, fidelity=Interval(-0.2, -0.5, 0.1)),
        replace(usual, lora_length=3),
        other,
    ]
    lines = [replace(line, row=row) for line in some for row in ("casa", "direct")]
    table = list(csv.DictReader(loras_csv(lines).decode().splitlines()))
    found = [(row["strength"], row["training"], row["casa, dB"]) for row in table]
    assert found == [("1", "× 1", "+0.50*"), ("2", "× 1", "−0.20"), ("1", "× 3", "+0.50*")]
    assert {row["oracle, dB"] for row in table} == {"–"}


def test_too_few_cells_explain_nothing():
    assert explain(map_of(lambda width, rho2: rho2)[:3], "casa") == []
    assert explanation_csv([]).decode().startswith("statistic,cells,correlation")


def test_the_figure_takes_points_of_other_widths_and_places():
    lines = map_of(lambda width, rho2: width / 100 - 20 * rho2)
    more = [*lines, made_up(640, 0.002, 1.0, where="a card"), *(replace(line, row="undo:0.25") for line in lines)]
    assert draw_map(more) != draw_map(lines) and draw_map(more) == draw_map(more)


def test_a_map_of_before_keeps_what_was_not_made_again():
    old = [made_up(64, 0.01, 1.0), made_up(96, 0.01, 1.0), made_up(640, 0.002, 1.0, where="a card")]
    new = [made_up(64, 0.01, 2.0)]
    assert beside(new, old) == [*new, *old[1:]] and beside([], old) == old


def in_lab(name: str, change: float) -> dict:
    numbers = {"mean": 20.0, "change": change, "change_low": change - 1, "change_high": change + 1}
    gap = {"value": 0.5, "low": 0.4, "high": 0.6}
    return {"name": name, "metrics": dict.fromkeys(("psnr", "effect", "content"), numbers), "gap_closed": {"psnr": gap}}


def test_the_labs_cells_of_the_shipped_family_are_lines_too():
    premises = {"drift": 0.01, "rho2": 0.003, "kept": None}
    rows = [in_lab(name, float(place)) for place, name in enumerate(OF_THE_LAB.values())]
    cell = {"student": "matched", "adapter": "noir", "premises": premises, "rows": rows}
    lines = lines_of_lab({"cells": [cell]})
    assert {line.row for line in lines} == set(OF_THE_LAB) and {line.base[:2] for line in lines} == {(256, 4)}
    casa, halved = (next(line for line in lines if line.row == row) for row in ("casa", "restore-only, rank 2r"))
    assert casa.fidelity.value == list(OF_THE_LAB).index("casa") and casa.closed == Interval(0.5, 0.4, 0.6)
    assert casa.statistics == {"drift": 0.01, "rho2": 0.003} and casa.steps == SHIPPED.matching.steps
    second = lines_of_lab({"cells": [cell]}, 1)
    assert [replace(line, seed=0) for line in second] == lines and len({line.base for line in (*lines, *second)}) == 2
    known = {row.name for row in rows_of(Cell(STUDENTS["matched"], ADAPTERS["noir"]))}
    assert set(OF_THE_LAB.values()) <= known | {"casa, full rank"}
    assert as_a_file(lines, "restore-only") == [halved] and as_a_file(lines, "casa") == [casa]
    alone = replace(halved, row="restore-only")
    assert as_a_file([alone], "restore-only") == [alone] and as_a_file([alone, halved], "restore-only") == [halved]


def test_the_summary_has_a_line_a_student_and_counts_sure_changes():
    lines = [made_up(64, 0.01, gain, row) for row in ("casa", "direct") for gain in (0.5, -0.5, 0.05, 0.55)]
    lines = [replace(line, adapter=str(place % 4)) for place, line in enumerate(lines)]
    elsewhere = [made_up(640, 0.01, -1.0, row, where="card") for row in ("casa", "direct")]
    again = [replace(line, seed=1) for line in elsewhere]
    text = summary_csv([*again, *elsewhere, *lines, replace(lines[0], strength=2.0)]).decode().splitlines()
    table = [dict(zip(next(csv.reader(text[:1])), row, strict=True)) for row in csv.reader(text[1:])]
    assert [row["width"] for row in table] == ["64 (100 steps)", "640 (card)", "640 (card, seed 1)"]
    assert [row["casa, dB (better / worse)"] for row in table] == ["+0.15 (2 / 1)", *["−1.00 (0 / 1)"] * 2]
    assert table[0]["LoRAs"] == "4" and table[0]["ρ₂, %"] == "1" and table[0]["casa, gap closed"] == "–"


def test_what_the_docs_show_of_the_map_follows_from_its_table():
    lines = read_lines(RESULTS / "map" / "map.csv")
    assert len({line.cell for line in lines if line.row == "casa"}) >= 30
    for name, table in SHORT_TABLES.items():
        assert (RESULTS / "map" / name).read_bytes() == table(lines), name
    assert as_csv(lines) == (RESULTS / "map" / "map.csv").read_bytes()
