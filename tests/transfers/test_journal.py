"""Finished layers: one run's at a time, never a copy where one is missing, kept whatever ends the run."""

import ctypes
import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from loraport.analysis.inputs import AnalyzeConfig
from loraport.analysis.run import analyze
from loraport.errors import InputError, LoraportError, OutputError
from loraport.files.disk import ownership
from loraport.files.disk.ownership import HOST
from loraport.transfers import run as running
from loraport.transfers.journal import PartialFolder
from loraport.transfers.run import transfer, transfer_many
from tests.transfers.models import make_family


@pytest.fixture
def family(tmp_path):
    return make_family(tmp_path)


@pytest.fixture
def nobodys_process(monkeypatch) -> int:
    monkeypatch.setattr(ownership, "is_running", lambda process: process != 4_000_000)
    return 4_000_000


def digest(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def owned(folder: Path, process: int, host: str = HOST) -> Path:
    """The folder of a run that some process had begun."""
    folder.mkdir()
    lock = folder / "lock"
    lock.write_text(json.dumps({"process": process, "host": host, "since": "2026-01-02 03:04:05"}))
    return lock


def test_a_second_run_on_the_same_output_is_refused_with_the_firsts_name(family):
    with (
        PartialFolder(Path(family.config().output), "some run"),
        pytest.raises(OutputError, match=rf"out\.safetensors is being made by another run \(process {os.getpid()} on "),
    ):
        transfer(family.config())
    assert transfer(family.config()).output == family.config().output, "once the first is over, all is well"


def test_many_runs_at_once_end_in_one_result_and_refusals(family):
    """Threads stand for processes: each opens the lock anew."""
    expected = digest(transfer(family.config("alone.safetensors")).output)
    ended: list[str] = []

    def start():
        try:
            transfer(family.config())
            ended.append("done")
        except OutputError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "done" in ended and all(text == "done" or "is being made by another run" in text for text in ended)
    assert digest(family.config().output) == expected
    assert not (family.folder / "out.safetensors.partial").exists()


@pytest.mark.parametrize("locks", [True, False], ids=["with locks", "a file system without locks"])
def test_a_dead_owners_lock_is_taken_over(family, nobodys_process, locks, monkeypatch):
    if not locks:
        monkeypatch.setattr(ownership, "try_lock", lambda handle: None)
    owned(family.folder / "out.safetensors.partial", nobodys_process)
    assert transfer(family.config()).output
    assert not (family.folder / "out.safetensors.partial").exists()


def test_where_there_are_no_locks_the_owners_process_is_looked_for(family, monkeypatch):
    monkeypatch.setattr(ownership, "try_lock", lambda handle: None)
    owned(family.folder / "out.safetensors.partial", os.getppid())
    with pytest.raises(OutputError, match=f"process {os.getppid()} on .* since 2026-01-02"):
        transfer(family.config())


def test_an_owner_on_another_machine_counts_while_it_gives_signs_of_life(family):
    lock = owned(family.folder / "out.safetensors.partial", 1, "elsewhere")
    with pytest.raises(OutputError, match="process 1 on elsewhere"):
        transfer(family.config())
    old = time.time() - 3600
    os.utime(lock, (old, old))
    assert transfer(family.config()).output


def test_a_damaged_lock_without_an_owner_stops_nobody(family):
    owned(family.folder / "out.safetensors.partial", 1).write_text("not json")
    assert transfer(family.config()).output


def test_a_layer_that_vanishes_is_an_error_and_never_a_copy(family, monkeypatch):
    real = running.output_contents

    def vanishes(ready, journal, layers):
        next(journal.folder.glob("*.safetensors")).unlink()
        return real(ready, journal, layers)

    monkeypatch.setattr(running, "output_contents", vanishes)
    with pytest.raises(OutputError, match=r"has lost .* since it was finished"):
        transfer(family.config())
    assert not Path(family.config().output).exists()


def test_a_full_disk_at_the_end_keeps_every_finished_layer(family, monkeypatch):
    expected = digest(transfer(family.config("alone.safetensors")).output)
    real = running.output_contents

    def full(*_):
        raise OutputError("out.safetensors cannot be written: No space left on device")

    monkeypatch.setattr(running, "output_contents", full)
    count = len(family.factors)
    with pytest.raises(OutputError, match=rf"No space left.*; {count} finished layers are kept in .*\.partial"):
        transfer(family.config())
    monkeypatch.setattr(running, "output_contents", real)
    monkeypatch.setattr(running.LayerTransfer, "__call__", None)  # nothing is done again
    assert digest(transfer(family.config()).output) == expected


def test_of_several_outputs_what_is_written_goes_and_the_rest_waits(family, monkeypatch):
    real = running.output_contents

    def full(ready, journal, layers):
        if ready.config.method == "casa":
            raise OutputError("no room")
        return real(ready, journal, layers)

    monkeypatch.setattr(running, "output_contents", full)
    configs = [family.config(f"{method}.safetensors", method=method) for method in ("casa", "direct")]
    batch = transfer_many(configs)
    assert [one.output for one in batch.not_written] == [configs[0].output]
    assert not (family.folder / "direct.safetensors.partial").exists()
    waiting = os.listdir(family.folder / "casa.safetensors.partial")
    assert len(waiting) == len(family.factors), "all layers, and no lock"


def test_a_layer_that_is_not_finite_is_told_when_all_others_are_done_and_can_be_left_out(family, monkeypatch):
    bad = "blocks.0.self_attn.q"
    weights = family.folder / "source.safetensors"
    state = load_file(weights)
    state[f"{bad}.weight"][0, 0] = float("nan")
    save_file(state, weights)
    with pytest.raises(
        InputError, match=rf"{bad}.*--exclude {bad}; {len(family.factors) - 1} finished layers are kept in"
    ):
        transfer(family.config())
    monkeypatch.setattr(running.LayerTransfer, "__call__", None)
    result = transfer(family.config(exclude=(bad,)))
    assert [layer.name for layer in result.layers if layer.status == "copied"] == [bad]


def test_a_file_that_cannot_be_read_any_more_ends_the_run_at_once(family):
    weights, read = family.folder / "source.safetensors", []
    real = running.LayerTransfer.__call__

    def and_then_gone(self, job, lora, shared):
        read.append(job.name)
        weights.unlink(missing_ok=True)
        return real(self, job, lora, shared)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.LayerTransfer, "__call__", and_then_gone)
        with pytest.raises(
            LoraportError, match=r"source\.safetensors cannot be read: .*; \d finished layers are kept in"
        ):
            transfer(family.config())
    assert len(read) < 4


