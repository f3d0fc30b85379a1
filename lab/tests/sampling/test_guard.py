"""`choose`, and `transfer --guard` and `--method auto` that it was: what is kept, and file, JSON and page say so."""

import json
import shlex
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

pytest.importorskip("diffusers")
pytest.importorskip("peft")

import loraport
from loraport.cli import app
from loraport.errors import OutputError
from loraport.files.lora.read import read_lora
from loraport.inputs.batch import one_or_many
from loraport.inputs.config import TransferConfig
from loraport.inputs.recipes import chosen_recipes
from loraport.sampling.choice.choose import Candidates
from loraport.sampling.choice.choose import choose_among as choose_one
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


def choose(family, lora, out, *words):
    places = ["--source", str(family / "base"), "--target", str(family / "students" / "one-step")]
    return CliRunner().invoke(
        app, ["choose", *words, "--lora", str(lora), *places, "-o", str(out), "--clips", "8", "--dtype", "fp32"]
    )


@pytest.mark.slow
def test_choose_keeps_what_transfer_guard_kept(family, lora, tmp_path):
    """The same bytes; the alias says on stderr which command it is now, and that command works as it is typed."""
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    done = choose(family, lora, out, "direct:0.05", "undo:0.25", "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    facts = json.loads(done.stdout)
    assert {"output", "kept", "reason", "scores", "passes", "transfer"} <= set(facts)
    assert {row["candidate"] for row in facts["scores"]} == {"direct", "direct:0.05", "undo:0.25"}
    assert facts["transfer"]["method"] == facts["kept"] and facts["transfer"]["output"] == facts["output"] == str(out)
    alias = run(family, lora, again, "--method", "direct:0.05,undo:0.25", "--guard")
    assert alias.exit_code == 0 and again.read_bytes() == out.read_bytes()
    told = alias.stderr[alias.stderr.index("loraport choose direct:0.05") :].splitlines()[0]
    repeated = CliRunner().invoke(app, [*shlex.split(told)[1:], "--dry-run"])
    assert repeated.exit_code == 0, (repeated.output, repeated.exception)
    assert "is a command of its own now" not in run(family, lora, again, "--method", "auto", "--dry-run", "-q").stderr


def test_the_line_to_type_has_the_other_options_as_they_were(family, lora, tmp_path):
    typed = ["--no-arbitrate", "--include", "blocks.0", "--include", "ffn", "--tau", "0.5", "--dry-run"]
    alias = run(family, lora, tmp_path / "my out.safetensors", "--guard", "--force-drift", *typed)
    assert alias.exit_code == 0, (alias.output, alias.exception)
    line = next(line for line in alias.stderr.splitlines() if "is a command of its own now" in line)
    words = shlex.split(line[line.index("loraport choose casa") :])
    for option in ("--no-arbitrate", "--include blocks.0 --include ffn", "--tau 0.5", "--dtype fp32", "--force-drift"):
        assert f" {option} " in f"{' '.join(words)} "
    assert not {"--guard", "--guard-clips", "--device"} & {*words} and words.count("--clips") == 1
    pasted = CliRunner().invoke(app, words[1:])
    assert pasted.exit_code == 0 and pasted.stdout == alias.stdout


@pytest.mark.parametrize("command", ["choose", "score", "calibrate", "guard"])
def test_one_of_several_loras_in_a_file_is_sampled(family, lora, tmp_path, command):
    several, tensors = tmp_path / "several.safetensors", load_file(lora)
    parts = {"transformer": 1.0, "transformer_2": 0.5}
    save_file({k.replace("diffusion_model", p): t * parts[p] for p in parts for k, t in tensors.items()}, several)
    models = ["--source", str(family / "base"), "--target", str(family / "students" / "one-step"), "--dry-run"]
    out = ["-o", str(tmp_path / "out.safetensors")]
    words = {
        "choose": ["choose", "casa", "--lora", str(several), *out],
        "score": ["score", "direct", "--lora", str(several)],
        "calibrate": ["calibrate", str(several), *out],
        "guard": ["transfer", str(several), "--guard", *out],
    }[command]
    refused = CliRunner().invoke(app, [*words, *models])
    assert refused.exit_code != 0 and "--lora-part" in str(refused.exception)
    done = CliRunner().invoke(app, [*words, *models, "--lora-part", "transformer_2"])
    assert done.exit_code == 0, (done.output, done.exception)


@pytest.mark.slow
def test_a_file_that_is_better_is_kept_as_it_is(family, lora, tmp_path):
    """Of a LoRA at a twentieth of its strength, the file with the LoRA itself is surely closer than direct reuse."""
    weak, out = tmp_path / "weak.safetensors", tmp_path / "out.safetensors"
    tensors = {key: tensor * (0.05 if "lora_B" in key else 1) for key, tensor in load_file(lora).items()}
    save_file(tensors, weak, {"author": "me"})
    done = choose(family, lora, out, str(weak), "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["kept"] == "direct"  # the negation
    page = tmp_path / "page.html"
    better = repaired(family, lora, tmp_path)
    done = choose(family, lora, out, str(better), str(weak), "--overwrite", "--report", str(page))
    assert done.exit_code == 0, (done.output, done.exception)
    assert f"{better}: " in done.stdout and load_file(out).keys() == load_file(better).keys()
    assert all((tensor == load_file(better)[key]).all() for key, tensor in load_file(out).items())
    assert json.loads(read_lora(out).metadata["loraport.guard"])["kept"] == str(better)
    assert "page is about a transfer" in done.stderr and not page.exists()
    refused = choose(family, lora, better, str(better))
    assert isinstance(refused.exception, OutputError) and better.is_file()
    folder = choose(family, lora, tmp_path / "folder", str(better), "--format", "peft")
    assert "which is a folder in PEFT's format" in str(folder.exception)


def repaired(family, lora, folder):
    """A file that direct reuse loses against: calibrated on this student."""
    out = folder / "better.safetensors"
    places = ["--source", str(family / "base"), "--target", str(family / "students" / "one-step"), "-o", str(out)]
    done = CliRunner().invoke(app, ["calibrate", str(lora), *places, "--clips", "8", "--dtype", "fp32"])
    assert done.exit_code == 0, (done.output, done.exception)
    return out


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
        (["--guard", "--split"], "without --split"),
        (["--guard", "--method", "direct"], "direct reuse has no rival"),
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
        choose_one(Candidates(configs, str(out), clips=2), pair, killed)
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


@pytest.mark.slow
def test_choosing_from_python_opens_the_models_by_itself(tmp_path):
    config = loraport.TransferConfig("toy:noir", "toy:base", "toy:one-step", tmp_path / "chosen", format="peft")
    notes = []
    choice = loraport.choose(config, ["direct:0.5"], clips=2, progress=SimpleNamespace(note=notes.append))
    assert choice.verdict.kept == "direct" and (tmp_path / "chosen" / "adapter_config.json").is_file()
    assert [row.label for row in choice.verdict.scores] == ["direct", "direct:0.5"] and choice.result is not None
    with pytest.raises(loraport.SettingsError, match="unknown method or file 'magic'"):
        loraport.choose(config, ["magic"])
