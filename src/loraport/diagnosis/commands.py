"""What to type next, for every verdict."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from loraport.diagnosis.relation import Relation
from loraport.diagnosis.rule.advice import CHOOSE, NOT_THIS_PAIR, SAFE, Advice
from loraport.files.disk.user_paths import expand_home
from loraport.files.models.presets import PRESETS
from loraport.inputs.accelerator import SOURCE, split_target
from loraport.sampling.providers import known_place

CANDIDATES = ("direct", "casa", SAFE)


def next_command(
    lora: str,
    source: str,
    target: str,
    advice: Advice | None = None,
    relation: Relation | None = None,
    *,
    folder: bool = False,
) -> str:
    """Return the command line; without an advice, one that diagnoses the pair again.

    `folder`: a file of this LoRA is written as a folder, in PEFT's form.
    """
    ending = "" if folder else ".safetensors"
    pair = ["--source", source, "--target", target]
    if advice is None:
        return _line("diagnose", lora, *pair)
    if advice.verdict == NOT_THIS_PAIR:
        if relation is not None and relation.swapped:
            return _line("diagnose", lora, "--source", target, "--target", source)
        if relation is not None and relation.base:
            return _line("diagnose", lora, "--source", relation.base, "--target", target)
        return _line("inspect", lora)
    if advice.all_layers:
        return _line("diagnose", lora, *pair, "--all")
    if advice.verdict == CHOOSE:
        if can_be_sampled(source, target):
            return _line("choose", *CANDIDATES, "--lora", lora, *pair, "-o", f"{_stem(lora)}-chosen{ending}")
        if can_be_compared(source, target):
            return _line("compare", lora, *pair, "--with", ",".join(CANDIDATES[1:]), "-o", f"{_stem(lora)}-clips")
        return _line("transfer", lora, *pair, "--method", ",".join(CANDIDATES), "-o", f"{_stem(lora)}-candidates")
    output = f"{_stem(lora)}-{advice.verdict.replace(':', '-')}{ending}"
    return _line("transfer", lora, *pair, "--method", advice.verdict, "-o", output)


def can_be_sampled(source: str, target: str) -> bool:
    """Tell whether `choose` may sample both: members of an installed family, or whole pipelines on the disk."""
    places = (source, target)
    whole = all((expand_home(place) / "model_index.json").is_file() for place in places)
    return whole or all(known_place(place) != place for place in places)


def can_be_compared(source: str, target: str) -> bool:
    """Tell whether `compare` needs nothing else to make clips of both: pipelines or presets, perhaps accelerated."""
    pair = split_target(target)
    models = (source, target if pair is None else pair[0])
    return all(
        model == SOURCE or model in PRESETS or (expand_home(model) / "model_index.json").is_file() for model in models
    )


def _line(*words: str) -> str:
    return shlex.join(["loraport", *words])


def _stem(lora: str) -> str:
    name = Path(lora).name.rpartition(":")[2]
    return re.sub(r"\.(safetensors|pt|pth|ckpt|bin)$", "", name) or "lora"
