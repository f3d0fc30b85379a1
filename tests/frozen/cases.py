"""The cases: what is typed, in a folder where the inputs lie; OUT is the folder of the case's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tests.frozen import adapters, models

METHODS = (
    "casa", "direct", "direct:1.15", "direct-matched", "direct-matched:undo", "undo", "undo:0.25", "undo-matched",
    "core", "drift-orthogonal", "drift-orthogonal:2", "prolora", "lora-x", "rollback", "restore-only", "arbitrate-only",
)  # fmt: skip
FORMATS = ("comfy", "diffusers", "peft", "kohya")
PAIR = ("--source", "source.safetensors", "--target", "target", "--no-cache")
ONE = "OUT/out.safetensors"


@dataclass(frozen=True)
class Case:
    """A name and the words after `loraport`."""

    name: str
    words: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Where its outputs go."""
        return self.name.replace(" ", "-").replace(":", "-").replace("/", "-")

    @property
    def argv(self) -> list[str]:
        """The words with OUT filled in."""
        return [word.replace("OUT", self.folder) for word in self.words]


def write_inputs(folder: Path) -> None:
    """Write every input; the same bytes each time."""
    source = models.wan()
    target, found = models.drifted(source), adapters.factors(source)
    models.save(folder / "source.safetensors", source)
    models.save_diffusers(folder / "target", target)
    models.save_diffusers(folder / "sharded", target, shards=3)
    half = {name: W.bfloat16() for name, W in source.items()}
    models.save(folder / "source-bf16.safetensors", half, "model.diffusion_model.")
    near = models.drifted({name: W.float() for name, W in half.items()}, 9, 0.0025)
    models.save(folder / "near.safetensors", {name: W.bfloat16() for name, W in near.items()})
    models.save_fp8(folder / "source-fp8.safetensors", source)
    models.save_gguf(folder / "source-q8.gguf", source)
    models.save_pickle(folder / "source.pt", source)
    deep = models.wan(4, blocks=5)
    models.save(folder / "deep.safetensors", deep)
    models.save(folder / "pruned.safetensors", models.pruned(deep, {0: 0, 1: 2, 2: 4}))
    models.save(folder / "deep-lora.safetensors", adapters.comfy(adapters.factors(deep)))
    for seed, noise in enumerate(("high_noise", "low_noise"), 10):
        expert = models.wan(seed, blocks=1)
        models.save(folder / "experts" / f"{noise}_model" / "diffusion_pytorch_model.safetensors", expert)
        models.save(folder / f"wan2.2_t2v_{noise}_4step.safetensors", models.drifted(expert, seed + 20))
    models.save(folder / "expert-lora.safetensors", adapters.comfy(adapters.factors(models.wan(10, blocks=1))))
    unet, encoder = models.sdxl(), models.clip()
    models.save_pipeline(folder / "large-unet", unet, encoder)
    models.save_pipeline(folder / "small-unet", models.ssd(unet))
    models.save(folder / "unet-lora.safetensors", adapters.unet_lora(unet, None))
    models.save(folder / "unet-and-text-lora.safetensors", adapters.unet_lora(unet, encoder))
    models.save(folder / "one-file.safetensors", models.one_file(encoder))
    models.save(folder / "one-file-lora.safetensors", adapters.one_file_lora())
    write_loras(folder, source, found)


def write_loras(folder: Path, source: models.State, found: adapters.Factors) -> None:
    """Write the LoRAs of the first model."""
    notes = {"ss_network_dim": "4", "modelspec.title": "A style"}
    models.save(folder / "lora.safetensors", adapters.comfy(found))
    half = {name: tensor.half() for name, tensor in adapters.comfy(found, 3.0).items()}
    models.save(folder / "alpha.safetensors", half, notes=notes)
    models.save(folder / "kohya.safetensors", adapters.kohya(found), notes=notes)
    models.save(folder / "diffusers.safetensors", adapters.diffusers(found))
    adapters.save_peft(folder / "peft", found)
    for kind, tensors in adapters.kinds(source, found).items():
        models.save(folder / f"{kind}.safetensors", tensors)
    models.save(folder / "second.safetensors", adapters.comfy(adapters.factors(source, 21, rank=2)))
    models.save(folder / "acc.safetensors", adapters.comfy(adapters.factors(source, 22, rank=6)))
    models.save(folder / "hunyuan.safetensors", adapters.hunyuan_lora())
    models.save(folder / "lost.safetensors", adapters.comfy(found) | {"diffusion_model.nowhere.weight": torch.ones(2)})


