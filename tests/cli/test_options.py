"""Options of commands: dataclasses become options, settings become options, and `--help` shows all of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from loraport.cli import app
from loraport.cli.commands.transfer import transfer
from loraport.cli.options.expansion import HIDDEN, SettingFlags, default_of, with_options
from loraport.cli.options.help import GroupedCommand
from loraport.errors import SettingsError
from loraport.methods.layer import Layer, Update
from loraport.methods.recipes import METHODS, Method
from loraport.methods.settings import KINDS, AnySettings, CasaSettings, Changes, Flag, flagged_settings
from tests.transfers.models import deltas, make_family


def called(command, *words):
    """What a command gets of these words, and what it prints."""
    app, got = typer.Typer(rich_markup_mode=None), []
    app.command(cls=GroupedCommand)(with_options(command(got)))
    done = CliRunner().invoke(app, list(words))
    return got, done


@dataclass(frozen=True)
class Inner:
    heading: ClassVar[str] = "Within"
    deep: Annotated[int, typer.Option(help="How deep.")] = 3


@dataclass(frozen=True)
class Outer:
    heading: ClassVar[str] = "Around"
    wide: Annotated[str, typer.Option(help="How wide.")]
    inner: Inner = field(default_factory=Inner)
    changes: Annotated[Changes, SettingFlags((CasaSettings,), without=("eps",))] = field(default_factory=dict)


@dataclass(frozen=True)
class Secret:
    old: Annotated[bool, typer.Option("--old")] = False
    inner: Inner = field(default_factory=Inner)


def shown(got):
    def command(outer: Outer, plain: Annotated[int, typer.Option(help="Plain.")] = 1) -> None:
        got.append((outer, plain))

    return command


def hidden(got):
    def command(secret: Annotated[Secret, HIDDEN]) -> None:
        got.append(secret)

    return command


def test_fields_become_options_and_come_back_as_the_dataclass():
    [(outer, plain)], done = called(shown, "--wide", "very", "--deep", "4", "--tau", "2", "--no-arbitrate")
    assert done.exit_code == 0 and plain == 1
    assert outer == Outer("very", Inner(4), {"tau": 2.0, "arbitrate": False})
    assert called(shown, "--wide", "x")[0] == [(Outer("x"), 1)]  # nothing typed: the defaults, and no change
    for words in ([], ["--wide", "x", "--deep", "two"], ["--wide", "x", "--eps", "1"]):
        got, done = called(shown, *words)
        assert got == [] and done.exit_code == 2


def test_help_has_the_headings_and_hidden_options_work_without_it():
    text = called(shown, "--help")[1].stdout
    assert [line for line in text.splitlines() if line.endswith(":")] == [
        "Around:", "Within:", "CASA and its ablations:", "Messages:",
    ]  # fmt: skip
    assert "How deep. [default: 3]" in text and "How wide. [required]" in text and "--eps " not in text
    [got], _ = called(hidden, "--old", "--deep", "5")
    assert got == Secret(True, Inner(5))
    text = called(hidden, "--help")[1].stdout
    assert "--old" not in text and "--deep" not in text


def help_of(*words, width=80):
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": str(width), "TERMINAL_WIDTH": str(width)})
    return done.stdout, " ".join(done.stdout.split())


def test_transfer_help_shows_every_default_in_groups():
    lines, text = help_of("transfer")
    headings = [line.rstrip(":") for line in lines.splitlines() if re.match(r"\S.*:$", line)]
    groups = dict.fromkeys(kind.group for kind in KINDS if kind.group)
    assert headings == ["Files", "Method and layers", *groups, "Output", "Machine", "Many at once", "Messages"]
    for kind in KINDS:
        for row in flagged_settings(kind):
            assert f"[default: {default_of(row)}" in text and f"{row.option} " in text
    taken = {row.name for kind in KINDS for row in flagged_settings(kind)}
    command = typer.main.get_command(app).commands["transfer"]
    for param in command.params:
        if isinstance(param.default, str | int | float) and not isinstance(param.default, bool) and not param.hidden:
            if param.default == "":  # source and target
                assert "[required, unless --for or a manifest has it]" in param.help
                continue
            assert f"[default: {param.default}]" in text, param.name
        assert param.name not in taken or param.default is None
    assert "--guard" not in text and "Example: loraport transfer" in text
    assert max(map(len, lines.splitlines())) <= 80


def test_every_method_is_named_in_the_help_of_transfer():
    text = help_of("transfer", width=500)[1]
    listed = text[text.index("casa, direct[") : text.index("; several of them")]
    names = {re.split(r"\[", name)[0] for name in re.split(r", | or ", listed)}
    assert names == set(METHODS)


def test_the_list_of_commands_is_grouped_whole_and_says_where_to_start():
    lines, text = help_of()
    assert "..." not in text.replace("[ARGS]...", "") and "Start with inspect, then diagnose and transfer" in text
    assert max(map(len, lines.splitlines())) <= 80
    groups = re.findall(r"^(\w.*):\n((?:  .*\n)+)", lines, re.MULTILINE)
    named = {heading: re.findall(r"^  (\w+) ", rows, re.MULTILINE) for heading, rows in groups}
    assert named["Start here"] == ["inspect", "diagnose", "transfer"]
    assert named["Judge by sampling"][:2] == ["compare", "evaluate"]
    assert "Commands" not in named
    assert {name for names in named.values() for name in names} == {*typer.main.get_command(app).commands}


@dataclass(frozen=True)
class ShrinkSettings(AnySettings):
    """How much of the LoRA stays."""

    title: ClassVar[str] = "Shrink"
    group: ClassVar[str] = "Shrink"
    share: Annotated[float, Flag("Share of the LoRA that stays.")] = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise SettingsError(f"share is {self.share}, but it must lie in [0, 1]")


def shrink(layer: Layer, settings: ShrinkSettings) -> Update:
    return Update(layer.lora.scaled(settings.share), facts={"stays": settings.share})


@pytest.fixture
def shrinking(monkeypatch):
    """The command with one method more: its rule, its row, and its settings class."""
    monkeypatch.setattr("loraport.methods.controls.shrink", shrink, raising=False)
    monkeypatch.setitem(METHODS, "shrink", Method("controls.shrink", ShrinkSettings, needs_basis=False, low_rank=True))
    for module in ("loraport.cli.options.expansion", "loraport.inputs.recipes"):
        monkeypatch.setattr(f"{module}.KINDS", (*KINDS, ShrinkSettings))
    app = typer.Typer(rich_markup_mode=None)
    app.command(cls=GroupedCommand)(with_options(transfer.__wrapped__))
    return app


def test_a_new_method_with_a_setting_touches_three_places(shrinking, tmp_path):
    """From flag to formula, to the help, the file's header and the refusals, without a line anywhere else."""
    family = make_family(tmp_path, blocks=1)

    def run(*words, name="out"):
        places = ["--source", family.source, "--target", family.target, "-o", str(tmp_path / f"{name}.safetensors")]
        return CliRunner().invoke(shrinking, [family.lora, *places, "--no-cache", "--dtype", "fp32", *words])

    done = run("--method", "shrink", "--share", "0.25", "--json")
    said = json.loads(done.stdout)
    assert done.exit_code == 0 and said["settings"]["share"] == 0.25
    assert {layer["stays"] for layer in said["layers"]} == {0.25}, "a fact of its own needs no field anywhere"
    assert run("--method", "direct", name="whole").exit_code == run("--method", "shrink", name="half").exit_code == 0
    whole = deltas(tmp_path / "whole.safetensors")
    for name, share in (("out", 0.25), ("half", 0.5)):
        moved = deltas(tmp_path / f"{name}.safetensors")
        assert all(torch.allclose(moved[layer], share * whole[layer], rtol=1e-5) for layer in whole)
    assert load_file(tmp_path / "out.safetensors").keys() == load_file(tmp_path / "whole.safetensors").keys()
    for words, message in (
        (["--method", "direct", "--share", "0.25"], "--share is a setting of Shrink and means nothing to 'direct'"),
        (["--method", "shrink", "--share", "2"], "share is 2.0, but it must lie in"),
        (["--method", "shrink", "--tau", "2"], "--tau is a setting of CASA and means nothing to 'shrink'"),
    ):
        assert message in str(run(*words, name="refused").exception)
    text = CliRunner().invoke(shrinking, ["--help"]).stdout
    assert "Shrink:" in text and "Share of the LoRA that stays. [default: 0.5]" in " ".join(text.split())
