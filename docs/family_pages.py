"""The pages about families of models, `reference/formats/`, made from tables, records, loaders' rows and presets."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from loraport.files.loaders.facts import Spelling
from loraport.files.loaders.rules import Loader
from loraport.files.loaders.table import LOADERS
from loraport.files.lora.write import FORMATS, output_dialect
from loraport.files.names.dialects import PARAMETER_DIFF, Dialect
from loraport.files.names.families import FAMILIES, Family, Naming, RowSlice
from loraport.files.names.tables.family import Cell
from loraport.files.names.tables.record import FamilyRecord
from loraport.files.presets.preset import AcceleratorPreset, Preset
from loraport.files.presets.table import ACCELERATORS, PRESETS

NOTE = "<!-- Made by `make docs` from the program; edit the program instead. -->"
WIDTH = 120
NAMES: dict[str, str] = {"original": "original", "comfy": "ComfyUI", "fastvideo": "FastVideo", "any": "any"}
"""Namings as people read them, where that is not the word itself."""


def pages(folder: Path) -> dict[Path, Callable[[], str]]:
    """Return every page below a folder and what makes it: one a family, and the list of them."""
    made: dict[Path, Callable[[], str]] = {
        folder / f"{family.name}.md": lambda family=family: family_page(family)  # type: ignore[misc]
        for family in FAMILIES.values()
    }
    return {folder / "index.md": index_page} | made


def index_page() -> str:
    """Return the list of families."""
    rows = [
        (
            f"[{family.record.title}]({family.name}.md)",
            f"`{family.name}`",
            ", ".join(map(_naming, family.namings)),
            "; ".join(size.name for size in family.record.sizes),
        )
        for family in FAMILIES.values()
        if family.record is not None
    ]
    intro = _wrapped(
        "A family is a table of layer names, from which every way between spellings is derived. Each page says which "
        "sizes were checked, how models and LoRAs of the family are spelled, which loaders take them, what is "
        "published under a name of `loraport presets`, and what was never seen. Inside the program, and so for "
        "`--include` and in reports, layers have the names of the first spelling."
    )
    several = _wrapped(
        "Where names fit several tables (the double blocks of both HunyuanVideos and of FLUX, much of both U-Nets), "
        "what else stands in the file decides: the trainer's header, blocks that only one of them has, the shapes of "
        "fused layers, the width, the last block; a guess is said. `proj_out` is a layer of several families; the "
        "other keys of the file tell which. What diffusers' `fuse_qkv_projections` saves (`to_qkv`, `to_kv`, "
        "`to_added_kv`) is "
        "read as the layers in it; beside those layers it is a copy, and is left alone. A layer that no table knows "
        "keeps its name only if both spellings name modules as the same program does; otherwise it is dropped with "
        "the reason (exit code 3), since no loader would know it."
    )
    table = _table(("family", "name", "spellings", "sizes checked against diffusers' class, name by name"), rows)
    links = "\n".join(family.name for family in FAMILIES.values())
    toc = f"```{{toctree}}\n:hidden:\n\n{links}\n```"
    return f"# Families of models\n\n{NOTE}\n\n{intro}\n\n{table}\n{several}\n\n{toc}\n"


def family_page(family: Family) -> str:
    """Return the page about one family."""
    record = family.record
    if record is None:
        raise ValueError(f"{family.name} has no record; give its Family one (files/names/tables/record.py)")
    models = [preset for preset in PRESETS.values() if preset.family == family.name]
    accelerators = [preset for preset in ACCELERATORS.values() if preset.family == family.name]
    parts = [
        f"# {record.title}",
        NOTE,
        _wrapped(record.summary),
        _section("Sizes", _sizes(family, record)),
        _section("Spellings", _spellings(family)),
        _section("LoRAs that are read", _trainers(family, record)),
        _section("LoRAs that are written", _written(family)),
        _section("Loaders", _loaders(family)),
        _section("To know", "\n".join(map(_bullet, record.traps))),
        _section("Presets", _models(models)),
        _section("Accelerators", _accelerators(accelerators)),
        _section("Not verified", "\n".join(map(_bullet, (*record.unverified, *_unverified(models, accelerators))))),
        _section("Sources", "\n".join(map(_bullet, record.sources))),
        _section("All layers", _layers(family)),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _sizes(family: Family, record: FamilyRecord) -> str:
    rows = [
        (size.name, f"{size.parameters:,}", f"{size.tensors:,}", f"`{size.model_class}`" if size.model_class else "")
        for size in record.sizes
    ]
    told = "; ".join(f"{width} and {blocks}: {name}" for (width, blocks), name in family.sizes.items())
    probe = f"`{family.probe.removeprefix('.')}`"
    after = _wrapped(
        f"`inspect` tells the size of a file by the input width of {probe} and by how many blocks have it. {told}."
    )
    table = _table(("model", "parameters", "tensors", "class of diffusers whose tensors all have a name here"), rows)
    return f"{table}\n{after}" if family.sizes else table


def _spellings(family: Family) -> str:
    """Return one layer and its rows in every naming."""
    probe = _probe(family)
    rows = []
    for naming in family.namings:
        held = family.rows(probe, naming)
        rows.append((_naming(naming), "none" if held is None else _rows(held)))
    words = _wrapped(
        f"One layer in each spelling; the first is the program's own. Flattened names (dots as underscores) are those "
        f"of any of these. {_component(family)}"
    )
    return f"{words}\n\n{_table(('spelling', 'a layer'), rows)}"


def _component(family: Family) -> str:
    return f"In a pipeline of diffusers the network is `{family.component}`."


def _probe(family: Family) -> str:
    """Return the layer that shows the spellings: the probe of the first block, as it is written canonically."""
    found = (str(row[0]) for row in family.layers if f".{row[0]}".endswith(family.probe))
    return next(found, str(family.layers[0][0])).replace("{}", "0")


def _trainers(family: Family, record: FamilyRecord) -> str:
    rows = [(one.writers, f"`{one.key}`", one.remark) for one in record.trainers]
    words = _wrapped("As trainers and projects write them. [Every other form that is read](../lora-files.md).")
    table = _table(("by", "a key", "besides"), rows)
    alpha = _wrapped(
        "A number `alpha` in the header of a file counts for every layer where no tensor is an alpha: the scale is "
        "alpha / rank."
    )
    return f"{words}\n\n{table}\n{alpha}" if family.header_alpha else f"{words}\n\n{table}"


def _written(family: Family) -> str:
    """Return what each format writes for a layer, and which loaders it is for."""
    rows = []
    for format in family.written:
        dialect = _dialect(family, format)
        users = dict.fromkeys(
            loader.name for loader in LOADERS if loader.format == format and family.name in loader.spellings
        )
        rows.append((f"`{format}`", f"`{dialect.key(_probe(family), dialect.pair[0])}`", ", ".join(users)))
    words = _wrapped("By `--format` of `transfer` and `--to` of `convert`. [What else is in them](../lora-files.md).")
    return f"{words}\n\n{_table(('format', 'a key', 'the format for'), rows)}"


class _Like:
    """What `output_dialect` looks at of a LoRA: its dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect


