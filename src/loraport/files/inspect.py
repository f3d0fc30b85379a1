"""Describe a LoRA or a model in a few facts, for `loraport inspect`."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from loraport.errors import InputError, SettingsError
from loraport.files.adapters.outline import Outline
from loraport.files.adapters.peft_fields import CONFIG_NAME, WEIGHTS_NAME
from loraport.files.disk.user_paths import expand_home
from loraport.files.formats.safetensors_read import read_safetensors
from loraport.files.loaders.facts import facts_of
from loraport.files.loaders.how_to_load import ToLoad, how_to_load
from loraport.files.loaders.table import verdicts
from loraport.files.lora.header import lasting_fields, shown_fields
from loraport.files.lora.locate import local_lora, lora_keys
from loraport.files.lora.provenance import (
    accelerators_of,
    loading_hint,
    made_on,
    merged_loras,
    moved_words,
    provenance_facts,
    step_words,
    transfer_steps,
)
from loraport.files.lora.read import Lora, read_lora
from loraport.files.models.checkpoint import Checkpoint, open_checkpoint
from loraport.files.models.locate import find_files
from loraport.files.models.named_places import known_place
from loraport.files.models.shards import SAFETENSORS
from loraport.files.names.clip import encoder_of
from loraport.files.names.dialects import WHOLE, are_of_lora
from loraport.files.names.families import FAMILIES, Family


def inspect(place: str | os.PathLike[str], *, part: str | None = None, lora_part: str | None = None) -> dict[str, Any]:
    """Return what a file, a folder or a Hub id holds: a LoRA or a model, its layers, ranks, scales, where it loads, and
    what it went through. It is the object of `loraport inspect --json`; headers are read, and no PyTorch is loaded.

        facts = loraport.inspect("style.safetensors")
        print(facts["layers"], [row["loader"] for row in facts["loaders"] if row["takes"] == "yes"])

    `part` is that of `open_checkpoint`, `lora_part` that of `read_lora`. A valid file of an unsupported kind has the
    reason under `refused`. Raises FileFormatError for damaged files and InputError for what does not exist.
    """
    return describe(known_place(os.fspath(place)), part=part, lora_part=lora_part)


def describe(
    place: str, *, part: str | None = None, lora_part: str | None = None, each: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Return facts about a LoRA or a model; a valid file of an unsupported kind has the reason under `refused`.

    `part` is that of `open_checkpoint`, `lora_part` that of `read_lora`; `each` gets a line a layer or tensor.
    Raises FileFormatError for damaged files and InputError for what does not exist.
    """
    place = _fetched(place)
    if part is not None or not looks_like_lora(place):
        if lora_part is not None:
            raise SettingsError(f"{place} is not a LoRA, so it has no part {lora_part!r}; leave out --lora-part")
        model = open_checkpoint(place, part=part)
        _call_each(each, tensor_lines(model))
        return describe_model(model)
    try:
        lora = read_lora(place, dense=True, part=lora_part, outlines=True)
        _call_each(each, layer_lines(lora))
        return describe_lora(lora)
    except InputError as error:
        return {"kind": "LoRA", "file": place, "tensors": len(lora_keys(place)), "refused": str(error)}


def layer_lines(lora: Lora) -> Iterator[str]:
    """Yield a line a layer: shape, rank, scale and where that came from."""
    for name, layer in lora.layers.items():
        yield f"{name}: {_words(layer.outline)}, scale {layer.scale:g} ({layer.scale_source})"
    for name, layer in lora.encoders.items():
        yield f"{name}: {_words(layer.outline)}"


def _words(outline: Outline) -> str:
    return f"{outline.kind}, {outline.shape[0]} × {outline.shape[1]}, rank {outline.rank}"


def tensor_lines(model: Checkpoint) -> Iterator[str]:
    """Yield a line a tensor: shape and dtype."""
    for name in model:
        yield f"{name}: {' × '.join(map(str, model.shape(name)))}, {model.format(name)}"


def looks_like_lora(place: str) -> bool:
    """Return whether a path is a PEFT folder, or a file or a folder with one whose keys are a LoRA's."""
    path = expand_home(place)
    if path.is_dir() and ((path / CONFIG_NAME).is_file() or (path / WEIGHTS_NAME).is_file()):
        return True
    try:
        return path.exists() and are_of_lora(lora_keys(path))
    except InputError:  # said when it is opened, as what else it may be
        return False


def _call_each(each: Callable[[str], None] | None, lines: Iterable[str]) -> None:
    if each is not None:
        for line in lines:
            each(line)


def _fetched(place: str) -> str:
    """Return the cached file of a LoRA on the Hub; every other place as it is."""
    from loraport.files.models.hub import fetch, looks_like_hub_id

    if expand_home(place).exists() or not looks_like_hub_id(place):
        return place
    files = find_files(fetch(place)).paths
    return str(local_lora(place)) if len(files) == 1 and looks_like_lora(str(files[0])) else place