def transfers() -> list[Case]:
    """Return transfers of the one pair: methods, settings, ranks, formats, kinds of adapters and of models."""

    def one(
        name: str, *words: str, lora: str = "lora.safetensors", pair: tuple[str, ...] = PAIR, out: str = ONE
    ) -> Case:
        return Case(f"transfer {name}", ("transfer", lora, *pair, "-o", out, *words))

    def source(name: str, *more: str) -> tuple[str, ...]:
        return ("--source", name, "--target", "target", "--no-cache", *more)

    settings = {
        "preset paper": ("--preset", "paper"),
        "preset published-code": ("--preset", "published-code"),
        "casa settings": ("--tau", "0.5", "--eps", "1e-5", "--q-dom", "0.6", "--q-act", "0.9", "--energy", "0.8"),
        "casa halves": ("--restore", "0.5", "--no-arbitrate", "--eps-context", "1e-6"),
        **{f"rank {rank}": ("--rank", rank) for rank in ("source", "full", "3", "0.95")},
        "as diff": ("--as", "diff"),
        "split": ("--split",),
        **{f"dtype {dtype}": ("--dtype", dtype) for dtype in ("bf16", "fp16", "fp32")},
        "include": ("--include", "self_attn"),
        "exclude": ("--exclude", "ffn"),
        "seed": ("--seed", "3", "--rank", "3"),
        "prolora subspace": ("--method", "prolora", "--subspace", "rank:8", "--cross-terms"),
        "prolora no null space": ("--method", "prolora", "--no-null-space"),
        "prolora phi": ("--method", "prolora", "--phi-min", "0.9"),
        "lora-x subspace": ("--method", "lora-x", "--subspace", "energy:0.9"),
        "dry run": ("--dry-run",),
        "report": ("--report", "OUT/page.html"),
    }
    cases = [one(method, "--method", method) for method in METHODS]
    cases += [one(name, *words) for name, words in settings.items()]
    for format in FORMATS:
        out = "OUT/out" if format == "peft" else ONE
        cases.append(one(f"format {format}", "--format", format, out=out))
        cases.append(one(f"diff format {format}", "--format", format, "--as", "diff", out=out))
    for lora in ("alpha", "kohya", "diffusers", "dora", "loha", "lokr", "diff", "mixed", "locon", "lost"):
        cases.append(one(f"of {lora}", lora=f"{lora}.safetensors"))
    cases += [
        one("of peft", lora="peft", out="OUT/out"),
        one("dora magnitude", "--dora", "magnitude", lora="dora.safetensors"),
        one("transfer diffs", "--transfer-diffs", lora="mixed.safetensors"),
        one("transfer diffs alone", "--transfer-diffs", lora="diff.safetensors"),
        *(one(f"from {name}", pair=source(name)) for name in ("source-fp8.safetensors", "source-q8.gguf", "source.pt",
                                                              "source-bf16.safetensors")),
        one("from an entry", "--source-part", "critic", pair=source("source.pt")),
        one("to shards", pair=("--source", "source.safetensors", "--target", "sharded", "--no-cache")),
    ]  # fmt: skip
    return cases


