"""Write docs/cli.md and docs/library.md from the program itself; `--check` only says whether they are up to date."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import loraport
from loraport.cli import app

DOCS = Path(__file__).parent
NOTE = "<!-- Made by `make docs` from the program; edit the program instead. -->\n"
EXITS = """\
| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a fault of the program, with a traceback: please report it |
| 2 | the input or the usage is wrong: one message, no traceback, nothing written |
| 3 | done, but something in the input was lost without having been asked for; what and why is said |
"""


def commands(command: Any, words: tuple[str, ...] = ("loraport",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, depth first, with the words that call it."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words, command
        return
    for name, child in inner.items():
        yield from commands(child, (*words, name))


def all_commands() -> list[tuple[tuple[str, ...], Any]]:
    """The commands of the program."""
    return list(commands(typer.main.get_command(app)))


def cli_page() -> str:
    """docs/cli.md"""
    sections = "\n".join(_section(words, command) for words, command in all_commands())
    return (
        f"# The commands\n\n{NOTE}\n"
        "Progress and messages go to stderr, results to stdout; with `--json`, stdout holds one JSON object and "
        f"nothing else.\n\n{EXITS}\n{sections}"
    )


def _section(words: tuple[str, ...], command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    shown = [_argument(p) for p in arguments]
    shown += [f"{p.opts[0]} {_metavar(p)}" for p in options if p.required]
    usage = " ".join([*words, *shown, "[OPTIONS]"])
    rows = [f"| `{_cell(_argument(p))}` | {_cell(p.help)} |" for p in arguments]
    rows += [f"| {_spelled(p)} | {_cell(p.help)}{_default(p)} |" for p in options]
    example = (command.epilog or "").removeprefix("Example: ")
    return (
        f"## {' '.join(words)}\n\n{inspect.cleandoc(command.help)}\n\n```\n{usage}\n```\n\n"
        + "\n".join(["| option | meaning |", "|---|---|", *rows])
        + f"\n\nExample:\n\n```\n{example}\n```\n"
    )


def _argument(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _metavar(param: Any) -> str:
    return str(param.metavar or param.name.rstrip("_").upper())


def _spelled(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
    return names if param.is_flag else f"{names} {_metavar(param)}"


def _default(param: Any) -> str:
    shown = isinstance(param.default, str | int | float) and not param.is_flag and param.default is not False
    return f" Default: `{param.default}`." if shown and not param.required else ""


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")


def library_page() -> str:
    """docs/library.md"""
    rows = []
    for name in loraport.__all__:
        value = getattr(loraport, name)
        rows.append(f"| `{name}` | `{value.__module__}` | {_cell(_first_sentence(value))} |")
    table = "\n".join(["| name | home | what it is |", "|---|---|---|", *rows])
    return (
        f"# The library\n\n{NOTE}\n"
        "What `import loraport` offers; each name is loaded when it is first used. Everything else may change between "
        "versions. `examples/one_layer.py` uses them on weights that it makes itself.\n\n"
        f"{table}\n"
    )


def _first_sentence(value: object) -> str:
    text = " ".join(inspect.getdoc(value).split("\n\n")[0].split())  # type: ignore[union-attr]
    return re.split(r"(?<!Eq)\. ", text)[0].rstrip(".") + "."


PAGES = {DOCS / "cli.md": cli_page, DOCS / "library.md": library_page}


def main() -> int:
    """Write the pages, or compare them."""
    stale = [path for path, page in PAGES.items() if not path.is_file() or path.read_text(encoding="utf-8") != page()]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"docs/{path.name} is stale: run `make docs`", file=sys.stderr)
        return bool(stale)
    for path in stale:
        path.write_text(PAGES[path](), encoding="utf-8")
        print(f"docs/{path.name} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
