"""What Windows and macOS lack or do otherwise, pretended here: no test runs on them."""

import ctypes
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from loraport.compute import ON_PROCESSOR, find_device, in_double, weights_device
from loraport.errors import OutputError, SettingsError
from loraport.files.disk import atomic
from loraport.files.disk.atomic import new_folder, write_whole
from loraport.files.disk.ownership import Lock
from loraport.files.disk.user_paths import check_output, unusual_on_windows
from loraport.files.models.hub import looks_like_hub_id
from loraport.inputs.accelerator import split_target
from loraport.transfers.run import transfer
from tests.transfers.models import make_family

WITHOUT_UNIX = """
import builtins, ctypes, importlib, json, os, pkgutil, shutil, signal, sys

HIDDEN = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline", "syslog", "posix"}
real = builtins.__import__

def without(name, globals=None, *rest, **named):
    ours = str((globals or {}).get("__name__", "")).partition(".")[0] in ("loraport", "loraport_lab")
    if ours and name.partition(".")[0] in HIDDEN:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real(name, globals, *rest, **named)

builtins.__import__ = without
import loraport, loraport_lab
for package in (loraport, loraport_lab):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
import matplotlib.pyplot  # other packages may use on the way in what is taken away now

library = ctypes.CDLL
class Library(library):
    def __init__(self, name, *rest, **named):
        if name is None:
            raise TypeError("argument of type 'NoneType' is not iterable")
        super().__init__(name, *rest, **named)
ctypes.CDLL = Library
for module, names in ((os, ("fork", "forkpty", "statvfs", "geteuid", "getuid", "getpgid", "killpg", "setsid", "nice",
                            "sched_getaffinity", "sysconf", "mkfifo")),
                      (signal, ("SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGALRM", "alarm", "setitimer"))):
    for name in names:
        delattr(module, name)
usage = type("usage", (), {"free": 10**12})
shutil.disk_usage = lambda path: usage  # has its own way on Windows

from loraport.cli import main
codes = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["loraport", *words]
    try:
        main()
    except SystemExit as end:
        codes.append(end.code or 0)
print("codes", codes, file=sys.stderr)
"""