def other_transfers() -> list[Case]:
    """Return transfers with more than two models, of other depth, between experts, in batches, with a cache."""

    def moved(name: str, lora: str, source: str, target: str, *words: str, out: str = ONE, cache: str = "") -> Case:
        kept = ("--cache", cache) if cache else ("--no-cache",)
        head = ("transfer", *lora.split(), "--source", source, "--target", target, *kept)
        return Case(f"transfer {name}", (*head, "-o", out, *words))

    lora, source, accelerated = "lora.safetensors", "source.safetensors", "source+acc.safetensors*0.8"
    near, experts = (lora, "source-bf16.safetensors", "near.safetensors"), ("expert-lora.safetensors", "experts")
    high, methods = "wan2.2_t2v_high_noise_4step.safetensors", "casa,direct,undo:0.5"
    pairs = [("deep", "deep-lora.safetensors", "deep.safetensors", "pruned.safetensors"),
             ("unet", "unet-lora.safetensors", "large-unet", "small-unet")]  # fmt: skip
    return [
        *(moved(f"accelerator {m}", lora, source, accelerated, "--method", m) for m in ("casa", "undo", "prolora")),
        moved("near", *near),
        moved("near forced", *near, "--force-drift"),
        *(moved(f"{name} {m}", *pair, "--method", m) for name, *pair in pairs for m in ("casa", "direct", "prolora")),
        moved("deep by name", *pairs[0][1:], "--pairing", "name", "--method", "direct"),
        moved("deep strict", *pairs[0][1:], "--pair-min", "0.99"),
        moved("unet report", *pairs[1][1:], "--report", "OUT/page.html"),
        moved("unet and text", "unet-and-text-lora.safetensors", *pairs[1][2:], "--method", "undo:0.5"),
        *(moved(f"experts {m}", *experts, high, "--experts", "--method", m) for m in ("casa", "undo")),
        moved("batch", f"{lora} second.safetensors", source, "target", "--method", methods, out="OUT"),
        moved(
            "batch report", f"{lora} second.safetensors", source, "target", "--report", "OUT/page.html", out="OUT/all"
        ),
        moved("cache cold", lora, source, "target", cache="cache"),
        moved("cache warm", lora, source, "target", cache="cache"),
        moved("toy casa", "toy:noir", "toy:base", "toy:one-step", out="OUT/out"),
        moved("toy undo", "toy:noir", "toy:base", "toy:one-step", "--method", "undo:0.25", out="OUT/out"),
        moved("toy comfy", "toy:noir", "toy:base", "toy:one-step", "--format", "comfy", "--dtype", "fp32"),
        moved("toy guard", "toy:noir", "toy:base", "toy:one-step", "--guard", "--guard-clips", "8", out="OUT/out"),
        moved("once more", "transfer-casa/out.safetensors", source, "target", "--method", "direct"),
    ]