def describe_lora(lora: Lora) -> dict[str, Any]:
    """Return facts about a LoRA; of a file without factors the layers are those of its full differences."""
    outlines = {name: layer.outline for name, layer in lora.layers.items()}
    shapes = {name: one.shape for name, one in outlines.items()} or _differences(lora)
    kinds = Counter(one.kind for one in outlines.values()) or Counter(["difference"] * len(shapes))
    family = FAMILIES.get(lora.dialect.family or "")
    known = sum(family.rows(name, family.canonical) is not None for name in shapes) if family else 0
    width, _ = _size(shapes, family)
    return {
        "kind": "LoRA" if lora.layers or lora.encoders else "LoRA of full differences",
        "file": str(lora.path),
        "family": f"{_family(family, known, len(shapes))}{f', width {width}' if width else ''}",
        "dialect": f"{lora.dialect.label}, keys like {_first_key(lora)}",
        "layers": len(shapes),
        "kinds": _counts(kinds),
        "ranks": _counts(Counter(one.rank for one in outlines.values())),
        "scale": _counts(Counter(f"{layer.scale:g}" for layer in lora.layers.values())),
        "alpha": _counts(Counter(layer.scale_source for layer in lora.layers.values())),
        "dtypes": ", ".join(lora.kinds or sorted({one.kind for one in lora.extras.values()})),
        "notes": list(lora.notes),
        "encoders": _counts(Counter(encoder_of(name) for name in lora.encoders)),
        "copied": len(lora.extras),
        "whole weights": sorted(one.key for one in map(lora.parse, lora.extras) if one.part in WHOLE),
        "transfers": [step_words(step) for step in transfer_steps(lora.metadata)],
        "moved": _moved(lora),
        "made": provenance_facts(lora.metadata),
        "load": loading_hint(lora.metadata),
        "words": shown_fields(lora.metadata),
        "header": lasting_fields(lora.metadata),
        "dropped": [f"{key}: {reason}" for key, reason in lora.dropped],
        "sha256": lora.sha256,
        "loaders": _loaders(lora),
    }


def _moved(lora: Lora) -> list[str]:
    """Return a phrase for each transfer behind a LoRA, and one for the format that it was written in afterwards."""
    steps = [moved_words(step) for step in transfer_steps(lora.metadata)]
    own = provenance_facts(lora.metadata)
    if "converted" in own:
        steps.append(f"written in another format from {own['converted']}")
    if steps:
        steps[-1] += f" on {made_on(lora.metadata) or _file_date(lora.path)}"
    return steps


def _file_date(path: Path) -> str:
    """Return the day on which a file was last written, as the file system has it: no file says it itself."""
    file = path / WEIGHTS_NAME if (path / WEIGHTS_NAME).is_file() else path
    return time.strftime("%Y-%m-%d (by the file's date)", time.localtime(file.stat().st_mtime))


def _first_key(lora: Lora) -> str:
    """Return a key of a layer, else one of what is beside the layers."""
    return next((layer.keys[0] for layer in lora.layers.values()), next(iter(lora.extras), ""))


def _differences(lora: Lora) -> dict[str, tuple[int, int]]:
    """Return layer -> size of the matrices among a LoRA's full differences."""
    matrices = ((lora.parse(key), tensor) for key, tensor in lora.extras.items() if len(tensor.shape) > 1)
    return {
        key.layer: (tensor.shape[0], prod(tensor.shape[1:]))
        for key, tensor in matrices
        if key.part == ".diff" and not key.text_encoder and not key.bare
    }


def _loaders(lora: Lora) -> list[dict[str, Any]]:
    """Return a row for each loader; none where the names belong to no known family."""
    facts = facts_of(lora)
    if facts is None:
        return []
    one = ToLoad(str(lora.path), facts.family, accelerators_of(lora.metadata))
    return [
        asdict(row) | {"how": how_to_load(row.loader, one) if row.takes != "no" else None} for row in verdicts(facts)
    ]


