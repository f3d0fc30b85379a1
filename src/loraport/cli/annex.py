"""Commands that other installed packages add: entry points of the group `loraport.commands`, each a `typer.Typer`."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import typer

from loraport.errors import SettingsError
from loraport.sampling.providers import LAB

GROUP = "loraport.commands"
OF_THE_LAB = ("demo", "lab")
"""Commands of the package loraport-lab: where it is not installed, they say how to get it."""


def add_commands(app: typer.Typer) -> None:
    """Add what is installed; a Typer with a name becomes a group, the commands of one without join the others."""
    added = set()
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            app.add_typer(entry.load())
        except ImportError as error:  # a half-removed package must not take the other commands with it
            print(f"loraport: the command {entry.name} cannot be loaded: {error}", file=sys.stderr)
        added.add(entry.name)
    for name in OF_THE_LAB:
        if name not in added:
            stub = typer.Typer()
            stub.command(name, context_settings=_ANY_ARGUMENTS, help=f"Needs {LAB}.")(_refuse_for(name))
            app.add_typer(stub)


_ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


def _refuse_for(name: str):  # type: ignore[no-untyped-def]  # typer reads the signature
    def refuse() -> None:
        raise SettingsError(f"`loraport {name}` is in {LAB}")

    return refuse
