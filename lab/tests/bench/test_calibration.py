"""The lab's calibrated rows: what a user's file would give, chosen by the guard, with references that wear the same."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from loraport.files.lora.read import read_lora
from loraport.sampling.calibration.residual_writers import writing_layers
from loraport.sampling.calibration.run import CalibrationSettings, calibrate
from loraport.sampling.choice.candidates import write_calibrated
from loraport.sampling.hooks import adapted, fingerprint
from loraport.sampling.pair import Clips
from loraport.sampling.statistics import mean_interval
from loraport_lab.bench import calibration
from loraport_lab.bench.calibration import (
    CALIBRATED,
    CONTROLS,
    COUNTED,
    STUDIED_CELLS,
    Fit,
    calibrated_rule,
    calibration_on,
    calibration_rows,
    foreign_gains,
    open_pair,
    reference_updates,
    rule_for,
)
from loraport_lab.bench.evaluate import Session, as_clips
from loraport_lab.bench.material import EVALUATION_SEEDS, Cell, Material, all_cells
from loraport_lab.bench.rows import AS_TRAINED, AdapterUse, Row, nothing, transferred
from loraport_lab.bench.store import Store
from loraport_lab.family.adapters import attach
from loraport_lab.family.family import ADAPTERS, CELLS, FAMILY, STUDENTS, adapter_path
from loraport_lab.family.model import open_base
from loraport_lab.family.sample import sample_base, sample_student

SMALL = Fit(CalibrationSettings(clips=2, last_blocks=1))
CELL = Cell(STUDENTS["one-step"], ADAPTERS["retro"])


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("parts")
    store = Store(folder, "test")
    return Session(Material(CELL, FAMILY, folder), store, store, clips=6, calibration=True)


def guarded(name: str, **rules) -> Row:
    return Row(name, "calibrated", name, nothing, candidates=rules, choice="guard")


@pytest.mark.slow
def test_a_calibrated_row_is_what_the_written_file_gives(session, tmp_path):
    lora = read_lora(str(adapter_path("retro")))
    updates = calibration_on(session.material, SMALL).updates
    out = tmp_path / "out.safetensors"
    write_calibrated(str(out), updates, lora, {}, dtype="fp32", format="diffusers")
    latents = session.sample(session.student, calibrated_rule(SMALL)(session.material), session.evaluation)
    drawn, model = session.evaluation, attach(session.material.student(), out)
    loaded = sample_student(model, CELL.student, drawn.prompts, drawn.noise)
    assert torch.allclose(as_clips(latents), as_clips(loaded), atol=2e-3)
    direct = session.sample(session.student, transferred("direct")(session.material), drawn)
    assert not torch.allclose(as_clips(latents), as_clips(direct), atol=1e-2)


@pytest.mark.slow
def test_readout_that_goes_on_from_the_gains_row_is_the_whole_calibration(session):
    pair = open_pair("one-step", FAMILY)
    whole = calibrate(pair, session.material.adapter, settings=SMALL.settings)
    assert fingerprint(calibration_on(session.material, SMALL).updates) == fingerprint(whole.updates)
    assert calibration_on(session.material, SMALL).gains == whole.gains
    cut = calibration_on(session.material, replace(SMALL, settings=replace(SMALL.settings, rank="source")))
    assert {update.rank for update in cut.updates.values()} == {8}


@pytest.mark.slow
def test_a_student_that_is_a_lora_on_the_base_is_calibrated_too(session):
    """Its held-out error falls on the clips that accept each step."""
    material = replace(session.material, cell=Cell(STUDENTS["accelerator"], ADAPTERS["neon"]))
    done = calibration_on(material, SMALL)
    accepted = [step.error for step in done.steps if step.stride]
    errors = [*(done.gains.errors if done.gains else ()), *accepted]
    assert len(errors) > 1 and errors == sorted(errors, reverse=True)


@pytest.mark.slow
def test_controls_are_what_they_say(session, monkeypatch):
    bare = calibration_on(session.material, Fit(replace(SMALL.settings, gains="none", guarded=False), bare=True))
    writers = writing_layers(open_pair("one-step", FAMILY).network(), 1)
    assert set(bare.updates) == set(writers) and bare.gains is None
    monkeypatch.setattr(calibration, "SETTINGS", SMALL.settings)
    theirs = calibration_on(
        replace(session.material, cell=Cell(CELL.student, ADAPTERS["noir"])),
        Fit(replace(SMALL.settings, readout=False)),
    ).gains
    assert theirs is not None
    expected = theirs.applied(session.material.adapter)
    found = foreign_gains(session.material)
    assert all(torch.equal(found[name], update.dense()) for name, update in expected.items())


@pytest.mark.slow
def test_the_guard_keeps_what_is_surely_better_and_else_direct(session):
    direct, weak = transferred("direct"), transferred("direct:0.2")
    # the guard draws two thirds of the clips, and calls nothing sure of fewer than 8; nobody asks for the end error
    session = replace(session, clips=12, calibration=False)
    kept = session.run(guarded("a", direct=direct, weak=weak))
    assert kept.facts["chosen"] == "direct"
    turned = session.run(guarded("b", direct=weak, better=direct))  # the negation: it does not keep direct by habit
    assert turned.facts["chosen"] == "better"
    assert torch.equal(kept.values["psnr"], turned.values["psnr"])


@pytest.mark.slow
def test_with_the_guard_the_cell_does_not_end_below_direct_beyond_its_interval(session):
    direct = session.run(Row("direct", "frame", "direct", transferred("direct")))
    rules = {"direct": transferred("direct"), "calibrated": calibrated_rule(SMALL), "none": nothing}
    prompts = session.evaluation.words
    ended = session.run(guarded("calibrated, guarded", **rules))
    for measure in ("psnr", "effect", "likeness"):
        assert mean_interval(ended.values[measure] - direct.values[measure], prompts).high >= 0
    unguarded = session.run(Row("none", "control", "none", nothing))
    lost = mean_interval(unguarded.values["psnr"] - direct.values["psnr"], prompts)
    assert lost.high < 0, "what the guard has kept away"


def test_the_end_error_is_measured_on_clips_of_its_own(session):
    roles = {effect.clips.role for effect in (session.guard_effect, session.reported_effect)}
    assert roles == {"judge", "lab"} and not roles & {clips.role for clips in SMALL.settings.roles}
    student = session.run(Row("student", "frame", "nothing", nothing)).values["end"]
    oracle = session.run(Row("oracle", "frame", "oracle", lambda m: {n: u.dense() for n, u in m.oracle.items()}))
    assert len(student) == len(session.reported_effect.clips) and float(oracle.values["end"].mean()) < float(
        student.mean()
    )
    assert session.reported_effect.errors(session.material.oracle).allclose(oracle.values["end"], rtol=1e-3)


@pytest.mark.slow
def test_the_reference_wears_what_the_row_wears(session):
    drawn, base = session.evaluation, open_base(FAMILY)
    with adapted(base, reference_updates(session.material, AS_TRAINED)):
        hooked = as_clips(sample_base(base, drawn.prompts, drawn.noise))
    assert torch.allclose(hooked, session.reference(drawn, EVALUATION_SEEDS), atol=2e-3)
    half = AdapterUse(0.5)
    assert not torch.allclose(session.reference(drawn, EVALUATION_SEEDS, half), hooked, atol=0.05)
    full = transferred("direct")(session.material)
    for name, update in rule_for(None, half)(session.material).items():
        assert torch.allclose(update, 0.5 * full[name], atol=1e-6)
    both = rule_for(None, AdapterUse(beside="swing"))(session.material)
    swing = Material(Cell(CELL.student, ADAPTERS["swing"]), FAMILY).adapter
    assert all(torch.allclose(both[name], full[name] + swing[name].dense(), atol=1e-5) for name in full)


def test_studies_are_on_a_few_cells_and_names_are_their_own():
    assert set(STUDIED_CELLS) <= set(CELLS)
    for cell in all_cells():
        names = [row.name for row in calibration_rows(Material(cell, FAMILY))]
        assert len(set(names)) == len(names) and {row.name for row in CALIBRATED} <= set(names)
        study = (cell.student.name, cell.adapter.name) in STUDIED_CELLS
        assert ({row.name for row in CONTROLS} <= set(names)) == study
        counted = study and len(cell.student.steps) == 1
        assert ({row.name for row in COUNTED} <= set(names)) == counted


def test_roles_of_fit_check_and_judge_share_no_clip(session):
    pair = open_pair("one-step", FAMILY)
    noise = {role: pair.target(Clips(role, 0, 1), {}) for role in ("fit", "check", "judge", "lab")}
    drawn = list(noise.values())
    assert all(not torch.allclose(a, b) for place, a in enumerate(drawn) for b in drawn[:place])