def _dialect(family: Family, format: str) -> Dialect:
    like: Any = _Like(Dialect(FORMATS[format].prefix, family.canonical, family=family.name))
    return output_dialect(like, format)


def _loaders(family: Family) -> str:
    rows = [
        (
            loader.name,
            _takes(loader, loader.spellings[family.name]),
            ", ".join(sorted(loader.kinds)),
            _scale(loader),
            ", ".join(map(_ending, sorted(loader.extras))),
            _besides(loader),
            loader.source,
        )
        for loader in LOADERS
        if family.name in loader.spellings
    ]
    head = ("loader", "keys", "adapters", "scale", "beside factors", "besides", "where it was read")
    words = _wrapped(
        "`inspect` judges a file by these rows: what each would leave out or scale wrongly. [How the rules were "
        "checked](../loaders.md)."
    )
    return f"{words}\n\n{_table(head, rows)}"


def _takes(loader: Loader, spellings: Iterable[Spelling]) -> str:
    by_naming: dict[str, list[str]] = {}
    for prefix, naming in sorted(spellings):
        by_naming.setdefault(naming, []).append(f"`{prefix}`" if prefix else "no prefix")
    return "; ".join(f"{_naming(naming)} names behind {' or '.join(some)}" for naming, some in by_naming.items())


