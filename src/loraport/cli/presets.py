"""`presets`."""

from __future__ import annotations

import typer

from loraport.cli.options import Json, Quiet, Verbose

app = typer.Typer()


@app.command(epilog="Example: loraport presets --json")
def presets(json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Models by name: where on the Hub each lies, what it was distilled from, and what nobody has verified."""
    from loraport import console
    from loraport.files.models.presets import PRESETS

    if json:
        console.print_facts({"presets": [preset.as_json() for preset in PRESETS.values()]}, json=True)
    else:
        console.print_facts({name: preset.words() for name, preset in PRESETS.items()}, json=False)
