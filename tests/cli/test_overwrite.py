"""A result that is there already is replaced only where that is asked for; what is not ours is not."""

import pytest
from typer.testing import CliRunner

from loraport.cli import app
from loraport.errors import OutputError
from tests import tiny
from tests.transfers.models import make_family


def run(*words) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def commands(family) -> dict:
    pair = ("--source", family.source, "--target", family.target, "--no-cache")
    alike = ("--source", family.source, "--target", family.source, "--no-cache")
    return {
        "transfer": ("transfer", family.lora, *pair),
        "convert": ("convert", family.lora, "--to", "diffusers"),
        "convert to a folder": ("convert", family.lora, "--to", "peft"),
        "merge": ("merge", family.source, family.lora),
        "merge to a folder": ("merge", family.target, family.lora),
        "probe": ("probe", "over-activate", *alike, "--layers", "blocks.0.ffn.0"),
        "analyze": ("analyze", family.lora, *pair, "--sample", "1", "--detail", "0"),
    }


IN_A_FOLDER = {
    "convert to a folder": "adapter_model.safetensors",
    "merge to a folder": "config.json",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transfer", "convert", "convert to a folder", "merge", "merge to a folder", "probe"])
def test_a_result_stays_without_the_flag_and_is_replaced_with_it(tmp_path, name):
    family = make_family(tmp_path)
    words = commands(family)[name]
    out = tmp_path / ("out" if name in IN_A_FOLDER else "out.safetensors")
    run(*words, "-o", out)
    made = out / IN_A_FOLDER[name] if out.is_dir() else out
    if name == "transfer":
        assert f"note: {out}, an earlier transfer, is replaced" in run(*words, "-o", out)
        assert "is replaced" not in run(*words, "-o", out, "--overwrite")
    made.write_bytes(b"the user's own")
    with pytest.raises(OutputError, match=r"out(\.safetensors)? .*already; give --overwrite"):
        run(*words, "-o", out)
    assert made.read_bytes() == b"the user's own"
    run(*words, "-o", out, "--overwrite")
    assert made.read_bytes() != b"the user's own"


@pytest.mark.parametrize("name", ["convert to a folder", "merge to a folder"])
def test_a_folder_with_other_files_is_never_replaced(tmp_path, name):
    family = make_family(tmp_path)
    out = tmp_path / "out"
    run(*commands(family)[name], "-o", out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="folder with other files"):
        run(*commands(family)[name], "-o", out, "--overwrite")
    assert (out / "notes.txt").read_text() == "mine"


def test_a_model_that_we_did_not_write_is_never_replaced(tmp_path):
    family = make_family(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    theirs = tiny.write_original(out / "diffusion_pytorch_model.safetensors", family.source_state)
    for more in ((), ("--overwrite",)):
        with pytest.raises(OutputError, match=r"already; give --overwrite|folder with other files"):
            run(*commands(family)["merge to a folder"], "-o", out, *more)
    assert list(out.iterdir()) == [theirs]


@pytest.mark.slow
def test_an_analysis_replaces_nothing_of_the_users_and_only_its_own_files(tmp_path):
    """Neither in a folder that it has never written to, nor in one that it has."""
    family = make_family(tmp_path)
    words, out = commands(family)["analyze"], tmp_path / "out"
    names = ("index.html", "layers.csv", "figures/drift.svg")
    for number, name in enumerate(names):
        theirs = tmp_path / f"theirs{number}" / name
        theirs.parent.mkdir(parents=True)
        theirs.write_text("mine")
        with pytest.raises(OutputError, match="give --overwrite"):
            run(*words, "-o", tmp_path / f"theirs{number}")
        assert theirs.read_text() == "mine"
    run(*words, "-o", out)
    for name in (*names, "notes.txt"):
        (out / name).write_text("mine")
    with pytest.raises(OutputError, match=r"out .*already; give --overwrite"):
        run(*words, "-o", out)
    assert all((out / name).read_text() == "mine" for name in names)
    run(*words, "-o", out, "--overwrite")
    assert all((out / name).read_text() != "mine" for name in names) and (out / "notes.txt").read_text() == "mine"


def test_an_input_is_named_as_such_and_not_as_a_result(tmp_path):
    """Else the advice would be a flag with which the command is refused again."""
    family = make_family(tmp_path)
    for name in ("transfer", "convert"):
        with pytest.raises(OutputError, match="is an input of this run"):
            run(*commands(family)[name], "-o", family.lora)


def test_a_dry_run_needs_no_flag(tmp_path):
    family = make_family(tmp_path)
    words = commands(family)["transfer"]
    run(*words, "-o", tmp_path / "out.safetensors")
    run(*words, "-o", tmp_path / "out.safetensors", "--dry-run")


@pytest.mark.parametrize("theirs", ["index.html", "hero.png"])
def test_a_demo_knows_its_own_folder(tmp_path, theirs):
    (tmp_path / theirs).write_text("mine")
    with pytest.raises(OutputError, match=f"holds {theirs}, which is not from an earlier run; .*--overwrite"):
        run("demo", "-o", tmp_path)
    assert (tmp_path / theirs).read_text() == "mine"


def test_the_lab_knows_its_own_folder(tmp_path):
    (tmp_path / "lab.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"holds lab\.csv, which is not from an earlier run"):
        run("lab", "run", "-o", tmp_path)


@pytest.mark.slow
def test_a_run_that_goes_on_needs_no_flag(tmp_path):
    """Of several outputs one was written before the kill, and another one's layers wait."""
    family = make_family(tmp_path)
    words = ("transfer", family.lora, "--source", family.source, "--target", family.target, "--no-cache",
             "--method", "casa,direct", "-o", tmp_path / "many")  # fmt: skip
    run(*words)
    (tmp_path / "many" / "lora-direct.safetensors").unlink()
    (tmp_path / "many" / "lora-direct.safetensors.partial").mkdir()
    run(*words)
    assert (tmp_path / "many" / "lora-direct.safetensors").is_file()


def test_a_report_that_fails_says_that_the_lora_is_written(tmp_path, monkeypatch):
    from loraport.reports import transfer_page

    family = make_family(tmp_path)

    def full(*_):
        raise OutputError("out.html cannot be written: No space left on device")

    monkeypatch.setattr(transfer_page, "write_transfer_page", full)
    with pytest.raises(OutputError, match=r"out\.safetensors is written and whole, but the page .*No space left"):
        run("transfer", family.lora, "--source", family.source, "--target", family.target, "--no-cache",
            "-o", tmp_path / "out.safetensors", "--report", tmp_path / "out.html")  # fmt: skip
    assert (tmp_path / "out.safetensors").is_file()


@pytest.mark.parametrize("name", ["transfer", "merge", "merge to a folder", "probe"])
def test_a_result_that_has_no_room_is_refused_before_the_work(tmp_path, monkeypatch, name):
    from loraport.files.disk import free_space

    family = make_family(tmp_path)
    words = commands(family)[name]
    words = (*words, "--as", "diff") if name == "transfer" else words
    out = tmp_path / ("out" if name in IN_A_FOLDER else "out.safetensors")
    monkeypatch.setattr(free_space, "_free", lambda folder: 3000)
    with pytest.raises(OutputError, match=r"out\S* needs \S+ MB at least.*, and 0\.00 MB are free there; make room"):
        run(*words, "-o", out)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("out", "."))]
    monkeypatch.setattr(free_space, "_free", lambda folder: None)  # a file system that does not say
    run(*words, "-o", out)


def test_a_closed_folder_is_told_before_the_work(tmp_path, monkeypatch):
    import os

    family = make_family(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    for name, words in commands(family).items():
        if name != "analyze":
            with pytest.raises(OutputError, match="takes no new files of yours"):
                run(*words, "-o", tmp_path / "out.safetensors")


def test_a_folder_that_was_removed_is_told_in_one_sentence(monkeypatch, capsys):
    from loraport.cli import main

    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("os.getcwd", gone)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2 and "the working folder has been removed" in capsys.readouterr().err
