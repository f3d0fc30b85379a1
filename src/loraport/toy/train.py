"""The recipes that made the shipped family: `python -m loraport.toy.train --out FOLDER`.

Stages run in order, each leaves its result whole or not at all, and a second start skips what is done and continues
what was interrupted. One CPU core is enough; the measured minutes are in docs/family.md.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from peft import PeftModel
from torch import Generator, Tensor

from loraport.toy.adapters import attach, new_adapter, save_diffusers_file, save_peft_folder
from loraport.toy.clips import STYLES, draw_prompts, embed, embed_nothing, render, to_latents
from loraport.toy.fit import Progress, Schedule, fit, generator_for, save_whole
from loraport.toy.judge import Judge, judge_loss, save_judge
from loraport.toy.model import draw_noise, new_model, open_model, predict_clean
from loraport.toy.sample import run_student, sample_base, shifted

FORGET = 0.1  # share of prompts replaced by the empty one, for guidance
WEIGHT_FLOOR = 0.2  # the loss is that of the velocity, 1 / level², cut off here


@dataclass(frozen=True)
class AdapterKind:
    """One shipped LoRA: its style, its scale (alpha / rank is deliberately not 1) and the form it is saved in."""

    style: str
    rank: int
    alpha: int
    file: str  # a name ending in .safetensors is diffusers' form, any other is a PEFT folder


@dataclass(frozen=True)
class Recipe:
    """How long and how fast each stage learns."""

    base: Schedule
    judge: Schedule
    student: Schedule
    adapter: Schedule
    oracle: Schedule
    adapters: tuple[AdapterKind, ...]
    trajectories: int  # of the base, for the student
    styled_trajectories: int  # of base + LoRA, for each oracle
    portion: int = 64  # trajectories sampled at a time


SHIPPED = Recipe(
    base=Schedule(steps=4200, rate=2e-3, batch=32, average=0.998, warmup=100),
    judge=Schedule(steps=700, rate=2e-3, batch=64),
    student=Schedule(steps=400, rate=3e-3, batch=32),
    adapter=Schedule(steps=280, rate=2e-3, batch=32),
    oracle=Schedule(steps=240, rate=2e-3, batch=32),
    adapters=(AdapterKind("noir", 8, 16, "noir"), AdapterKind("retro", 8, 4, "retro.safetensors")),
    trajectories=1024,
    styled_trajectories=320,
)


@dataclass(frozen=True)
class Workshop:
    """Where a family is made, from which seed, by which recipe."""

    out: Path
    recipe: Recipe
    seed: int
    progress: Progress

    def learn(
        self, stage: str, module: torch.nn.Module, loss: Callable[[Generator], Tensor], schedule: Schedule
    ) -> None:
        """Train `module`, continuing the stage's checkpoint if there is one."""
        checkpoint = self.out / "checkpoints" / f"{stage}.pt"
        fit(stage, module, loss, schedule, seed=self.seed, checkpoint=checkpoint, progress=self.progress)


def denoising_loss(model: WanTransformer3DModel | PeftModel, clean: Tensor, text: Tensor, rng: Generator) -> Tensor:
    """Flow matching: the velocity's squared error, written in terms of the clean prediction."""
    level = shifted(torch.rand(len(clean), generator=rng)).clamp_min(1e-3)
    wide = level[:, None, None, None, None]
    noise = draw_noise(len(clean), rng)
    missed = predict_clean(model, (1 - wide) * clean + wide * noise, level, text) - clean
    return (missed.square().mean(dim=(1, 2, 3, 4)) / level.clamp_min(WEIGHT_FLOOR) ** 2).mean()


def _fresh_loss(model: WanTransformer3DModel | PeftModel, style: str, batch: int, rng: Generator) -> Tensor:
    """The denoising loss on clips of one style that nobody has seen before."""
    prompts = draw_prompts(batch, rng)
    forget = torch.rand(batch, generator=rng) < FORGET
    text = torch.where(forget[:, None, None], embed_nothing(batch), embed(prompts))
    return denoising_loss(model, to_latents(STYLES[style](render(prompts, rng))), text, rng)


def train_base(shop: Workshop) -> None:
    """The base: flow matching on plain clips from nothing."""
    model = new_model(shop.seed)

    shop.learn("base", model, partial(_fresh_loss, model, "plain", shop.recipe.base.batch), shop.recipe.base)
    _save_model(model, shop.out / "base")


def train_judge(shop: Workshop) -> None:
    """The networks that judge clips."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shop.seed)
        judge = Judge()
    shop.learn("judge", judge, lambda rng: judge_loss(judge, shop.recipe.judge.batch, rng), shop.recipe.judge)
    save_judge(judge, shop.out)


def train_student(shop: Workshop) -> None:
    """The student: every weight of the base, fine-tuned to land where the base's trajectories end."""
    model = open_model("base", shop.out).requires_grad_(True)
    prompts, noise, ends = _trajectories(shop, "student", open_model("base", shop.out), shop.recipe.trajectories)
    batch = shop.recipe.student.batch
    shop.learn(
        "student", model, lambda rng: _distillation_loss(model, prompts, noise, ends, batch, rng), shop.recipe.student
    )
    _save_model(model, shop.out / "student")


