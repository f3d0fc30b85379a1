"""Signals end the program with one line and their own code; what the machine refuses is one sentence."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from loraport import cli
from loraport.__main__ import run
from loraport.cli.stopping import in_one_sentence, listening
from tests.transfers.models import make_family


def hearing() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would what the tests start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_transfer_says_how_to_go_on_and_goes_on(tmp_path, number, code):
    family = make_family(tmp_path)
    words = ["transfer", family.lora, "--source", family.source, "--target", family.target, "-o",
             str(tmp_path / "out.safetensors"), "--no-cache", "-q"]  # fmt: skip
    slow = (
        "import time\n"
        "from loraport.cli import main\n"
        "from loraport.transfers.layer import LayerTransfer\n"
        "real = LayerTransfer.__call__\n"
        "LayerTransfer.__call__ = lambda *given: (time.sleep(0.2), real(*given))[1]\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *words], stderr=subprocess.PIPE, text=True, preexec_fn=hearing
    )
    partial, end = tmp_path / "out.safetensors.partial", time.monotonic() + 120
    while not list(partial.glob("*.safetensors")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert len(said.splitlines()) == 1 and "the same command goes on" in said
    kept = os.listdir(partial)
    assert kept and "lock" not in kept and not [name for name in kept if name.endswith(".part")]


@pytest.mark.slow
def test_workers_of_the_lab_are_ended_with_it_and_say_nothing(tmp_path):
    """Ctrl-C in a terminal goes to all processes of the group."""
    program = (
        "import sys, time\n"
        "from loraport.cli.stopping import Stopped, listening\n"
        "from loraport_lab.workers import workers\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        with listening(), workers(2) as submit:\n"
        "            waiting = [submit(time.sleep, 60) for _ in range(4)]\n"
        "            print('ready', flush=True)\n"
        "            waiting[0].result()\n"
        "    except Stopped as stopped:\n"
        "        print(stopped, file=sys.stderr)\n"
        "        sys.exit(130)\n"
    )
    (tmp_path / "program.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=hearing,
    )  # fmt: skip
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and len(said.splitlines()) == 1, said


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "Permission denied", "closed/lora.safetensors"),
        OSError(errno.EMFILE, "Too many open files", "a"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        OSError(errno.EIO, "Input/output error", b"drive"),
        OSError("what a library says"),
    ],
)
def test_what_the_machine_refuses_is_one_sentence_and_exit_2(monkeypatch, capsys, error):
    def refused():
        raise error

    monkeypatch.setattr(cli, "app", refused)
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr().err
    assert left.value.code == 2 and said == f"loraport: {in_one_sentence(error)}\n"
    assert (error.strerror or "what a library says") in said


def test_a_fault_of_ours_is_still_one(monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", lambda: 1 / 0)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1 and "this is a fault of the program" in capsys.readouterr().err


def test_signals_are_left_to_whoever_had_them():
    """Inside a thread, and after the command."""
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def inside():
        with listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start(), thread.join()
    inside()
    assert seen[0] is before and seen[1] is not before and signal.getsignal(signal.SIGTERM) is before


def test_a_ctrl_c_while_modules_are_loaded_is_a_sentence(monkeypatch, capsys):
    class Loading:
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "loraport.cli", Loading())
    with pytest.raises(SystemExit) as end:
        run()
    assert (
        end.value.code == 130 and capsys.readouterr().err == "loraport: stopped by SIGINT before anything was begun\n"
    )
