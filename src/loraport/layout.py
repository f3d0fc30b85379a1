"""How text stands in a terminal: its width, hanging indents, tables, and colours where they can be shown.

What goes into a pipe or a file has no width and no colours: a line there is a line of the program's.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

NARROW = 20
"""Columns that text needs beside a label; with less it stands below."""
_STYLES = {"error": "1;31", "warning": "33", "label": "36", "heading": "1"}


def width_of(stream: Any) -> int | None:
    """Return the columns of the terminal behind a stream; None for a pipe or a file."""
    return max(20, shutil.get_terminal_size().columns) if _is_terminal(stream) else None


def styled(text: str, style: str, stream: Any) -> str:
    """Return text in a colour, where the stream is a terminal that has them and nobody asked for none (NO_COLOR)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "") in ("dumb", "unknown") or not _is_terminal(stream)
    return text if plain or not text else f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def wrapped(text: str, width: int | None, indent: int = 0) -> list[str]:
    """Return the lines of a text that begins at a column: words whole, lines after the first indented."""
    hang = " " * indent
    lines: list[str] = []
    for line in text.splitlines() or [""]:
        if width is None or indent + len(line) <= width:
            lines.append(line)
            continue
        own = hang + " " * (len(line) - len(line.lstrip(" ")))
        whole = line.strip().replace(" %", "\N{NO-BREAK SPACE}%")  # a number and its percent sign
        parts = textwrap.wrap(whole, max(width - len(own), NARROW), break_long_words=False, break_on_hyphens=False)
        lines += [(own + part).removeprefix(hang).replace("\N{NO-BREAK SPACE}%", " %") for part in parts]
    return [lines[0], *(hang + line for line in lines[1:])]


def facts_lines(facts: Mapping[str, str], width: int | None) -> list[tuple[str, str]]:
    """Return names and values as lines: a label of one width (or blanks), and text; in a narrow terminal the text
    stands below its label.
    """
    column = max(map(len, facts), default=0) + 2
    below = width is not None and width - column < max(NARROW, width // 2)
    lines = []
    for name, text in facts.items():
        first, *more = wrapped(text, width, 2 if below else column)
        if below:
            lines += [(name, ""), ("", f"  {first}")] if name else [("", f"  {first}")]
        else:
            lines.append((f"{name:<{column}}", first))
        lines += [("", line) for line in more]
    return lines


def table_lines(rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Return a table, its headings in the first row; numbers on the right. Where it is too wide, the first cell of each
    row stands above the others, or above a list of them.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        if sum(widths[1:]) + 2 * (len(widths) - 1) > width:
            return _stacked(rows, width)
        below = table_lines([row[1:] for row in rows], None)
        return [line for row, rest in zip(rows, below, strict=True) for line in (*wrapped(row[0], width), f"  {rest}")]
    right = [all(_is_number(cell) for cell in column[1:]) and any(column[1:]) for column in columns]
    return [
        "  ".join(
            cell.rjust(wide) if is_right else cell.ljust(wide)
            for cell, wide, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]


def _stacked(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    heads, *rest = rows
    lines = []
    for first, *cells in rest:
        lines += wrapped(first, width, 0)
        for head, cell in zip(heads[1:], cells, strict=True):
            if cell:
                lines += wrapped(f"  {head}: {cell}" if head else f"  {cell}", width, 4)
    return lines


def _is_number(cell: str) -> bool:
    return not cell or cell in ("–", "none") or cell.lstrip("+-−~≤")[:1].isdigit()


def _is_terminal(stream: Any) -> bool:
    is_terminal = getattr(stream, "isatty", None)
    return bool(is_terminal and is_terminal())