def train_adapter(shop: Workshop, kind: AdapterKind) -> None:
    """A style LoRA on the base."""
    adapter = _fresh_adapter(shop, "base", kind)

    loss = partial(_fresh_loss, adapter, kind.style, shop.recipe.adapter.batch)
    shop.learn(kind.style, adapter, loss, shop.recipe.adapter)
    _save_adapter(adapter, shop.out / "adapters" / kind.file)


def train_oracle(shop: Workshop, kind: AdapterKind) -> None:
    """The same style as a LoRA trained on the student itself: what a perfect transfer could reach."""
    stage = f"{kind.style}-oracle"
    source = attach(open_model("base", shop.out), shop.out / "adapters" / kind.file)
    prompts, noise, ends = _trajectories(shop, stage, source, shop.recipe.styled_trajectories)
    adapter = _fresh_adapter(shop, "student", kind)
    batch = shop.recipe.oracle.batch
    shop.learn(
        stage, adapter, lambda rng: _distillation_loss(adapter, prompts, noise, ends, batch, rng), shop.recipe.oracle
    )
    _save_adapter(adapter, shop.out / "oracles" / kind.file)


def _distillation_loss(
    model: WanTransformer3DModel | PeftModel, prompts: Tensor, noise: Tensor, ends: Tensor, batch: int, rng: Generator
) -> Tensor:
    chosen = torch.randint(len(prompts), (batch,), generator=rng)
    predictions = run_student(model, prompts[chosen], noise[chosen])
    return torch.stack([(prediction - ends[chosen]).square().mean() for prediction in predictions]).sum()


def _trajectories(
    shop: Workshop, stage: str, model: WanTransformer3DModel, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts, starting noise and end points of the guided base, sampled in portions that survive a restart."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, count, shop.recipe.portion):
        rng = generator_for(shop.seed, stage, "trajectories", start)
        size = min(shop.recipe.portion, count - start)
        prompts, noise = draw_prompts(size, rng), draw_noise(size, rng)
        file = shop.out / "checkpoints" / f"{stage}-trajectories" / f"{start:05d}.pt"
        if not file.exists():
            save_whole(sample_base(model, prompts, noise).half(), file)
            shop.progress(f"{stage} trajectories", start + size, count, 0.0)
        parts.append((prompts, noise, torch.load(file, weights_only=True).float()))
    prompts, noise, ends = (torch.cat(column) for column in zip(*parts, strict=True))
    return prompts, noise, ends


def _fresh_adapter(shop: Workshop, model: str, kind: AdapterKind) -> PeftModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shop.seed)
        return new_adapter(open_model(model, shop.out), kind.rank, kind.alpha)


def _save_model(model: WanTransformer3DModel, folder: Path) -> None:
    """Half of the float32 size; the folder appears under its name only when it is whole."""
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    model.register_to_config(_name_or_path="")  # else the path it was opened from is written down
    model.to(torch.bfloat16).save_pretrained(partial / "transformer")
    os.replace(partial, folder)


def _save_adapter(adapter: PeftModel, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name("part-" + path.name)
    if path.suffix == ".safetensors":
        save_diffusers_file(adapter, partial)
    else:
        shutil.rmtree(partial, ignore_errors=True)
        save_peft_folder(adapter, partial)
    os.replace(partial, path)


def train_family(shop: Workshop) -> None:
    """All stages; one whose result exists is skipped."""
    stages: list[tuple[Path, Callable[[], None]]] = [
        (shop.out / "base", partial(train_base, shop)),
        (shop.out / "judge.safetensors", partial(train_judge, shop)),
        (shop.out / "student", partial(train_student, shop)),
    ]
    for kind in shop.recipe.adapters:
        stages.append((shop.out / "adapters" / kind.file, partial(train_adapter, shop, kind)))
    for kind in shop.recipe.adapters:
        stages.append((shop.out / "oracles" / kind.file, partial(train_oracle, shop, kind)))
    for result, stage in stages:
        if not result.exists():
            stage()


def _print_progress(began: float) -> Progress:
    total: dict[str, float] = {}

    def progress(stage: str, step: int, steps: int, loss: float) -> None:
        total[stage] = total.get(stage, loss) * 0.98 + loss * 0.02
        if step % 50 == 0 or step == steps:
            minutes = (time.monotonic() - began) / 60
            print(f"{minutes:6.1f} min  {stage} {step}/{steps}  loss {total[stage]:.4f}", file=sys.stderr, flush=True)

    return progress


def main() -> None:
    """Parse the command line and run the stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the family; started again, it continues")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train_family(Workshop(arguments.out, SHIPPED, arguments.seed, _print_progress(time.monotonic())))


if __name__ == "__main__":
    main()