def _scale(loader: Loader) -> str:
    words = [f"`{ending}`" for ending in sorted(loader.alphas)]
    words += ["needs it in every layer"] if loader.needs_alpha else []
    words += ["PEFT's configuration" if loader.folder else "PEFT's configuration in the header"] * loader.header
    words += ["a number `alpha` in the header"] * loader.network_alpha
    return ", ".join(words) or "none"


def _besides(loader: Loader) -> str:
    words = [loader.remark] if loader.remark else []
    words += [f"in {', '.join(f'`{start}`' for start in loader.inside)} only"] if loader.inside else []
    words += [] if loader.convolutions else ["no convolutions"]
    words += ["the complete file only: every layer of every block"] if loader.complete_kohya else []
    words += ["attention in the spelling of old processors only"] if loader.processors else []
    words += ["a folder"] if loader.folder else []
    words += [loader.mixed_ranks] if loader.mixed_ranks else []
    return "; ".join((*words, *loader.more))


def _ending(part: str) -> str:
    return "`.diff` of a parameter's full name" if part == PARAMETER_DIFF else f"`{part}`"


def _models(models: Iterable[Preset]) -> str:
    rows = [
        (
            f"`{one.name}`",
            f"`{one.where}`",
            f"`{one.base}`" if one.base else "",
            f"{one.gigabytes:g}" if one.gigabytes else "",
            one.notes,
        )
        for one in models
    ]
    return _table(("name", "where", "distilled from", "GB", "notes"), rows) if rows else ""


def _accelerators(accelerators: Iterable[AcceleratorPreset]) -> str:
    rows = [
        (
            f"`{one.name}`",
            ", ".join(f"`{place}` at {strength:g}" for place, strength in one.files),
            ", ".join(f"`{name}`" for name in one.models),
            str(one.steps or ""),
            "" if one.guidance is None else f"{one.guidance:g}",
            one.notes,
        )
        for one in accelerators
    ]
    if not rows:
        return ""
    words = _wrapped("`--target MODEL+NAME` takes one at its strength, `MODEL+NAME*0.8` at another.")
    return f"{words}\n\n{_table(('name', 'where', 'for', 'steps', 'guidance', 'notes'), rows)}"


def _unverified(*groups: Iterable[Preset | AcceleratorPreset]) -> Iterator[str]:
    """Yield what is not verified of presets, once for all that it is the same for."""
    by_text: dict[str, list[str]] = {}
    for one in itertools.chain(*groups):
        by_text.setdefault(one.unverified, []).append(f"`{one.name}`")
    by_text.pop("", None)
    yield from (f"{', '.join(names)}: {text}" for text, names in by_text.items())


def _layers(family: Family) -> str:
    """Return the whole table: every layer, then the parameters that belong to none."""
    head = [_naming(naming) for naming in family.namings]
    rows = [
        [_cell(family, number, row) for number in range(len(family.namings))]
        for table in (family.layers, family.parameters)
        for row in table
    ]
    words = _wrapped("`{}` stands for a number. Empty: that spelling has no such layer.")
    return f"{words}\n\n{_table(head, rows)}"


def _cell(family: Family, number: int, row: tuple[Cell, ...]) -> str:
    cell = family.together.get(str(row[0]), row[0]) if number == 0 else row[number]
    return "" if cell is None else _rows(cell if isinstance(cell, RowSlice) else RowSlice(cell))


def _rows(held: RowSlice) -> str:
    name = f"`{held.name}`"
    if held.swapped:
        return f"{name}, halves exchanged"
    if held.of > 1:
        last = held.part + held.span
        parts = str(held.part + 1) if held.span == 1 else f"{held.part + 1} to {last}"
        return f"{name}, part{'s' if held.span > 1 else ''} {parts} of {held.of}"
    return name


def _naming(naming: Naming | str) -> str:
    return NAMES.get(naming, naming)


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body.strip() else ""


def _bullet(text: str) -> str:
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        initial_indent="- ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