def test_a_refusal_before_any_layer_leaves_no_folder(family):
    state = {key: tensor * float("nan") for key, tensor in load_file(family.folder / "source.safetensors").items()}
    save_file(state, family.folder / "source.safetensors")
    with pytest.raises(InputError):
        transfer(family.config())
    assert not (family.folder / "out.safetensors.partial").exists()


@pytest.mark.parametrize(("letters", "refused"), [(114, False), (115, True)])
def test_a_name_that_leaves_no_room_for_endings_is_refused(family, letters, refused):
    name = "ü" * letters + ".safetensors"  # 240 and 242 bytes
    if refused:
        with pytest.raises(OutputError, match="more than 240 bytes"):
            transfer(family.config(name))
    else:
        assert Path(transfer(family.config(name)).output).name == name


@pytest.mark.slow
@pytest.mark.parametrize("windows", [False, True])
def test_where_unix_modules_are_missing_transfers_and_analyses_run(family, monkeypatch, windows):
    """Windows has none of them, and no library without a name."""

    class Library:
        def __init__(self, name):
            raise TypeError("argument of type 'NoneType' is not iterable")

    if windows:
        for module in ("resource", "fcntl", "pwd"):
            monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setattr(ctypes, "CDLL", Library)
    expected = transfer(family.config())
    assert (expected.peak_rss_bytes > 0) is not windows
    folders = [transfer(family.config("peft", format="peft")).output for _ in range(2)]
    assert os.listdir(folders[1])
    seen = analyze(AnalyzeConfig(family.lora, family.source, family.target, str(family.folder / "seen"), sample=2))
    assert len(seen.layers) == 2
