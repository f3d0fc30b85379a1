"""Diffusers' Wan pipelines on disk: which classes can be sampled, and what their configurations say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loraport.digests import text_digest
from loraport.errors import FileFormatError, InputError, LoraportError, MismatchError
from loraport.files.models.checkpoint import open_checkpoint

WAN, FASTVIDEO, CAUSAL = "WanPipeline", "WanDMDPipeline", "WanCausalDMDPipeline"
FLOW_MAP = "AnyFlowPipeline"
"""Whose network knows where a step leads to, and predicts the mean velocity up to there."""
GATE = "to_gate_compress"
"""Part of the name of FastVideo's gates for video sparse attention, which diffusers' network does not have."""


def check_pipeline(folder: Path, place: str) -> None:
    """Refuse what is not a `WanPipeline`, or FastVideo's or AnyFlow's with the same parts, and one with two networks.

    Raises MismatchError.
    """
    name = pipeline_class(folder)
    if name == CAUSAL:
        raise MismatchError(
            f"{place} is a {CAUSAL}, which samples frames in turn and caches the earlier ones; "
            f"that is not supported, only {WAN}, {FASTVIDEO} and {FLOW_MAP} are, which sample all frames at once"
        )
    if name not in (WAN, FASTVIDEO, FLOW_MAP):
        raise MismatchError(
            f"{place} is a {name}; only {WAN}, {FLOW_MAP} and FastVideo's {FASTVIDEO} can be sampled: if its networks "
            "are Wan's, make a folder of them with a scheduler of diffusers that samples as it does, and give that"
        )
    if has_two_experts(folder):
        raise MismatchError(f"{place} has two transformers, which take turns in one run; that is not supported yet")


def has_two_experts(folder: Path) -> bool:
    """Return whether a pipeline has a second transformer, which takes over at low noise."""
    second = read_json(folder / "model_index.json").get("transformer_2")
    return isinstance(second, list) and any(part is not None for part in second)


def check_parts(folder: Path, parts: Iterable[str]) -> None:
    """Raise InputError for a pipeline that lacks one of these parts, by its index or on the disk."""
    index = read_json(folder / "model_index.json")
    for part in parts:
        named = index.get(part)
        if not isinstance(named, list) or None in named or not (folder / part).is_dir():
            raise InputError(f"{folder} has no {part}, which making clips needs; download the pipeline whole")


def pipeline_class(folder: Path) -> str:
    """Return the class that a pipeline's index names."""
    return str(read_json(folder / "model_index.json").get("_class_name"))


def sparse_gates(weights: str | Path) -> int:
    """Return how many layers of a network are gates of video sparse attention."""
    return sum(name.endswith(f"{GATE}.weight") for name in open_checkpoint(weights))


def folds(folder: Path) -> tuple[int, int]:
    """Return how many frames and pixels one latent stands for; Wan's 4 and 8 where the folder does not say."""
    place = folder / "vae" / "config.json"
    config = read_json(place) if place.is_file() else {}
    return whole(config, "scale_factor_temporal", 4, place), whole(config, "scale_factor_spatial", 8, place)


def channels(folder: Path) -> int:
    """Return how many channels the latents have. Raises MismatchError for a network that takes more than it gives."""
    place = folder / "transformer" / "config.json"
    config = read_json(place)
    taken, given = (whole(config, f"{side}_channels", 16, place) for side in ("in", "out"))
    if taken != given:
        raise MismatchError(
            f"{folder}: its network takes {taken} channels and gives {given}, so it needs more than noise and a "
            "prompt, such as an image; only models that make clips from text alone can be sampled"
        )
    return taken


def check_size(folder: Path, height: int, width: int) -> None:
    """Raise InputError for a size of clips that is not a multiple of the network's patches."""
    place = folder / "transformer" / "config.json"
    patch = read_json(place).get("patch_size", [1, 2, 2])
    if not (isinstance(patch, list) and len(patch) == 3 and all(isinstance(side, int) and side > 0 for side in patch)):
        raise FileFormatError(f"{place}: patch_size is {patch!r}, not three whole numbers; download the file again")
    _, space = folds(folder)
    steps = space * patch[1], space * patch[2]
    if height < steps[0] or width < steps[1] or height % steps[0] or width % steps[1]:
        raise InputError(
            f"size {height}x{width} is not a multiple of the {steps[0]} × {steps[1]} pixels in which {folder} works; "
            "give multiples of them"
        )


def whole(config: dict[str, Any], key: str, default: int, place: Path) -> int:
    """Return a positive whole number of a configuration. Raises FileFormatError for anything else."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise FileFormatError(f"{place}: {key} is {value!r:.80}, not a positive whole number; download the file again")
    return value


@contextmanager
def opening(what: str, place: Path) -> Iterator[None]:
    """Turn whatever a library raises about the user's files into one sentence with their place: an InputError."""
    try:
        yield
    except LoraportError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"the {what} of {place} cannot be opened: {lines[0]:.300}; is it a whole pipeline? download it again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return a configuration. Raises InputError for a file that is not a JSON object."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}; is the folder a whole pipeline?") from error
    if not isinstance(facts, dict):
        raise InputError(f"{path} is not a configuration, a JSON object; is the folder a whole pipeline?")
    return facts


def identity(folder: Path) -> str:
    """Return a text that changes with any file of a pipeline: a hash of names, sizes and times, not of contents."""
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    lines = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
    return "pipeline " + text_digest(str(folder.resolve()), *lines)
