"""What visitors ask for becomes a command of the program, and nothing else."""

import json
import os
import socket
import sys

import pytest
from safetensors.numpy import save_file

from loraport.app.asks import Ask, Machine, read_settings
from loraport.app.limits import HOUR, Limits
from loraport.app.line import Line
from loraport.app.places import Places
from loraport.app.work import Heard
from loraport.app.work_folder import WorkFolder
from loraport.cli import main
from loraport.cli.options.told_lines import ToldLines
from loraport.console import Terminal
from loraport.errors import InputError, OutputError, SettingsError

PAIR = {"source": "toy:base", "target": "toy:one-step"}


@pytest.fixture
def work(tmp_path):
    folder = WorkFolder(tmp_path.resolve() / "work")
    folder.make()
    (folder.jobs / "job").mkdir()
    return folder


def ordered(work, **asked):
    ask = Ask("transfer", **{**PAIR, "lora": "toy:noir", **asked})
    return ask.order(work.jobs / "job", Places(), work, Machine("cpu", "/cache"))


def uploaded(work, name="sty le;rm.safetensors", **tensors):
    import numpy as np

    (work.path / "hash").mkdir(exist_ok=True)
    save_file(tensors or {"a.lora_A.weight": np.zeros((1, 2), "float32")}, work.path / "hash" / name)
    return str(work.path / "hash" / name)


def test_the_command_of_a_transfer(work):
    order = ordered(work, method="casa", settings="tau=0.9, q-dom=0.6 arbitrate=no", rank="0.95", include="attn1 ffn")
    folder = order.folder
    assert order.words() == [
        "transfer", "--source=toy:base", "--target=toy:one-step", "--method=casa", "--format=same", "--dtype=bf16",
        "--rank=0.95", "--include=attn1", "--include=ffn", "--tau=0.9", "--q-dom=0.6", "--no-arbitrate",
        f"--output={folder / 'noir-on-one-step'}", f"--report={folder / 'report.html'}", "--device=cpu",
        "--cache=/cache", "--json", "--", "toy:noir",
    ]  # fmt: skip
    assert order.command() == (
        "loraport transfer toy:noir --source toy:base --target toy:one-step --method casa --rank 0.95 --include attn1 "
        f"--include ffn --tau 0.9 --q-dom 0.6 --no-arbitrate -o {folder / 'noir-on-one-step'}"
    )


def test_an_uploaded_file_has_a_harmless_name_of_the_jobs_own(work):
    place = uploaded(work)
    order = ordered(work, upload=place, lora="../../etc/passwd")
    assert order.lora == str(order.folder / "in" / "sty-le-rm.safetensors")
    assert order.output() == order.folder / "sty-le-rm-on-one-step.safetensors"
    os.remove(place)
    assert os.path.getsize(order.lora)


@pytest.mark.parametrize(
    "place", ["/etc/passwd", "jobs/job/report.html", "hash/../../outside.safetensors", "hash", "hash/missing"]
)
def test_what_was_not_uploaded_is_no_upload(work, place):
    uploaded(work)
    (work.path.parent / "outside.safetensors").write_bytes(b"x")
    (work.jobs / "job" / "report.html").write_text("x")
    with pytest.raises(InputError, match="upload it again"):
        ordered(work, upload=str(work.path / place))


def test_only_safetensors_are_uploaded(work):
    (work.path / "hash").mkdir()
    (work.path / "hash" / "a.pt").write_bytes(b"x")
    with pytest.raises(InputError, match="takes no others"):
        ordered(work, upload=str(work.path / "hash" / "a.pt"))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"method": "csa"}, "did you mean 'casa'"),
        ({"method": "casa,direct"}, "one method at a time"),
        ({"method": "--help"}, "unknown method"),
        ({"settings": "tau=0.9"}, "settings belong to a method"),
        ({"method": "casa", "settings": "tau"}, "has no value"),
        ({"method": "casa", "settings": "tau=low"}, "must be a number"),
        ({"method": "casa", "settings": "tauu=1"}, "did you mean 'tau'"),
        ({"method": "casa", "settings": "arbitrate=perhaps"}, "either yes or no"),
        ({"method": "casa", "settings": "q-dom=2"}, r"\[0, 1\]"),
        ({"method": "casa", "settings": "report=/etc/x"}, "unknown setting"),
        ({"rank": "many"}, "none of"),
        ({"format": "zip"}, "unknown format"),
        ({"dtype": "int1"}, "unknown dtype"),
        ({"prompts": 1000}, "must be 1 to 30"),
        ({"source": ""}, "the source is missing"),
        ({"lora": "--report=/x"}, "the LoRA '--report=/x' is neither"),
    ],
)
def test_bad_wishes_are_refused_before_anything_runs(work, asked, says):
    with pytest.raises(InputError, match=says):
        ordered(work, **asked)


