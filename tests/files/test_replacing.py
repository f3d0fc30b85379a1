"""Whole or not at all, under any name, through links; what the dead left goes, what the living make stays."""

import os
import subprocess
import sys
import time

import pytest

from loraport.errors import OutputError
from loraport.files.disk import atomic as replacing
from loraport.files.disk.atomic import TEMPORARY, new_file, new_folder, write_whole
from loraport.files.disk.ownership import HOST_DIGEST

DEAD = 4_000_000


@pytest.fixture(autouse=True)
def the_dead(monkeypatch):
    real = replacing.is_running
    monkeypatch.setattr(replacing, "is_running", lambda process: process != DEAD and real(process))


def leftover(process: int, host: str = HOST_DIGEST) -> str:
    name = f".loraport-{host}-{process}-0123abcd.part"
    assert TEMPORARY.fullmatch(name)
    return name


def test_what_dead_processes_left_is_removed_by_the_next_writer(tmp_path):
    (tmp_path / leftover(DEAD)).write_bytes(b"half")
    (tmp_path / leftover(DEAD).replace("0123", "4567")).mkdir()
    (tmp_path / leftover(DEAD).replace("0123", "4567") / "shard").write_bytes(b"half")
    (tmp_path / leftover(os.getppid())).write_bytes(b"alive")
    (tmp_path / leftover(1, "ffffffff")).write_bytes(b"of another machine, today")
    (tmp_path / ".loraport-mine.part").write_bytes(b"the user's")
    (tmp_path / leftover(os.getppid()).replace("0123", "4567")).write_bytes(b"of an earlier one with its number")
    os.utime(tmp_path / leftover(os.getppid()).replace("0123", "4567"), (time.time() - 90_000,) * 2)
    write_whole(tmp_path / "new.txt", b"whole")
    kept = {leftover(os.getppid()), leftover(1, "ffffffff"), ".loraport-mine.part", "new.txt"}
    assert set(os.listdir(tmp_path)) == kept


def test_what_is_being_written_is_left_alone_by_other_writers_in_the_folder(tmp_path):
    with new_file(tmp_path / "a") as one, new_folder(tmp_path / "b") as other:
        one.write(b"1")
        (other / "x").write_bytes(b"2")
        write_whole(tmp_path / "c", b"3")
        call = "import loraport.files.disk.atomic as r; r.write_whole(p.Path(sys.argv[1]), b'4')"
        program = f"import sys, pathlib as p; {call}"
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "d")], check=True)
    found = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"a": b"1", "b/x": b"2", "c": b"3", "d": b"4"}


def test_a_reused_process_number_does_not_keep_the_dead_alive(tmp_path):
    """In containers every program is process 1: the lock tells, not the number."""
    (tmp_path / leftover(os.getpid())).write_bytes(b"of an earlier container")
    write_whole(tmp_path / "new", b"whole")
    assert os.listdir(tmp_path) == ["new"]


@pytest.mark.parametrize("length", [200, 244, 250, 255])
def test_every_legal_name_can_be_written(tmp_path, length):
    path = tmp_path / ("n" * length)
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two" and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("file/out", "Not a directory"),
        ("n" * 256, "File name too long"),
        ("loop", "Too many levels of symbolic links"),
        ("folder", "Is a directory"),
    ],
)
def test_places_that_cannot_be_written_are_named_with_the_true_reason(tmp_path, place, why):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputError, match=f"cannot be written: {why}"):
        write_whole(tmp_path / place, b"x")
    assert sorted(os.listdir(tmp_path)) == before and (tmp_path / "loop").is_symlink()


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").symlink_to("real/file")  # dangling
    (tmp_path / "way").symlink_to("folder")
    write_whole(tmp_path / "file", b"1")
    with new_folder(tmp_path / "way") as made:
        (made / "x").write_bytes(b"2")
    assert (tmp_path / "real" / "file").read_bytes() == b"1" and (tmp_path / "folder" / "x").read_bytes() == b"2"
    assert (tmp_path / "file").is_symlink() and (tmp_path / "way").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "real", "way"]


def test_the_folder_of_an_output_is_made_and_goes_again_where_nothing_is_written(tmp_path):
    write_whole(tmp_path / "new" / "deep" / "one.txt", b"1")
    assert (tmp_path / "new" / "deep" / "one.txt").read_bytes() == b"1"
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "new" / "other" / "deeper" / "two.txt"):
        raise KeyboardInterrupt
    with pytest.raises(OutputError), new_folder(tmp_path / "third" / "folder"):
        raise OSError(28, "No space left on device")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "new", "one.txt"]
