"""Packages that add commands and pairs: one that is missing or broken says so, and takes nothing else with it."""

import importlib.util
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import loraport
import loraport_lab
from loraport.cli import annex
from loraport.errors import SettingsError
from loraport.files.models import named_places
from loraport.sampling import providers

BROKEN = {
    "a module that is not there": ("no_such_module:app", "No module named 'no_such_module'"),
    "a name that is not there": ("loraport.errors:app", "has no attribute 'app'"),
    "a package that raises": ("raising_package:app", "RuntimeError: half of it is gone"),
    "a package that cannot be parsed": ("torn_package:app", "SyntaxError"),
}


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """Two packages that cannot be imported."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "raising_package.py").write_text("raise RuntimeError('half of it is gone')")
    (folder / "torn_package.py").write_text("def app(:")
    monkeypatch.syspath_prepend(folder)


def program(monkeypatch, *entries):
    """A program of one command `inspect`, with these entry points (name, value) added to it."""
    points = [EntryPoint(name, value, annex.GROUP) for name, value in entries]
    monkeypatch.setattr(annex, "entry_points", lambda group: points)
    app = typer.Typer()
    app.command("inspect")(lambda: print("inspected"))
    annex.add_commands(app)
    return lambda *words: CliRunner().invoke(app, words)


@pytest.mark.parametrize("words", [["demo"], ["demo", "-o", "x", "--clips", "4"], ["lab"], ["lab", "run", "--jobs=2"]])
def test_without_the_lab_its_commands_say_in_one_line_what_to_install(monkeypatch, words):
    run = program(monkeypatch)
    refused = run(*words)
    assert isinstance(refused.exception, SettingsError)
    assert str(refused.exception) == f"`loraport {words[0]}` is in {providers.LAB}" and "\n" not in providers.LAB
    assert run("inspect").stdout == "inspected\n"
    assert "Needs the package loraport-lab" in run("--help").stdout


@pytest.mark.parametrize(("value", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_package_takes_no_other_command_with_it(monkeypatch, value, reason):
    run = program(monkeypatch, ("demo", value), ("lab", "loraport_lab.cli_lab:app"), ("other", value))
    assert run("inspect").stdout == "inspected\n" and run("inspect").stderr == ""
    assert run("lab", "run", "--help").exit_code == 0
    for name in ("demo", "other"):
        refused = run(name, "--anything")
        assert isinstance(refused.exception, SettingsError)
        assert str(refused.exception).startswith(f"`loraport {name}` cannot be loaded") and reason in str(
            refused.exception
        )


def with_pairs(monkeypatch, **entries):
    points = [EntryPoint(name, value, named_places.GROUP) for name, value in entries.items()]
    monkeypatch.setattr(named_places, "entry_points", lambda group: points)


def test_without_the_lab_a_toy_name_says_what_to_install(monkeypatch, tmp_path):
    with_pairs(monkeypatch)
    with pytest.raises(SettingsError, match="toy:noir is in the package loraport-lab: pip install"):
        providers.known_place("toy:noir")
    assert providers.known_place("hub-user/model:file") == "hub-user/model:file"
    assert providers.owner_of(tmp_path) is None


@pytest.mark.parametrize(("value", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_provider_takes_no_other_with_it(monkeypatch, tmp_path, value, reason):
    from loraport_lab.family.family import BASE
    from loraport_lab.provider import TOY

    with_pairs(monkeypatch, broken=value, toy="loraport_lab.provider:TOY")
    with pytest.raises(SettingsError, match=rf"broken:x cannot be loaded from the package .*{reason}"):
        providers.known_place("broken:x")
    assert providers.known_place("toy:base") == str(BASE)
    assert providers.owner_of(BASE) is TOY and providers.owner_of(tmp_path) is None


def test_the_lab_refuses_another_version_of_loraport(monkeypatch):
    init = Path(loraport_lab.__file__)
    assert loraport_lab.__version__ == loraport.__version__
    spec = importlib.util.spec_from_file_location("lab_of_another_version", init)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    monkeypatch.setattr(loraport, "__version__", "9.9")
    with pytest.raises(ImportError, match=r"loraport-lab 0\.1\.0 works with loraport 0\.1\.0, and 9\.9 is installed"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
