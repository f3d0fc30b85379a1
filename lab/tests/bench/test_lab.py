"""The lab measures what a user would get: its rows are the files that a transfer writes, put on the real models."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from loraport.cli import app
from loraport.errors import InputError, SettingsError
from loraport.inputs.config import TransferConfig
from loraport.methods.recipes import METHODS
from loraport.store.keyed import Entry
from loraport.transfers.run import transfer
from loraport_lab.bench import run as lab_run
from loraport_lab.bench.admission import COMPARED, admit
from loraport_lab.bench.evaluate import Session, added, as_clips
from loraport_lab.bench.material import ADMISSION_SEEDS, EVALUATION_SEEDS, TUNING_SEEDS, Cell, Material, all_cells, draw
from loraport_lab.bench.rows import FRAME, MAIN, Row, nothing, oracle, transferred
from loraport_lab.bench.run import run_lab
from loraport_lab.bench.store import Store
from loraport_lab.bench.tables import ABLATION
from loraport_lab.family.adapters import attach
from loraport_lab.family.family import ADAPTERS, CELLS, FAMILY, STUDENTS, adapter_path, oracle_path, target_place
from loraport_lab.family.sample import sample_student
from loraport_lab.pages.lab_titles import TITLES
from tests.reports.browser import browser_says, foreign_addresses, needs_chromium
from tests.test_arrows import imports

CELL = Cell(STUDENTS["causal"], ADAPTERS["noir"])


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    torch.set_num_threads(1)
    store = Store(tmp_path_factory.mktemp("parts"), "test")
    return Session(Material(CELL, FAMILY), store, store, clips=4)


def sampled(session: Session, path) -> torch.Tensor:
    """Clips of the student with a file loaded by PEFT or diffusers."""
    drawn = session.evaluation
    model = attach(session.material.student(), path)
    return as_clips(sample_student(model, CELL.student, drawn.prompts, drawn.noise))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["direct", "casa", "core", "undo:0.25"])
def test_a_row_is_what_the_transferred_file_gives(method, session, tmp_path):
    out = tmp_path / "out.safetensors"
    places = str(adapter_path("noir")), str(FAMILY / "base"), target_place("causal")
    transfer(TransferConfig(*places, str(out), method=method, format="diffusers", dtype="fp32"))
    latents = session.sample(session.student, transferred(method)(session.material), session.evaluation)
    assert torch.allclose(as_clips(latents), sampled(session, out), atol=2e-3)


@pytest.mark.slow
def test_the_oracles_row_is_the_oracles_file(session):
    latents = session.sample(session.student, oracle(session.material), session.evaluation)
    assert torch.allclose(as_clips(latents), sampled(session, oracle_path("causal", "noir")), atol=2e-3)
    plain = session.sample(session.student, nothing(session.material), session.evaluation)
    assert not torch.allclose(as_clips(latents), as_clips(plain), atol=0.1)


def test_full_undo_puts_the_sources_weights_under_the_lora(session):
    updates = transferred("undo:1", rank="full")(session.material)
    for name, layer in session.material.layers.items():
        assert torch.allclose(updates[name], layer.lora.dense() - layer.drift, atol=1e-5)


def test_weights_are_bit_by_bit_what_they_were_after_a_row_even_if_it_fails(session):
    before = {name: weight.clone() for name, weight in session.student.state_dict().items()}
    with pytest.raises(ZeroDivisionError), added(session.student, transferred("direct")(session.material)):
        assert any(not torch.equal(before[name], weight) for name, weight in session.student.state_dict().items())
        raise ZeroDivisionError
    assert all(torch.equal(before[name], weight) for name, weight in session.student.state_dict().items())


def test_every_method_has_a_row():
    assert {*METHODS} <= {row.name for row in (*FRAME, *MAIN)}
    names = [row.name for row in (*FRAME, *MAIN)]
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_candidates_are_chosen_on_other_clips_than_are_reported(session):
    assert not set(TUNING_SEEDS) & set(EVALUATION_SEEDS)
    candidates = {"none": nothing, "trained": oracle}
    row = Row("best", "control", "best of two", nothing, candidates=candidates)
    measured = session.run(row)
    assert measured.facts["chosen"] == "trained"
    alone = session.run(Row("oracle", "frame", "oracle", oracle))
    assert torch.equal(measured.values["psnr"], alone.values["psnr"])


def test_a_finished_row_is_not_made_again_and_other_inputs_are_another_row(tmp_path):
    store = Store(tmp_path, "inputs")
    store.put("rows/a", "key", Entry({"value.psnr": torch.ones(3)}, {"size": 1.0}))
    assert store.get("rows/a", "key").facts == {"size": 1.0}
    assert store.get("rows/a", "other key") is None and Store(tmp_path, "other inputs").get("rows/a", "key") is None
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-2])
    assert store.get("rows/a", "key") is None, "a damaged part counts as none"


def test_what_only_sums_up_does_not_decide_a_part():
    """A change in a summary leaves finished parts valid, so nothing that makes parts may look into one."""
    folder = Path(lab_run.__file__).parent
    summaries = {f"loraport_lab.bench.{name.removesuffix('.py')}" for name in lab_run.SUMMARIES}
    assert all((folder / name).is_file() for name in lab_run.SUMMARIES)
    makers = [path for path in folder.glob("*.py") if path.name not in lab_run.SUMMARIES]
    assert {"rows.py", "evaluate.py", "negative_controls.py", "premises.py"} <= {path.name for path in makers}
    assert [path.name for path in makers if imports(path.read_text(encoding="utf-8")) & summaries] == []
    assert imports((folder / "tables.py").read_text(encoding="utf-8")) & summaries, (
        "the summaries do look at each other"
    )


def test_the_code_of_a_maker_is_in_the_digest_and_that_of_a_summary_is_not(monkeypatch):
    before = lab_run.code_digest()
    read, changed = Path.read_text, {"name": "tables.py"}

    def edited(path, *arguments, **named):
        return read(path, *arguments, **named) + ("# changed" if path.name == changed["name"] else "")

    monkeypatch.setattr(Path, "read_text", edited)
    assert lab_run.code_digest() == before
    changed["name"] = "negative_controls.py"
    assert lab_run.code_digest() != before


def test_long_cells_come_first():
    def work(student: str, adapter: str) -> float:
        return lab_run.work(
            SimpleNamespace(
                material=SimpleNamespace(cell=Cell(STUDENTS[student], ADAPTERS[adapter])), calibration=False
            )
        )

    assert work("few-step", "noir") > work("causal", "noir") > work("few-step", "retro") > work("one-step", "retro")


NOISE = torch.linspace(-1, 1, 40)
NAMES = tuple(map(str, range(40)))


def fidelity_with(oracle: float, direct: float, undo: float, base: float) -> dict[str, torch.Tensor]:
    """Four rows whose paired differences have the same spread."""
    values = {"oracle": oracle, "direct": direct, "full undo": undo, "base, same steps": base}
    return {name: value + NOISE + 0.5 * NOISE.roll(place) for place, (name, value) in enumerate(values.items())}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((23, 20, 18, 17), ""),
        ((20.01, 20, 18, 17), "as good as the adapter trained on the student"),
        ((23, 20, 21, 17), "undoing the whole drift"),
        ((23, 20, 18, 21), "the base in as many steps"),
        ((23, 20, 19.95, 17), "undoing the whole drift"),
        ((23, 20, 18, 19.95), "the base in as many steps"),
    ],
)
def test_a_cell_is_admitted_by_all_three_conditions_and_by_no_two(values, reason):
    admission = admit(fidelity_with(*values), NAMES)
    assert admission.discriminating == (reason == "") and reason in admission.reason


def test_the_oracle_has_to_lead_by_three_standard_errors_and_direct_by_two():
    error = float((0.5 * (NOISE.roll(1) - NOISE)).double().std() / len(NOISE) ** 0.5)
    undo = float((0.5 * (NOISE.roll(2) - NOISE.roll(1))).double().std() / len(NOISE) ** 0.5)
    base = float((0.5 * (NOISE.roll(3) - NOISE.roll(1))).double().std() / len(NOISE) ** 0.5)

    def admitted(lead: float, over_undo: float, over_base: float) -> bool:
        values = (20 + lead * error, 20.0, 20 - over_undo * undo, 20 - over_base * base)
        return admit(fidelity_with(*values), NAMES).discriminating

    assert admitted(3.1, 2.1, 2.1)
    assert not admitted(2.9, 2.1, 2.1) and not admitted(3.1, 1.9, 2.1) and not admitted(3.1, 2.1, 1.9)


@pytest.mark.slow
def test_cells_are_admitted_on_clips_that_nothing_is_reported_or_chosen_on(session):
    assert not {*ADMISSION_SEEDS} & {*EVALUATION_SEEDS, *TUNING_SEEDS}
    rows = {row.name: session.run(row).values["psnr"] for row in FRAME if row.name in COMPARED}
    reported = admit(rows, session.evaluation.words)
    assert session.admission.oracle_over_direct != pytest.approx(reported.oracle_over_direct)


def test_cells_are_chosen_by_name_student_adapter_or_pattern(tmp_path):
    chosen = [cell.name for cell in lab_run._chosen(all_cells(), ["one-step/noir", "swing"])]
    assert chosen == [f"{s}/{a}" for s, a in CELLS if a == "swing" or (s, a) == ("one-step", "noir")]
    with pytest.raises(SettingsError, match="one-step/noir"):
        run_lab(tmp_path, cells=["two-step"])


@pytest.mark.parametrize("calibration", [False, True])
def test_a_family_with_missing_files_is_refused_with_the_line_that_makes_them(calibration, tmp_path):
    """With calibration also the adapters that are worn beside and whose gains are borrowed."""
    others = " swing retro" if calibration else ""
    made = "train it, .*: python -m loraport_lab.training.train --out .* "
    made += f"--only base judge causal causal/noir noir{others}$"
    with pytest.raises(InputError, match=f"base is missing; {made}"):
        run_lab(tmp_path, family=tmp_path, cells=["causal/noir"], calibration=calibration)


def test_more_clips_begin_with_other_ones_but_the_same_seeds_give_the_same():
    one, two = draw((11, 12), 5), draw((11, 12), 5)
    assert torch.equal(one.noise, two.noise) and len(one.prompts) == 5
    assert not torch.equal(one.noise, draw((13, 12), 5).noise)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke cut: one cell, six clips, every row, through the command line."""
    folder = tmp_path_factory.mktemp("lab")
    arguments = ["lab", "run", "-o", str(folder), "--cells", "one-step/noir-b", "--clips", "6", "--jobs", "1", "-q"]
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout), arguments


