"""The attacks find what they are for, are the same each time, and find nothing in the program."""

import random
import sys

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("cases are forks, bounded by the kernel", allow_module_level=True)

import torch

from tests.fuzz.attack import attack
from tests.fuzz.harness import CPU_SECONDS, MEMORY, Outcome, run
from tests.fuzz.mutations import mutate
from tests.fuzz.seeds import SEEDS, write_good


def outcome(**changes) -> Outcome:
    plain = {"words": ("inspect", "x"), "code": 0, "signal": 0, "seconds": 1.0, "memory": 0, "output": "fine\n"}
    return Outcome(**{**plain, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"code": 1}, "exit 1"),
        ({"signal": 24}, "ended by signal 24"),
        ({"output": "Traceback (most recent call last):"}, "a traceback"),
        ({"output": "\x1b[31m"}, "a raw control character"),
        ({"memory": MEMORY + 1}, "beyond the program at rest"),
        ({"code": 2, "output": ""}, "without a word"),
        ({"output": "x" * 70_000}, "characters of output"),
    ],
)
def test_what_must_not_happen_is_a_finding_and_nothing_else(changes, says, tmp_path):
    assert outcome().faults(tmp_path) == outcome(code=3).faults(tmp_path) == []
    assert any(says in fault for fault in outcome(**changes).faults(tmp_path))


def test_code_that_ran_is_a_finding(tmp_path):
    (tmp_path / "canary").touch()
    assert outcome().faults(tmp_path) == ["code inside an input ran"]


@pytest.mark.slow
def test_a_command_runs_within_its_bounds(tmp_path, monkeypatch):
    """One that hangs is ended by the kernel, one that takes memory is seen; a good one is neither."""
    folder = tmp_path / "case"
    folder.mkdir()
    assert run(["--version"], folder).output.startswith("loraport ")
    monkeypatch.setattr("tests.fuzz.harness.CPU_SECONDS", 1)
    monkeypatch.setattr("loraport.cli.main", lambda: [None for _ in iter(int, 1)] or sys.exit(0))
    assert run([], folder).signal != 0 and CPU_SECONDS > 1
    monkeypatch.setattr("tests.fuzz.harness.CPU_SECONDS", CPU_SECONDS)
    monkeypatch.setattr("loraport.cli.main", lambda: sys.exit(len(bytearray(MEMORY + (200 << 20))) == 0))
    assert run([], folder).memory > MEMORY


@pytest.mark.parametrize("name", SEEDS)
def test_every_good_input_is_read(name, tmp_path):
    """Else its damage would be refused for the wrong reason."""
    torch.set_num_threads(1)
    folder = tmp_path / "case"
    write_good(folder)
    write, commands = SEEDS[name]
    place = write(folder)
    assert run(commands(place)[0], folder).code == 0


def test_the_same_number_is_the_same_case(tmp_path):
    texts = []
    for part in "ab":
        folder = tmp_path / part
        folder.mkdir()
        place = folder / SEEDS["lora, kohya"][0](folder)
        texts.append((mutate(place, random.Random(3)), place.read_bytes()))
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_nothing_is_found(tmp_path):
    torch.set_num_threads(1)
    findings = [str(one) for one in attack(tmp_path, 5, range(20)) if one.faults]
    assert findings == []
