"""How `--help` looks: options and commands under headings, every default shown, nothing cut at the end of a line."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, ClassVar

from typer.core import TyperCommand, TyperGroup

MESSAGES = "Messages"
_WHOLE = "\u2011"
"""Stands for a hyphen while lines are broken, so that option and model names stay in one piece."""


class GroupedCommand(TyperCommand):
    """A command whose options stand under the headings that they name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as usual; an unknown option names only those that it may be a slip of."""
        try:
            return list(super().parse_args(ctx, args))
        except Exception as error:
            if possible := getattr(error, "possibilities", None):
                error.possibilities = get_close_matches(error.option_name, possible, 3, 0.75)  # type: ignore[attr-defined]
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write everything, with hyphens back in place."""
        super().format_help(ctx, formatter)
        formatter.buffer = [text.replace(_WHOLE, "-") for text in formatter.buffer]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example."""
        _write_example(self.epilog, formatter)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return arguments as they are typed, and then that there are options."""
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return [*(_spelled(param, ctx) for param in arguments), "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, heading by heading, in the order in which these first appear."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in sorted(self.get_params(ctx), key=lambda param: param.param_type_name != "argument"):
            if not getattr(param, "hidden", False):
                heading = getattr(param, "rich_help_panel", None) or MESSAGES
                sections.setdefault(heading, []).append((_spelled(param, ctx), _explained(param)))
        if MESSAGES in sections:
            sections[MESSAGES] = sections.pop(MESSAGES)  # at the end
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows, col_max=26)


class GroupedCommands(TyperGroup):
    """A group whose commands stand under headings, each with the whole first paragraph of its help."""

    headings: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Heading -> the commands under it, in this order; others stand at the end."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write everything, with hyphens back in place."""
        super().format_help(ctx, formatter)
        formatter.buffer = [text.replace(_WHOLE, "-") for text in formatter.buffer]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example."""
        _write_example(self.epilog, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, heading by heading."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        texts = {name: _paragraph(one.help or "") for name, one in commands.items() if one and not one.hidden}
        placed = {name for names in self.headings.values() for name in names}
        sections = {**self.headings, "Commands": tuple(name for name in texts if name not in placed)}
        width = max(map(len, texts), default=0)
        for heading, names in sections.items():
            if rows := [(f"{name:<{width}}", texts[name]) for name in names if name in texts]:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def _write_example(text: str | None, formatter: Any) -> None:
    if text:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(text.replace("-", _WHOLE))


def _spelled(param: Any, ctx: Any) -> str:
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    names = ", ".join(sorted(param.opts, key=lambda name: name.startswith("--")))
    if param.secondary_opts:
        names += f" / {', '.join(param.secondary_opts)}"
    return names if param.is_flag else f"{names} {param.metavar or param.name.rstrip('_').upper()}"


def _explained(param: Any) -> str:
    """Return the help of an option, and in brackets its default or that it is required."""
    note = "required" if param.required else default_text(param)
    return f"{param.help or ''}{f' [{note}]' if note else ''}".replace("-", _WHOLE)


def default_text(param: Any) -> str:
    """Return `default: VALUE` for an option that has one to show, else an empty text."""
    if isinstance(param.show_default, str):
        return f"default: {param.show_default}"
    switched_on = isinstance(param.default, bool) and param.secondary_opts
    if switched_on:
        return f"default: {(param.opts if param.default else param.secondary_opts)[0]}"
    plain = isinstance(param.default, str | int | float) and not isinstance(param.default, bool)
    return f"default: {param.default}" if plain and param.show_default else ""


def _paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())
