"""`convert`, `merge`, `inspect` and `presets`: what is done with files alone, or with names."""

from __future__ import annotations

from typing import Annotated

import typer

from loraport.cli.options import FILES, MODEL_FORMS, OUTPUT, Lora, LoraPart, MessageOptions, Output, Overwrite, Part
from loraport.cli.options.completion import complete_model
from loraport.cli.options.existing import keep_existing
from loraport.cli.options.expansion import with_options
from loraport.cli.options.help import GroupedCommand
from loraport.cli.options.readable import refuse_unreadable
from loraport.errors import LOST
from loraport.sampling.providers import known_place

app = typer.Typer()

TrainedOn = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The model that the LoRA was trained on; a DoRA, PiSSA or OLoRA needs it, and mostly so does --target.",
        rich_help_panel=FILES,
    ),
]
ToFit = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The model that it is to fit, where that stores layers in another form: a pruned MiniMax-H3, or the full "
        "one.",
        rich_help_panel=FILES,
    ),
]
RowLayout = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LAYOUT",
        help="How the rows of fused q, k and v lie, where names do not tell (MiniMax-H3): stacked or interleaved; of "
        "one file with lora= or (merge) model= before it.",
        show_default="as the files tell",
        rich_help_panel=FILES,
    ),
]


@app.command(
    cls=GroupedCommand, epilog="Example: loraport convert style.safetensors --to comfy -o style-comfy.safetensors"
)
@with_options
def convert(
    lora: Lora,
    to: Annotated[
        str,
        typer.Option(metavar="FORMAT", help="comfy, diffusers, peft, kohya or tencent.", rich_help_panel=OUTPUT),
    ],
    output: Output,
    messages: MessageOptions,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE", help="fp32, bf16 or fp16.", show_default="the input's own", rich_help_panel=OUTPUT
        ),
    ] = None,
    rank: Annotated[
        str,
        typer.Option(
            metavar="RANK",
            help="auto (exact, LoHa and the like up to 128), full, a number, or a share of energy.",
            rich_help_panel=OUTPUT,
        ),
    ] = "auto",
    source: TrainedOn = None,
    target: ToFit = None,
    qkv: RowLayout = None,
    lora_part: LoraPart = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a LoRA in another dialect: the same updates, with alpha inside the factors."""
    lora, source, target = known_place(lora), source and known_place(source), target and known_place(target)
    refuse_unreadable([lora], [source, target])
    keep_existing([output], [lora, source, target], overwrite)
    from loraport import console
    from loraport.conversion import convert as run

    with messages.terminal() as terminal:
        result = run(
            lora, to, output, dtype=dtype, rank=rank, source=source, target=target, lora_part=lora_part, qkv=qkv or (),
            each=terminal.detail,
        )  # fmt: skip
    console.print_outcome(
        result.as_json(),
        console.conversion_words(result),
        json=messages.json,
        quiet=messages.quiet,
        verbose=messages.verbose,
    )
    raise typer.Exit(LOST if result.lost else 0)


@app.command(
    cls=GroupedCommand, epilog="Example: loraport merge fastwan/ 'style-fastwan.safetensors*0.8' -o fastwan-style/"
)
@with_options
def merge(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"The checkpoint: {MODEL_FORMS}.", rich_help_panel=FILES)
    ],
    loras: Annotated[
        list[str],
        typer.Argument(
            metavar="LORA...",
            rich_help_panel=FILES,
            help="LoRAs of this model, or accelerators from `loraport presets`; 'LORA*0.8' (quoted) sets a strength.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="A .safetensors file; a folder where MODEL is one.",
            rich_help_panel=OUTPUT,
        ),
    ],
    messages: MessageOptions,
    part: Part = None,
    lora_part: LoraPart = None,
    qkv: RowLayout = None,
    overwrite: Overwrite = False,
) -> None:
    """Bake LoRAs into a checkpoint: same names, dtypes, shards and index, for inference code that loads no LoRA."""
    from loraport.files.accelerator_names import files_of
    from loraport.files.strength import split_strength

    loras = [file for text in loras for file in files_of(text, model)]
    model, adapters = known_place(model), [split_strength(text)[0] for text in loras]
    loras = [text.replace(name, known_place(name), 1) for text, name in zip(loras, adapters, strict=True)]
    refuse_unreadable(map(known_place, adapters), [model])
    keep_existing([output], [model, *map(known_place, adapters)], overwrite, holding="*.safetensors")
    from loraport import console
    from loraport.merging import merge as run

    with messages.terminal() as terminal:
        result = run(model, loras, output, part=part, lora_part=lora_part, qkv=qkv or (), progress=terminal)
    console.print_outcome(
        result.as_json(),
        console.merge_words(result),
        json=messages.json,
        quiet=messages.quiet,
        verbose=messages.verbose,
    )
    raise typer.Exit(LOST if result.lost else 0)


@app.command(cls=GroupedCommand, epilog="Example: loraport inspect style.safetensors")
@with_options
def inspect(
    place: Annotated[
        str,
        typer.Argument(metavar="FILE|MODEL", help="A LoRA or a model, as transfer takes them.", rich_help_panel=FILES),
    ],
    messages: MessageOptions,
    part: Part = None,
    lora_part: LoraPart = None,
) -> None:
    """Say what a file is: family, dialect, layers, ranks, where its alpha was found, and which loaders take it."""
    from loraport import console
    from loraport.files.accelerator_names import file_of
    from loraport.files.inspect import describe, summary_lines
    from loraport.files.models.presets import location

    with messages.terminal() as terminal:
        facts = describe(location(known_place(file_of(place))), part=part, lora_part=lora_part, each=terminal.detail)
    console.print_facts(facts if messages.json else summary_lines(facts), json=messages.json)


@app.command(cls=GroupedCommand, epilog="Example: loraport presets wan2.1-t2v-1.3b")
@with_options
def presets(
    messages: MessageOptions,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME...]",
            help="Names, for all that is known of each; without one, a table of all.",
            show_default=False,
            rich_help_panel=FILES,
            autocompletion=complete_model,
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(metavar="FAMILY", help="Only the models of a family, such as wan.", rich_help_panel=FILES),
    ] = None,
) -> None:
    """List what is known by name: models with what they were distilled from, accelerators with their strengths.

    Where each is on the Hub, and what of it is not verified, is said of those that are named.
    """
    from loraport import console
    from loraport.files.models import presets as known

    models = known.chosen_presets(names or (), family)
    accelerators = known.chosen_accelerators(names or (), family)
    if messages.json:
        rows = {"presets": [one.as_json() for one in models], "accelerators": [one.as_json() for one in accelerators]}
        console.print_facts(rows, json=True)
    elif names or messages.verbose:
        words = {one.name: one.words() for one in models} | {one.name: one.words() for one in accelerators}
        console.print_facts(words, json=False)
    else:
        beside = known.accelerator_tables(accelerators)
        for number, (title, table) in enumerate(known.preset_tables(models).items()):
            console.say_line(f"{chr(10) * bool(number)}{title}")
            console.say_table(table)
            if title in beside:
                console.say_line("")
                console.say_table(beside[title])
        console.say_line("\n* something of it is not verified: `loraport presets NAME` says what, and where it lies")
