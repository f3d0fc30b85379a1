"""Commands that other installed packages add: entry points of the group `loraport.commands`, each a `typer.Typer`.

A package that is missing or broken costs its own commands alone: they stay in the list and say what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

import typer

from loraport.errors import SettingsError
from loraport.sampling.providers import LAB, load

GROUP = "loraport.commands"
LAB_COMMANDS = ("demo", "lab")
"""Commands of the package loraport-lab: where it is not installed, they say how to get it."""


def add_commands(app: typer.Typer) -> None:
    """Add what is installed; a Typer with a name becomes a group, the commands of one without join the others."""
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    for name in sorted({*installed, *LAB_COMMANDS}):
        if name not in installed:
            app.add_typer(_refusing(name, f"`loraport {name}` is in {LAB}", f"Needs {LAB}."))
            continue
        try:
            app.add_typer(load(installed[name]))
        except SettingsError as error:
            app.add_typer(_refusing(name, f"`loraport {name}` {error}", "Cannot be loaded; call it to see why."))


def _refusing(name: str, reason: str, summary: str) -> typer.Typer:
    """Return a command that takes any arguments and says why it does nothing."""
    refusing = typer.Typer()
    anything = {"allow_extra_args": True, "ignore_unknown_options": True}
    refusing.command(name, context_settings=anything, help=summary)(_refuse(reason))
    return refusing


def _refuse(reason: str) -> Callable[[], None]:
    def refuse() -> None:
        raise SettingsError(reason)

    return refuse
