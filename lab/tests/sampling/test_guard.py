"""`transfer --guard` and `--method auto`: what is kept, and that file, JSON and page say so."""

import json

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from loraport.cli import app
from loraport.files.lora.read import read_lora
from loraport.inputs.batch import one_or_many
from loraport.inputs.config import TransferConfig
from loraport.inputs.recipes import chosen_recipes
from loraport.sampling.choice.guarded_transfer import guarded_transfer
from loraport.transfers.run import transfer_many
from loraport_lab.family.pair import EmbeddedPair


@pytest.fixture
def lora(adapter, tmp_path):
    tensors = {}
    for name, low in adapter.items():
        tensors |= {f"diffusion_model.{name}.lora_B.weight": low.B, f"diffusion_model.{name}.lora_A.weight": low.A}
    save_file(tensors, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def run(family, lora, out, *more):
    places = ["--source", str(family / "base"), "--target", str(family / "students" / "one-step")]
    words = ["transfer", str(lora), *places, "-o", str(out), "--guard-clips", "8", "--dtype", "fp32", *more]
    return CliRunner().invoke(app, words)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "format"), [("direct:0.05", "same"), ("direct:1.02", "peft")])
def test_one_method_against_direct(method, format, family, lora, tmp_path):
    """A LoRA at a twentieth of its strength surely misses the effect; direct reuse is written, and it says so."""
    out = tmp_path / ("out" if format == "peft" else "out.safetensors")
    page = tmp_path / "page.html"
    done = run(family, lora, out, "--method", method, "--guard", "--format", format, "--json", "--report", str(page))
    assert done.exit_code == 0, (done.output, done.exception)
    facts = json.loads(done.stdout)
    written, guard = read_lora(out), facts["guard"]
    assert json.loads(written.metadata["loraport.guard"]) == guard
    assert {row["candidate"] for row in guard["scores"]} == {"direct", method}
    assert f"guard: kept {guard['kept']}" in page.read_text() and facts["output"] == str(out)
    assert not out.with_name(f"{out.name}.candidates").exists()
    if method == "direct:0.05":
        assert guard["kept"] == facts["method"] == "direct"
        for name, update in read_lora(lora).updates.items():
            assert written.updates[name].dense().allclose(update.dense(), atol=1e-5)


def test_the_guards_lines_stand_in_the_columns_of_the_others(family, lora, tmp_path):
    done = run(family, lora, tmp_path / "out.safetensors", "--method", "direct:0.05", "--guard")
    assert done.exit_code == 0, (done.output, done.exception)
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert {"wrote", "method", "guard", "target"} <= set(lines)
    assert {len(line) - len(line.split(None, 1)[1]) for line in lines.values()} == {max(map(len, lines)) + 2}


@pytest.mark.slow
def test_auto_tries_them_all_and_a_calibrated_one(family, lora, tmp_path):
    out = tmp_path / "out.safetensors"
    done = run(family, lora, out, "--method", "auto", "--calibrated", "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    guard = json.loads(done.stdout)["guard"]
    tried = {row["candidate"]: row for row in guard["scores"]}
    assert set(tried) == {"direct", "direct:0.85", "direct:1.15", "direct:1.3", "core", "casa", "calibrated"}
    sure = {name for name, row in tried.items() if row["against_direct"]["high"] < 0}
    assert guard["kept"] in (sure or {"direct"})
    assert out.is_file() and read_lora(out).layers


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--as", "diff", "--guard"], "leave out --as diff"),
        (["--guard", "--sampling", "colour=3"], "unknown sampling key"),
        (["--guard", "--sampling", "frames=x"], "target-steps=3"),
    ],
)
def test_what_cannot_be_guarded_is_refused_and_nothing_stays(more, message, family, lora, tmp_path):
    done = run(family, lora, tmp_path / "out.safetensors", *more)
    assert message in str(done.exception) and not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_what_a_kill_has_left_is_used_and_removed_and_what_is_not_ours_is_left_alone(family, lora, tmp_path):
    out, waiting = tmp_path / "out.safetensors", tmp_path / "out.safetensors.candidates"

    def killed(runs):
        transfer_many(runs)
        raise KeyboardInterrupt

    places = str(lora), str(family / "base"), str(family / "students" / "one-step"), str(waiting)
    configs = one_or_many(TransferConfig(*places), places[:1], chosen_recipes(["direct", "direct:0.05"]))
    pair = EmbeddedPair("one-step", family)
    with pytest.raises(KeyboardInterrupt):
        guarded_transfer(configs, str(out), pair, killed, clips=2)
    assert len(list(waiting.iterdir())) == 3 and not out.exists()
    done = run(family, lora, out, "--method", "direct:0.1", "--guard")  # another method: the first run's list is kept
    assert done.exit_code == 0, (done.output, done.exception)
    assert out.is_file() and not waiting.exists()

    waiting.mkdir()
    (waiting / "notes.txt").write_text("mine")
    done = run(family, lora, out, "--method", "direct:0.1", "--guard")
    assert "notes.txt" in str(done.exception) and [path.name for path in waiting.iterdir()] == ["notes.txt"]


def test_a_bare_checkpoint_cannot_be_sampled(family, lora, tmp_path):
    weights = family / "base" / "transformer" / "diffusion_pytorch_model.safetensors"
    words = [
        "transfer",
        str(lora),
        "--source",
        str(weights),
        "--target",
        str(weights),
        "-o",
        str(tmp_path / "o.safetensors"),
    ]
    done = CliRunner().invoke(app, [*words, "--guard"])
    assert "model_index.json" in str(done.exception)