@pytest.mark.slow
def test_every_module_loads_and_the_commands_run_without_what_only_unix_has(tmp_path):
    family = make_family(tmp_path, blocks=1)
    pair = ["--source", family.source, "--target", family.target, "--method", "direct"]
    places = iter([str(tmp_path / f"out{number}") for number in range(9)])
    peft = next(places)
    calls = [
        ["transfer", family.lora, *pair, "-o", f"{next(places)}.safetensors", "--report", str(tmp_path / "page.html")],
        *[["transfer", family.lora, *pair, "--format", "peft", "-o", peft, "--overwrite"]] * 2,
        ["transfer", family.lora, *pair, "-o", f"{next(places)}/", "--events", str(tmp_path / "events.jsonl")],
        ["convert", family.lora, "--to", "kohya", "-o", f"{next(places)}.safetensors"],
        ["merge", family.source, family.lora, "-o", f"{next(places)}.safetensors"],
        ["inspect", peft],
        ["cache", "list"],
        ["presets"],
    ]
    command = [sys.executable, "-c", WITHOUT_UNIX, json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert f"codes {[0] * len(calls)}" in done.stderr, done.stderr[-2000:]


@pytest.fixture
def windows(monkeypatch):
    """The branches for Windows, on locks of this system."""
    handles = SimpleNamespace(closed=[])

    def locking(handle, mode, count):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def exit_code(process, place):
        place._obj.value = 259
        return 1

    kernel = SimpleNamespace(
        OpenProcess=lambda access, inherit, process: process,
        GetExitCodeProcess=exit_code,
        CloseHandle=handles.closed.append,
    )
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    return handles


def test_files_folders_and_locks_in_the_way_of_windows(windows, tmp_path):
    write_whole(tmp_path / "file", b"one")
    write_whole(tmp_path / "file", b"two")
    assert (tmp_path / "file").stat().st_size == 3 and (tmp_path / "file").read_bytes() == b"two"
    for text in ("one", "two"):
        with new_folder(tmp_path / "folder") as folder:
            (folder / "inside").write_text(text)
    assert (tmp_path / "folder" / "inside").read_text() == "two"
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    first.take("out")
    with pytest.raises(OutputError, match=rf"another run \(process {os.getpid()} on"):
        second.take("out")
    first.release()
    second.take("out")
    second.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("times", [3, 99])
def test_a_file_that_is_open_elsewhere_is_waited_for_and_then_said(windows, tmp_path, monkeypatch, times):
    """A scanner lets go of it; ComfyUI, which has it loaded, does not."""
    real, asked, slept = os.replace, [], []

    def replace(old, new):
        asked.append(new)
        if len(asked) <= times:
            raise PermissionError(13, "Access is denied")
        real(old, new)

    (tmp_path / "out.safetensors").write_bytes(b"old")
    monkeypatch.setattr(atomic.os, "replace", replace)
    monkeypatch.setattr(atomic.time, "sleep", slept.append)
    if times == 3:
        write_whole(tmp_path / "out.safetensors", b"new")
        assert len(slept) == 3
    else:
        with pytest.raises(OutputError, match="another program has it open, or it is write-protected; close it there"):
            write_whole(tmp_path / "out.safetensors", b"new")
        assert sum(slept) < 2
    assert (tmp_path / "out.safetensors").stat().st_size == 3
    assert (tmp_path / "out.safetensors").read_bytes() == (b"new" if times == 3 else b"old")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_transfer_in_the_way_of_windows_writes_the_same_bytes(tmp_path, request):
    family = make_family(tmp_path, blocks=1)
    transfer(family.config("here.safetensors", method="direct"))
    transfer(family.config("here", method="direct", format="peft"))
    request.getfixturevalue("windows")
    transfer(family.config("there.safetensors", method="direct"))
    transfer(family.config("there", method="direct", format="peft"))
    for name in (".safetensors", "/adapter_model.safetensors", "/adapter_config.json"):
        assert Path(f"{tmp_path}/here{name}").read_bytes() == Path(f"{tmp_path}/there{name}").read_bytes()


NAMES = {
    "style.safetensors": False, "con-casa.safetensors": False, "console": False, "com.safetensors": False,
    ".hidden": False,
    "CON": True, "con.safetensors": True, "nul .safetensors": True, "Com1.tar.gz": True, "lpt9": True, "aux.": True,
    "a:b.safetensors": True, "what?": True, "a|b": True, "tab\t": True, "dot.": True, "space ": True,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_mean_something_else_on_windows(name, tmp_path, monkeypatch):
    assert (unusual_on_windows(name) is not None) is NAMES[name]
    check_output(tmp_path / name)
    monkeypatch.setattr(sys, "platform", "win32")
    if NAMES[name]:
        with pytest.raises(OutputError, match="cannot be the name of a result"):
            check_output(tmp_path / name)
    else:
        check_output(tmp_path / name)


@pytest.mark.parametrize("place", [r"C:\loras\style.safetensors", "C:/models/wan", r"..\wan\x.safetensors", r"D:wan"])
def test_paths_of_windows_are_no_names_on_the_hub(place):
    assert not looks_like_hub_id(place)
    assert split_target(rf"{place}+E:\fast.safetensors*0.8") == (place, r"E:\fast.safetensors*0.8")


def test_apples_graphics_leaves_weights_to_the_processor(tmp_path, monkeypatch):
    """They have no double precision; what is sampled runs on them."""
    family = make_family(tmp_path, blocks=1)
    with pytest.raises(SettingsError, match="'mps' is not there: PyTorch sees no Apple graphics; use cpu"):
        family.config(device="mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert (
        find_device("mps").type == "mps" and weights_device("mps").type == "cpu" and weights_device("cpu").type == "cpu"
    )
    plain = transfer(family.config("plain.safetensors"))
    there = transfer(family.config("there.safetensors", device="mps"))
    assert ON_PROCESSOR in there.warnings and ON_PROCESSOR not in plain.warnings
    assert Path(plain.output).read_bytes() == Path(there.output).read_bytes()
    assert in_double(torch.ones(2)).dtype == torch.float64