@pytest.mark.slow
def test_the_smoke_cut_leaves_page_json_and_csv_that_agree(smoke):
    folder, facts, _ = smoke
    assert {path.name for path in folder.iterdir()} == {"index.html", "lab.json", "lab.csv", "tables", "parts"}
    assert json.loads((folder / "lab.json").read_text())["cells"] == facts["cells"]
    (cell,) = facts["cells"]
    assert {row["name"] for row in cell["rows"]} == {row.name for row in (*FRAME, *MAIN)}
    with (folder / "lab.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["row"] == "casa" and line["metric"] == "psnr"]
    casa = next(row for row in cell["rows"] if row["name"] == "casa")["metrics"]["psnr"]
    assert [float(line["mean"]) for line in lines] == [casa["mean"]]
    direct = next(row for row in cell["rows"] if row["name"] == "direct")["metrics"]["psnr"]
    assert direct["change"] == 0 and casa["change"] == pytest.approx(casa["mean"] - direct["mean"], abs=1e-5)


@pytest.mark.slow
def test_the_tables_are_those_that_the_documentation_shows(smoke):
    """Every table has a heading; where `lab/results/` has it, it is of the same form."""
    folder, facts, _ = smoke
    shown = Path(__file__).parents[2] / "results"
    files = [path for path in (folder / "tables").iterdir() if path.suffix == ".csv"]
    tables = {path.stem: list(csv.reader(path.open(encoding="utf-8"))) for path in files}
    everywhere = {"cells", "premises", "rows", "ablation", "methods", "fidelity", "effect", "content", "regret"}
    assert tables.keys() == everywhere <= TITLES.keys(), "studies are of other cells"
    for name, lines in tables.items():
        assert len({len(line) for line in lines}) == 1
        if name in ("cells", "rows", "premises", "regret") and (shown / f"{name}.csv").is_file():
            assert lines[0] == next(csv.reader((shown / f"{name}.csv").open(encoding="utf-8")))
    casa = next(line for line in tables["fidelity"] if line[0] == "casa")[1]
    change = next(row for row in facts["cells"][0]["rows"] if row["name"] == "casa")["metrics"]["psnr"]["change"]
    assert float(casa.strip("()*")) == pytest.approx(change, abs=0.06)
    assert [line[0] for line in tables["ablation"][1:]] == list(ABLATION)


@pytest.mark.slow
def test_a_marked_change_is_sure_by_itself_and_not_every_sure_one_is_marked(smoke):
    _, facts, _ = smoke
    values = [value for row in facts["cells"][0]["rows"] for name, value in row["metrics"].items() if name == "psnr"]
    tested = [value for value in values if "p_holm" in value]
    assert len(tested) == len(FRAME) + len(MAIN) - 1, "all but direct reuse itself"
    assert all(value["p"] <= value["p_holm"] for value in tested)
    sure = [value for value in tested if value["change_low"] > 0 or value["change_high"] < 0]
    assert all((value["p"] < 0.05) == (value in sure) for value in tested)
    marked = [value for value in tested if value["p_holm"] < 0.05]
    assert len(marked) < len(sure) and all(value in sure for value in marked)


@pytest.mark.slow
def test_a_second_run_makes_nothing_and_writes_the_same_bytes(smoke):
    folder, _, arguments = smoke
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    assert before.keys() == after.keys() and all(before[path][0] == after[path][0] for path in before)
    assert all(before[path] == after[path] for path in before if "parts" in path.parts)


@pytest.mark.slow
@needs_chromium
def test_the_page_is_whole_and_silent(smoke, tmp_path):
    page = smoke[0] / "index.html"
    assert foreign_addresses(page.read_text()) == []
    assert browser_says(page, tmp_path / "profile") == ""
