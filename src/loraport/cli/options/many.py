"""The options of many transfers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer


@dataclass(frozen=True)
class ManyOptions:
    """What only matters where several LoRAs or methods go into one folder."""

    heading: ClassVar[str] = "Many at once"
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going", help="Do all that can be done, and list at the end what could not, each with its reason."
        ),
    ] = False
    name: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help="Names of the outputs below OUT, of {folder}, {name}, {method}, {source} and {target}.",
            show_default="{folder}/{name}-{method}",
        ),
    ] = None
    table: Annotated[
        str | None, typer.Option(metavar="OUT.csv", help="Also write a table with a row for every transfer.")
    ] = None
    events: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Append an event a line, as JSON, when a transfer is planned, started, finished or has failed.",
        ),
    ] = None

    @property
    def typed(self) -> bool:
        """Whether any of them was given."""
        return self.keep_going or any(one is not None for one in (self.name, self.table, self.events))
