"""The commands: parse, call, print. Heavy modules are imported by the command that needs them, so help is quick."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, ClassVar, NoReturn

import typer

from loraport._version import __version__
from loraport.cli.annex import add_commands
from loraport.cli.commands import (
    analyze,
    batch,
    cache,
    choose,
    compare,
    diagnose,
    evaluate,
    files,
    probe,
    push,
    score,
    transfer,
)
from loraport.cli.commands import app as web_page
from loraport.cli.options.help import GroupedCommands
from loraport.cli.stopping import Stopped, in_one_sentence, listening
from loraport.errors import TO_FETCH, LoraportError, MissingError
from loraport.layout import styled, width_of, wrapped
from loraport.printable import printable, protect, raw_stream


class Program(GroupedCommands):
    """The program's commands under their headings."""

    headings: ClassVar[dict[str, tuple[str, ...]]] = {
        "Start here": ("inspect", "diagnose", "transfer"),
        "Many at once": ("batch", "status", "gather"),
        "Judge by sampling": ("compare", "evaluate", "choose", "score", "calibrate"),
        "Look into the weights": ("analyze", "probe"),
        "Files and models": ("convert", "merge", "presets", "cache", "push"),
        "In a browser": ("app",),
        "Embedded family (package loraport-lab)": ("demo", "lab"),
    }


app = typer.Typer(
    cls=Program,
    help="Move a LoRA from a base diffusion model to its distilled variants, without data and without training.\n\n"
    "Start with inspect, then diagnose and transfer; each command has --help with an example.",
    epilog="Example: loraport transfer style.safetensors --source wan2.1-t2v-1.3b --target fastwan2.1-t2v-1.3b "
    "-o style-fastwan.safetensors",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (transfer, batch, diagnose, compare, choose, score, evaluate, analyze, files, push, web_page):
    app.add_typer(group.app)
app.add_typer(probe.app, name="probe")
app.add_typer(cache.app, name="cache")
add_commands(app)


@app.callback(invoke_without_command=True)
def version_option(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    """Options of the program itself."""
    if version:
        typer.echo(f"loraport {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> NoReturn:
    """Run the command line: exit 0 done, 1 our failure, 2 the user's input, 3 done but something was lost, 4 something
    has to be fetched first.

    Stopped by a signal, it leaves with 128 and the signal's number: 130 after Ctrl-C, 143 after a plain kill.
    """
    protect()
    try:
        os.getcwd()
    except OSError:  # libraries would end the process without a helpful message
        leave(2, "the working folder has been removed; change to one that is there, and give the command again")
    try:
        with listening():
            app()
    except LoraportError as error:
        leave(TO_FETCH if isinstance(error, MissingError) else 2, str(error))
    except OSError as error:  # the system refuses: no permission, no such drive, too many open files
        leave(2, in_one_sentence(error))
    except Stopped as stopped:
        leave(128 + stopped.signal, str(stopped))
    except Exception:
        leave_as_fault()
    sys.exit(0)


def leave_as_fault() -> NoReturn:
    """Show the traceback of the error at hand and leave: the fault is the program's."""
    traceback.print_exc()
    leave(1, "this is a fault of the program; please report the lines above")


def leave(code: int, text: str) -> NoReturn:
    """Say why on stderr, and exit."""
    stream = raw_stream(sys.stderr)
    first, *more = wrapped(f"loraport: {printable(text)}", width_of(stream), 2)
    for line in (styled("loraport:", "error", stream) + first.removeprefix("loraport:"), *more):
        stream.write(line + "\n")
    stream.flush()
    sys.exit(code)
