"""Killed at the telling moments, every kind of writing ends as undisturbed; and the checks see what they are for."""

import signal
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("cases are forks, and some deaths the kernel's", allow_module_level=True)

import torch

from loraport.files.disk import atomic as replacing
from loraport.files.formats import safetensors_write as saving
from loraport.store import keyed as cache
from tests.fuzz.kills import Counter, Death, Stage, relive, start, together, tree
from tests.fuzz.writers import WRITERS

HALF = Death(signal.SIGXFSZ, size=3000)
FAST = ("convert, peft", "merge, shards", "transfer, split")


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    torch.set_num_threads(1)
    return Stage(tmp_path_factory.mktemp("kills"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_the_same_command_has_the_same_events_and_leaves_the_same_files(stage, name):
    """Else a kill before the n-th event would be another one each time, and no end could be told right from wrong."""
    first = stage.undisturbed(WRITERS[name].words)
    del stage.known[WRITERS[name].words]
    again = stage.undisturbed(WRITERS[name].words)
    assert (first.tree, first.events) == (again.tree, again.events) and first.events > 4


@pytest.mark.parametrize(
    "death",
    [Death(event=3), Death(signal.SIGTERM, event=3), Death(signal.SIGXFSZ, size=100), Death(seconds=0.001)],
    ids=str,
)
def test_it_dies_as_it_is_told(stage, death):
    place = stage.empty()
    outcome = start(WRITERS["convert, peft"].words, place, death, Counter()).end()
    assert outcome.code == 128 + death.signal or outcome.signal == death.signal
    assert "adapter/adapter_model.safetensors" not in tree(place)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way", "deaths"),
    [
        ("transfer, split", "new", [Death(event=0.5), Death(signal.SIGTERM, event=0.97)]),
        ("transfer, many LoRAs", "over older", [Death(event=0.96)]),
        ("convert, peft", "over older", [Death(event=0.9)]),
        ("convert, peft", "over older", [Death(signal.SIGTERM, event=0.99)]),
        ("merge", "after another", [Death(signal.SIGXFSZ, size=5000)]),
        ("merge, shards", "new", [Death(signal.SIGINT, event=0.6)]),
        ("probe", "new", [Death(event=0.8)]),
    ],
    ids=str,
)
def test_a_killed_command_ends_as_undisturbed(stage, name, way, deaths):
    """Moments are given as shares of all events here."""
    events = stage.undisturbed(WRITERS[name].other if way == "after another" else WRITERS[name].words).events
    deaths = [one if one.event is None else replace(one, event=int(one.event * events)) for one in deaths]
    assert relive(stage, name, deaths, way)[1] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transfer, peft", "convert, peft"])
def test_two_at_once_end_as_one_of_them(stage, name):
    assert together(stage, name, other=True)[1] == []


def written_in_place(path, *, private=False):
    return path.open("wb")


@contextmanager
def filled_in_place(path):
    path.mkdir(exist_ok=True)
    yield path


@pytest.mark.parametrize(
    ("module", "name", "broken", "command", "death", "says"),
    [
        (saving, "new_file", written_in_place, "merge", HALF, "half-written"),
        (saving, "new_folder", filled_in_place, "convert, peft", HALF, "half-written"),
        (replacing, "remove_dead", lambda folder: None, "merge", HALF, "left behind: .loraport-"),
        (
            cache,
            "save_safetensors",
            lambda path, *_, **__: path.write_bytes(b"torn"),
            "transfer, cache",
            HALF,
            "damaged",
        ),
    ],
    ids=["files in place", "folders in place", "nothing tidied", "a torn cache"],
)
def test_a_fault_is_found(stage, monkeypatch, module, name, broken, command, death, says):
    """Each of these was true of some program."""
    stage.undisturbed(WRITERS[command].words), stage.undisturbed(WRITERS[command].other)
    monkeypatch.setattr(module, name, broken)
    found = relive(stage, command, [death])[1]
    assert any(says in fault for fault in found), found
