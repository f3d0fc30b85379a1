"""Every command that writes and is fast, over small inputs: what is killed, and what it replaces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tests import tiny
from tests.fuzz.seeds import FACTORS, SEEDS, STATE

Words = tuple[str, ...]
INPUTS = "../inputs"
CACHE = "cache"
LORA, OTHER, SOURCE, TARGET, ACCELERATOR, KINDS, SHARDS, FP8 = (
    f"{INPUTS}/{name}"
    for name in (
        "lora.safetensors",
        "other.safetensors",
        "source.safetensors",
        "target.safetensors",
        "accelerator.safetensors",
        "kinds.safetensors",
        "pipeline",
        "fp8.safetensors",
    )
)
PAIR: Words = ("--source", SOURCE, "--target", TARGET)
NO_CACHE: Words = ("--no-cache",)
WITH_CACHE: Words = ("--cache", CACHE)


@dataclass(frozen=True)
class Writer:
    """A command, and another that writes other content to the same places."""

    words: Words
    other: Words
    of_the_start: Words = ()
    """Files that say what this start made and what was there already: after a kill they say it of the next one."""

    def also(self, *words: str) -> Writer:
        """Both with more options."""
        return replace(self, words=(*self.words, *words), other=(*self.other, *words))


def write_inputs(folder: Path) -> None:
    """The inputs of all of them."""
    folder.mkdir(parents=True)
    tiny.write_original(folder / "source.safetensors", STATE)
    tiny.write_original(folder / "target.safetensors", tiny.drifted(STATE))
    tiny.write_diffusers(folder / "pipeline", tiny.drifted(STATE, seed=7), shards=3)
    tiny.write_lora(folder / "lora.safetensors", FACTORS)
    tiny.write_lora(folder / "other.safetensors", tiny.lora_factors(STATE, seed=9, rank=3))
    tiny.write_lora(folder / "accelerator.safetensors", tiny.lora_factors(STATE, seed=11, rank=2))
    SEEDS["lora, kinds"][0](folder)
    tiny.write_fp8(folder / "fp8.safetensors", tiny.drifted(STATE, seed=13), "comfy, older")


def _transfer(*words: str, loras: Words = (LORA,), pair: Words = PAIR) -> Writer:
    """A transfer; the other one rounds less."""
    whole = ("transfer", *loras, *pair, *words, "-q")
    return Writer((*whole, "--dtype", "bf16"), (*whole, "--dtype", "fp32"))


def _convert(to: str, out: str, *words: str, lora: str = LORA) -> Writer:
    words = ("convert", lora, "--to", to, "-o", out, *words, "-q")
    return Writer(words, (*words, "--dtype", "fp16"))


def _merge(model: str, out: str) -> Writer:
    return Writer(("merge", model, LORA, "-o", out, "-q"), ("merge", model, f"{LORA}*0.5", OTHER, "-o", out, "-q"))


def _probe(kind: str, target: str, out: str, setting: str, values: Words) -> Writer:
    words = ("probe", kind, "--source", SOURCE, "--target", target, "-o", out, "-q", setting)
    return Writer((*words, values[0]), (*words, values[1]))


_ONE = _transfer("-o", "out.safetensors")
_ANALYZE = ("analyze", LORA, *PAIR, "-o", "analysis", "--detail", "0", "--sample", "5", "-q")
_SWEEP = ("--sweep", "q_dom=0.3/0.6")
WRITERS: dict[str, Writer] = {
    "transfer": _ONE.also(*NO_CACHE),
    "transfer, cache": _ONE.also(*WITH_CACHE),
    "transfer, report": _ONE.also(*NO_CACHE, "--report", "page.html"),
    "transfer, peft": _transfer("-o", "adapter", "--format", "peft", *NO_CACHE),
    "transfer, diff": _transfer("-o", "out.safetensors", "--as", "diff", *NO_CACHE),
    "transfer, split": _transfer("-o", "out.safetensors", "--split", *WITH_CACHE),
    "transfer, split, peft": _transfer("-o", "adapter", "--split", "--format", "peft", *NO_CACHE),
    "transfer, many LoRAs": _transfer("-o", "out", *NO_CACHE, loras=(LORA, OTHER)),
    "transfer, methods": _transfer("-o", "out", "--method", "casa,direct,core", *WITH_CACHE),
    "transfer, methods, report": replace(
        _transfer("-o", "out", "--method", "casa,undo:0.5", *NO_CACHE, "--report", "page.html"),
        of_the_start=("page.html",),
    ),
    "transfer, accelerator": _transfer(
        "-o", "out.safetensors", *NO_CACHE, pair=("--source", SOURCE, "--target", f"source+{ACCELERATOR}*0.5")
    ),
    "transfer, kinds": _transfer("-o", "out.safetensors", *WITH_CACHE, loras=(KINDS,)),
    "transfer, fp8": _transfer("-o", "out.safetensors", *WITH_CACHE, pair=("--source", SOURCE, "--target", FP8)),
    "convert, kohya": _convert("kohya", "out.safetensors"),
    "convert, diffusers": _convert("diffusers", "out.safetensors", "--source", SOURCE, lora=KINDS),
    "convert, peft": _convert("peft", "adapter"),
    "merge": _merge(SOURCE, "merged.safetensors"),
    "merge, shards": _merge(SHARDS, "merged"),
    "probe": _probe("keep-dominant", TARGET, "probed.safetensors", "--q", ("0.5", "0.3")).also(*NO_CACHE),
    "probe, cache, shards": _probe("over-activate", SHARDS, "probed", "--seed", ("1", "2")).also(*WITH_CACHE),
    "analyze": Writer((*_ANALYZE, *NO_CACHE), (*_ANALYZE, *NO_CACHE, "--tau", "0.5")),
    "analyze, sweep": Writer((*_ANALYZE, *_SWEEP, *WITH_CACHE), (*_ANALYZE, *_SWEEP, *WITH_CACHE, "--tau", "0.5")),
}
"""Name -> the command. `calibrate`, `score` and the guard sample for too long; their candidates are transfers."""