def test_settings_by_their_types():
    assert read_settings("") == {}
    assert read_settings("--tau=0.9\nsubspace=rank:320,null-space=off") == {
        "tau": 0.9, "subspace": "rank:320", "null_space": False
    }  # fmt: skip
    with pytest.raises(SettingsError):
        read_settings("=1")


def test_the_line_is_in_order_and_bounded():
    line = Line(waiting=2)
    first, second, third = (line.join() for _ in range(3))
    assert [one.before for one in (first, second, third)] == [0, 1, 2]
    with pytest.raises(InputError, match="3 jobs are in the line"):
        line.join()
    second.leave()
    assert third.before == 1 and third.moved.is_set() and line.join().before == 2
    first.leave()
    first.leave()
    assert third.before == 0


def test_what_is_old_is_removed_and_what_works_is_not(work):
    upload = uploaded(work)
    for name in ("old", "works"):
        (work.jobs / name).mkdir()
    limits, now = Limits(), os.path.getmtime(upload)
    assert work.sweep(limits, now + 1.9 * HOUR) == []
    assert [path.name for path in work.sweep(limits, now + 3 * HOUR)] == ["hash"]
    assert not os.path.exists(upload)
    later = now + 25 * HOUR
    assert {path.name for path in work.sweep(limits, later, frozenset({"works"}))} == {"old", "job"}
    assert [path.name for path in work.jobs.iterdir()] == ["works"] and work.path.is_dir()


def test_folders_of_pages_that_were_killed_are_removed(tmp_path):
    killed, alive = (WorkFolder.made(str(tmp_path)) for _ in range(2))
    os.close(killed.hold())
    held = alive.hold()
    (tmp_path / "loraport-app-other").mkdir()  # without a lock: not ours to judge
    (tmp_path / "loraport-app-link").symlink_to(alive.path)
    made = WorkFolder.made(str(tmp_path))
    assert not killed.path.exists() and alive.jobs.is_dir() and made.jobs.is_dir()
    assert (tmp_path / "loraport-app-other").is_dir() and (made.path.stat().st_mode & 0o777) == 0o700
    assert made.uploads == [] and alive.uploads == []
    os.close(held)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="--work"):
        WorkFolder.made(str(tmp_path / "file"))


def test_what_the_command_refuses_before_it_serves(tmp_path, monkeypatch, capsys):
    def said(*words):
        monkeypatch.setattr(sys, "argv", ["loraport", "app", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "more than nothing" in said("--max-upload", "0")
    assert "that is no folder" in said("--port", "0", "--share-models", str(tmp_path / "missing"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "take another one with --port" in said("--port", str(taken.getsockname()[1]))
    monkeypatch.setattr("loraport.cli.options.find_spec", lambda name: None)
    assert "pip install 'loraport[app]'" in said()


def test_lines_are_heard_as_they_are_told(capfd, monkeypatch):
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    told = ToldLines()
    with told:
        told.step("first", 0, 2)
        told.advance("layers", 0, 3)
        told.advance("layers", 1, 3)  # at once: not worth a line
        told.advance("layers", 3, 3, "blocks.0")
        told.note("a <note>")
    lines = capfd.readouterr().err.splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines) and len(lines) == 4
    heard = Heard()
    for line in (*lines, "{broken", '{"other": 1}', "loraport: x.safetensors is none"):
        heard.take(line)
    assert (heard.doing, heard.done, heard.total, heard.share) == ("layers", 3, 3, 1.0)
    assert heard.log == [
        "[1/2] first", "layers 3 of 3: blocks.0", "note: a <note>", "{broken", '{"other": 1}',
        "loraport: x.safetensors is none",
    ]  # fmt: skip
    assert heard.refusal == "x.safetensors is none"


def test_a_quiet_command_tells_nothing_and_a_terminal_is_the_usual(capfd, monkeypatch):
    from loraport.cli.options import MessageOptions

    assert type(MessageOptions().terminal()) is Terminal
    monkeypatch.setenv("LORAPORT_PROGRESS", "json")
    told = MessageOptions(quiet=True).terminal()
    assert isinstance(told, ToldLines)
    told.note("nothing")
    assert capfd.readouterr().err == ""
