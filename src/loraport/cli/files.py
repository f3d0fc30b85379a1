"""`convert`, `merge` and `inspect`: what is done with files alone."""

from __future__ import annotations

from typing import Annotated

import typer

from loraport.cli.existing import keep_existing
from loraport.cli.options import (
    MODEL_FORMS,
    Json,
    Lora,
    LoraPart,
    Output,
    Overwrite,
    Part,
    Quiet,
    Verbose,
)

app = typer.Typer()


@app.command(epilog="Example: loraport convert style.safetensors --to comfy -o style-comfy.safetensors")
def convert(
    lora: Lora,
    to: Annotated[str, typer.Option(metavar="FORMAT", help="comfy, diffusers, peft, kohya or tencent.")],
    output: Output,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; the input's own by default.")] = None,
    rank: Annotated[
        str, typer.Option(help="auto (exact, LoHa and the like up to 128), full, a number, or a share of energy.")
    ] = "auto",
    source: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model that a DoRA, PiSSA or OLoRA was trained on; only these need it."),
    ] = None,
    lora_part: LoraPart = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a LoRA in another dialect: the same updates, with alpha inside the factors."""
    keep_existing([output], [lora, source], overwrite)
    from loraport import console
    from loraport.convert import convert as run

    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        result = run(lora, to, output, dtype=dtype, rank=rank, source=source, lora_part=lora_part, each=terminal.detail)
    console.print_outcome(result.as_json(), console.conversion_words(result), json=json, quiet=quiet, verbose=verbose)
    raise typer.Exit(3 if result.lost else 0)


@app.command(epilog="Example: loraport merge fastwan/ 'style-fastwan.safetensors*0.8' -o fastwan-style/")
def merge(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"The checkpoint: {MODEL_FORMS}.")],
    loras: Annotated[
        list[str], typer.Argument(metavar="LORA...", help="LoRAs of this model; 'LORA*0.8' (quoted) sets a strength.")
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="OUT", help="A .safetensors file; a folder where MODEL is one.")
    ],
    part: Part = None,
    lora_part: LoraPart = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Bake LoRAs into a checkpoint: same names, dtypes, shards and index, for inference code that loads no LoRA."""
    from loraport.files.additions import with_strength

    adapters = [with_strength(text)[0] for text in loras]
    keep_existing([output], [model, *adapters], overwrite, holding="*.safetensors")
    from loraport import console
    from loraport.merge import merge as run

    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        result = run(model, loras, output, part=part, lora_part=lora_part, progress=terminal)
    console.print_outcome(result.as_json(), console.merge_words(result), json=json, quiet=quiet, verbose=verbose)
    raise typer.Exit(3 if result.lost else 0)


@app.command(epilog="Example: loraport inspect style.safetensors")
def inspect(
    place: Annotated[str, typer.Argument(metavar="FILE|MODEL", help="A LoRA or a model, as transfer takes them.")],
    part: Part = None,
    lora_part: LoraPart = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what a file is: family, dialect, layers, ranks, where its alpha was found, and which loaders take it."""
    from loraport import console
    from loraport.files.inspect import describe, in_ten_lines
    from loraport.files.models.presets import location as known_place

    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        facts = describe(known_place(place), part=part, lora_part=lora_part, each=terminal.detail)
    console.print_facts(facts if json else in_ten_lines(facts), json=json)