def summary_lines(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a LoRA for people: what it is, where its alpha came from, who takes it; others unchanged."""
    if "loaders" not in facts:
        return {name: value for name, value in facts.items() if name not in ("other networks", "merged") or value}
    by_verdict = {name: [one for one in facts["loaders"] if one["takes"] == name] for name in ("yes", "partly", "no")}
    scale = facts["scale"]
    shown = " or ".join(scale) if len(scale) <= 3 else f"{min(scale, key=float)} to {max(scale, key=float)}"
    kinds, ranks = ", ".join(facts["kinds"]), ", ".join(facts["ranks"])
    lines = {
        "file": f"{facts['file']} ({facts['kind']}, {facts['dtypes']})",
        "family": facts["family"],
        "dialect": facts["dialect"],
        "layers": (f"{facts['layers']} ({kinds})" if facts["layers"] else "none of a network")
        + (f", rank {ranks}" if ranks else ""),
        **({"scale": f"{shown} ({', '.join(facts['alpha'])})"} if scale else {}),
        **({"text encoders": _of_encoders(facts["encoders"])} if facts["encoders"] else {}),
        **({"note": facts["notes"]} if facts["notes"] else {}),
        **facts["words"],
        **({"transfers": ", then ".join(facts["moved"])} if facts["moved"] else {}),
        **({"load it": facts["load"]} if facts["load"] else {}),
        "beside": f"{facts['copied']} other keys{_whole(facts['whole weights'])} are carried through, "
        f"{len(facts['dropped'])} are dropped",
        "sha256": facts["sha256"],
        "taken by": ", ".join(one["loader"] for one in by_verdict["yes"]) or _taken_by_none(facts),
        "partly by": _by_reason((one["loader"], one["reasons"][0]) for one in by_verdict["partly"]),
        "not by": _by_reason((one["loader"], one["reasons"][0] + _instead(one)) for one in by_verdict["no"]),
    }
    return lines | ({"dropped": facts["dropped"]} if facts["dropped"] else {})


def _whole(keys: list[str]) -> str:
    """Say which of the keys beside the factors are whole weights."""
    return f" ({len(keys)} of them whole weights, {keys[0]}, for one)" if keys else ""


def _taken_by_none(facts: Mapping[str, Any]) -> str:
    return "none of the loaders that are known" if facts["layers"] else "not judged without layers of a network"


def _of_encoders(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} layers of {encoder}" for encoder, count in counts.items())


def _instead(verdict: dict[str, Any]) -> str:
    return f" (--to {verdict['format']})" if verdict["format"] else ""


def _by_reason(pairs: Iterable[tuple[str, str]]) -> str:
    """Return the loaders by reason, those with the same one together."""
    groups: dict[str, list[str]] = {}
    for loader, reason in pairs:
        groups.setdefault(reason, []).append(loader)
    return "; ".join(f"{', '.join(loaders)}: {reason}" for reason, loaders in groups.items()) or "none"


def describe_model(model: Checkpoint) -> dict[str, Any]:
    """Return facts about a model; only its headers are read."""
    shapes = {name: model.shape(name) for name in model.own}
    layers = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) == 2}
    width, blocks = _size(layers, model.family)
    known = len(shapes) - len(model.extra) if model.family else 0
    size = f"width {width}, {blocks} blocks" if width else ""
    if model.family:
        version = model.family.version({*model, *model.absent})
        label = model.family.sizes.get((width or 0, blocks), "")
        size = version if version and label else ", ".join(filter(None, (version, label or size)))
    return {
        "kind": "model",
        "file": model.where,
        "family": _family(model.family, known, len(shapes)),
        "size": size or "unknown",
        "naming": f"{model.naming}{f', prefix {model.prefix}' if model.prefix else ''}",
        "part": model.part,
        "files": len(model.paths),
        "read": [path.name for path in model.paths],
        "notes": list(model.notes),
        "tensors": len(model),
        "parameters": sum(prod(shape) for shape in shapes.values()),
        "dtypes": _counts(Counter(model.format(name) for name in model.own)),
        "other networks": len(model.others),
        "extra": list(model.extra),
        "identity": model.identity(),
        "merged": _merged(model),
    }


def _merged(model: Checkpoint) -> list[str]:
    """Return a phrase for each LoRA that was baked into a model by us, with what its trainer said of it."""
    place = model.paths[0]
    metadata = read_safetensors(place).metadata if place.suffix.lower() in SAFETENSORS else {}
    return [_merged_words(one) for one in merged_loras(metadata)]


def _merged_words(one: Mapping[str, Any]) -> str:
    words = ", ".join(f"{kind} {text}" for kind, text in one["words"].items() if kind in ("title", "trigger words"))
    return f"{one['lora']} at strength {one['strength']:g}" + (f" ({words})" if words else "")


def _family(family: Family | None, known: int, total: int) -> str:
    if family is None or known == 0:
        return "unknown"
    return family.name if known == total else f"{family.name} ({total - known} of {total} names are not in its table)"


def _size(shapes: Mapping[str, tuple[int, ...]], family: Family | None) -> tuple[int | None, int]:
    """Return (input width of the family's probe layer, or of its neighbours, number of blocks that have it)."""
    if family is None:
        return None, 0
    probes = [shape[1] for name, shape in shapes.items() if family.is_probe(name)]
    beside = (shape[1] for name, shape in shapes.items() if family.is_beside_probe(name))
    return (probes[0] if probes else next(beside, None)), len(probes)


def _counts(counts: Counter[Any]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(counts.items(), key=lambda item: str(item[0]))}