def other_commands() -> list[Case]:
    """Return what the other commands do."""
    wan_loras = ("lora", "alpha", "kohya", "diffusers", "peft")
    kinds = ("dora", "loha", "lokr", "diff", "mixed", "locon", "lost")
    cases = []

    def add(name: str, *words: str) -> None:
        cases.append(Case(name, words))

    def place(lora: str) -> str:
        return lora if lora == "peft" else f"{lora}.safetensors"

    def convert(lora: str, format: str, *words: str) -> None:
        out = "OUT/out" if format == "peft" else ONE
        add(f"convert {lora} {format}", "convert", place(lora), "--to", format, "-o", out, *words)

    for lora in wan_loras:
        for format in FORMATS:
            convert(lora, format)
    for lora in kinds:
        convert(lora, "diffusers", *(("--source", "source.safetensors") if lora == "dora" else ()))
    for format in (*FORMATS, "tencent"):
        convert("hunyuan", format)
    for format in ("comfy", "kohya"):
        convert("diff", format)
    add("convert diff to factors", "convert", "diff.safetensors", "--to", "diffusers", "--rank", "64", "-o", ONE)
    for lora in ("unet-lora", "unet-and-text-lora"):
        convert(lora, "kohya")
    for there, back in (("comfy", "diffusers"), ("tencent", "comfy")):
        add(
            f"convert back from {there}", "convert", f"convert-hunyuan-{there}/out.safetensors", "--to", back, "-o", ONE
        )
    add("convert rank", "convert", "lora.safetensors", "--to", "comfy", "--rank", "2", "--dtype", "fp16", "-o", ONE)
    for lora in (*wan_loras, *kinds, "hunyuan", "unet-and-text-lora"):
        add(f"inspect {lora}", "inspect", place(lora))
    add("inspect a transfer", "inspect", "transfer-casa/out.safetensors")
    for model in (
        "source.safetensors",
        "source-fp8.safetensors",
        "source-q8.gguf",
        "source.pt",
        "sharded",
        "large-unet",
    ):
        add(f"inspect {model}", "inspect", model)
    for model in (
        "source.safetensors",
        "source-bf16.safetensors",
        "source-fp8.safetensors",
        "source-q8.gguf",
        "source.pt",
    ):
        add(f"merge {model}", "merge", model, "lora.safetensors*0.8", "second.safetensors", "-o", ONE)
    add("merge shards", "merge", "sharded", "lora.safetensors", "-o", "OUT/out")
    add("merge with text", "merge", "large-unet", "unet-and-text-lora.safetensors", "-o", "OUT/out")
    add("merge text folder", "merge", "large-unet/text_encoder", "unet-and-text-lora.safetensors", "-o", "OUT/out")
    add("merge text in one file", "merge", "one-file.safetensors", "one-file-lora.safetensors", "-o", ONE)
    add("inspect one-file.safetensors", "inspect", "one-file.safetensors")
    for kind in kinds:
        add(f"merge {kind}", "merge", "source.safetensors", f"{kind}.safetensors", "-o", ONE)
    add("analyze", "analyze", "lora.safetensors", *PAIR, "-o", "OUT/page", "--sample", "6", "--detail", "1")
    grid = ("--sweep", "q_dom=0.4:0.6:0.1")
    add(
        "analyze sweep", "analyze", "lora.safetensors", *PAIR, "-o", "OUT/page", "--sample", "4", "--detail", "0", *grid
    )
    add("probe keep", "probe", "keep-dominant", *PAIR, "--q", "0.5", "-o", "OUT/out")
    add(
        "probe keep all",
        "probe",
        "keep-dominant",
        *PAIR,
        "--directions",
        "all",
        "--lora",
        "lora.safetensors",
        "-o",
        "OUT/out",
    )
    for noise in ("printed", "scaled", "factors"):
        add(f"probe over {noise}", "probe", "over-activate", *PAIR, "--noise", noise, "--top", "0.1", "-o", "OUT/out")
    toys = ("--source", "toy:base", "--target", "toy:one-step", "--clips", "8", "--no-cache")
    add("score", "score", "direct", "none", "transfer-toy-comfy/out.safetensors", "--lora", "toy:noir", *toys)
    add("calibrate", "calibrate", "toy:retro", *toys, "--format", "comfy", "-o", ONE)
    add("presets", "presets")
    add("cache list", "cache", "list", "--cache", "cache")
    add("cache verify", "cache", "verify", "--cache", "cache")
    add("cache clear", "cache", "clear", "--cache", "cache")
    add("refused method", "transfer", "lora.safetensors", *PAIR, "-o", ONE, "--method", "unknown")
    add("refused file", "inspect", "missing.safetensors")
    add("refused model", "transfer", "unet-lora.safetensors", *PAIR, "-o", ONE)
    return cases


def all_cases() -> list[Case]:
    """Return every case, in the order in which they run."""
    return [*transfers(), *other_transfers(), *other_commands()]


def chosen(pattern: str) -> list[Case]:
    """Return the cases whose name has this in it, and those whose outputs or cache they read, in their order."""
    cases = all_cases()
    asked = [case for case in cases if pattern in case.name]
    read = {word.split("/")[0] for case in asked for word in case.argv}
    first = {"transfer cache cold", "transfer cache warm"} if "cache" in read else set()
    return [case for case in cases if case in asked or case.name in first or case.folder in read]


SPOKEN = {
    "transfer casa", "transfer split", "transfer near", "transfer deep direct", "transfer experts casa",
    "transfer batch", "transfer of lost", "transfer accelerator casa", "transfer dry run", "convert lora kohya",
    "merge shards", "merge dora", "inspect lora", "inspect dora", "inspect sharded", "inspect a transfer",
    "presets", "probe keep", "analyze", "cache list",
}  # fmt: skip
"""Cases that run once more without --json, for the sentences that people read."""
