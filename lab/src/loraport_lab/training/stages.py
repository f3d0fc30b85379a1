"""The stages that make a family, one function each; what they learn from is in `loraport_lab.training.distill`."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import WanTransformer3DModel
from peft import PeftModel
from torch import Generator, Tensor, nn

from loraport.files.disk.atomic import new_folder, write_whole
from loraport_lab.family.adapters import attach, new_adapter, restart_from, save_diffusers_file, save_peft_folder
from loraport_lab.family.clips import draw_prompts, embed, embed_nothing, render_effect, to_latents
from loraport_lab.family.family import Adapter, Student, adapter_path, oracle_path, student_path
from loraport_lab.family.judge import Judge, judge_loss, save_judge
from loraport_lab.family.model import new_model, open_base, open_student, prepared
from loraport_lab.family.sample import draw_noise, trajectory
from loraport_lab.training.distill import (
    KEPT,
    Matching,
    Network,
    Trajectories,
    denoising_loss,
    landing_error,
    regression_loss,
)
from loraport_lab.training.fit import LossReport, Schedule, fit, generator_for, save_whole
from loraport_lab.training.recipe import Recipe

FORGET = 0.1  # share of prompts replaced by the empty one, for guidance


@dataclass(frozen=True)
class Workshop:
    """Where a family is made, from which seed, by which recipe."""

    out: Path
    recipe: Recipe
    seed: int
    progress: LossReport

    def learn(self, stage: str, module: nn.Module, loss: Callable[[Generator], Tensor], schedule: Schedule) -> None:
        """Train `module`, continuing the stage's checkpoint if there is one."""
        checkpoint = self.out / "checkpoints" / f"{stage}.pt"
        fit(stage, module, loss, schedule, seed=self.seed, checkpoint=checkpoint, progress=self.progress)


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


def keep_trajectories(shop: Workshop, adapter: Adapter | None = None) -> None:
    """The guided base's way from noise to clips, plain or with an adapter, in portions that survive a restart."""
    model, count = open_base(shop.out), shop.recipe.trajectories
    name = "trajectories"
    if adapter is not None:
        attach(model, adapter_path(adapter.name, shop.out))
        name, count = f"{adapter.name}-trajectories", shop.recipe.styled
    for start in range(0, count, shop.recipe.portion):
        file = shop.out / "checkpoints" / name / f"{start:05d}.pt"
        if not file.exists():
            rng = generator_for(shop.seed, name, start)
            size = min(shop.recipe.portion, count - start)
            prompts, noise = draw_prompts(size, rng), draw_noise(size, rng)
            states = list(trajectory(model, prompts, noise))
            kept = torch.stack([states[step] for step in KEPT], dim=1)
            save_whole({"prompts": prompts, "states": kept.half()}, file)
            shop.progress(name, start + size, count, 0.0)
    (shop.out / "checkpoints" / f"{name}.done").touch()


def _trajectories(shop: Workshop, name: str) -> Trajectories:
    parts = [torch.load(file, weights_only=True) for file in sorted((shop.out / "checkpoints" / name).glob("*.pt"))]
    return Trajectories(
        torch.cat([part["prompts"] for part in parts]), torch.cat([part["states"] for part in parts]).float()
    )


def train_adapter(shop: Workshop, adapter: Adapter) -> None:
    """A LoRA on the base: flow matching on clips with its effect."""
    model = _fresh_adapter(shop, open_base(shop.out), adapter)
    schedule = shop.recipe.adapters[adapter.name]
    shop.learn(adapter.name, model, partial(_fresh_loss, model, adapter.effect, schedule.batch), schedule)
    _save_adapter(model, adapter_path(adapter.name, shop.out))


def train_student(shop: Workshop, student: Student) -> None:
    """Every weight of the base, or an accelerator LoRA on it, fine-tuned to make clips in a few steps."""
    given = _trajectories(shop, "trajectories")
    schedule = shop.recipe.students[student.name]
    model: Network = prepared(open_base(shop.out), student)
    if student.accelerator:
        model = _new_adapter(shop.seed, model, shop.recipe.accelerator_rank, shop.recipe.accelerator_rank)
    else:
        model.requires_grad_(True)
    loss = partial(_regression, model, student, given, schedule.batch)
    shop.learn(student.name, model, loss, schedule)
    if student.sampler == "renoise":
        _match(shop, student, model)
    path = student_path(student.name, shop.out)
    _save_adapter(model, path) if student.accelerator else _save_model(model, path)


def _match(shop: Workshop, student: Student, model: WanTransformer3DModel) -> None:
    critic, base = open_base(shop.out).requires_grad_(True), open_base(shop.out)
    matching, batch = Matching(student, model, critic), shop.recipe.matching.batch
    shop.learn(f"{student.name}-matching", matching, lambda rng: matching.loss(base, batch, rng), shop.recipe.matching)


def train_oracle(shop: Workshop, student: Student, adapter: Adapter) -> None:
    """The adapter trained on the student, from the base's adapter and from zero, until it stops improving."""
    given = _trajectories(shop, f"{adapter.name}-trajectories")
    learn, held = given.rows(None, -shop.recipe.held_out), given.rows(-shop.recipe.held_out, None)
    curves: dict[str, list[float]] = {}
    models: dict[str, PeftModel] = {}
    for start in ("direct", "zero"):
        models[start] = model = _fresh_adapter(shop, open_student(student.name, shop.out), adapter)
        if start == "direct":
            restart_from(model, adapter_path(adapter.name, shop.out))
        to_beat = min((curve[-1] for curve in curves.values()), default=float("inf"))
        stage = f"{student.name}/{adapter.name}/{start}"
        curves[start] = _rounds(shop, stage, model, student, learn, held, to_beat)
    best = min(curves, key=lambda start: curves[start][-1])
    path = oracle_path(student.name, adapter.name, shop.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = json.dumps({"start": best, "held_out": curves}, indent=1) + "\n"
    write_whole(path.with_suffix(".json"), facts.encode())
    _save_adapter(models[best], path)


def _rounds(
    shop: Workshop,
    stage: str,
    model: PeftModel,
    student: Student,
    learn: Trajectories,
    held: Trajectories,
    to_beat: float,
) -> list[float]:
    """Held-out errors before and after each round; the model is left as the last round that helped made it."""
    rounds = shop.recipe.oracle
    patience, share = rounds.behind
    errors = [landing_error(model, student, held)]
    for turn in range(rounds.most):
        before = {name: weight.detach().clone() for name, weight in _trainable(model)}
        loss = partial(_regression, model, student, learn, rounds.schedule.batch)
        shop.learn(f"{stage}/{turn}", model, loss, rounds.schedule)
        error = landing_error(model, student, held)
        if error > errors[-1]:
            with torch.no_grad():
                for name, weight in _trainable(model):
                    weight.copy_(before[name])
            break
        errors.append(error)
        if error > (1 - rounds.gain) * errors[-2] or (turn + 1 >= patience and error > (1 + share) * to_beat):
            break
    return errors


def _regression(model: Network, student: Student, given: Trajectories, batch: int, rng: Generator) -> Tensor:
    return regression_loss(model, student, given, batch, rng)


def _fresh_loss(model: Network, effect: str, batch: int, rng: Generator) -> Tensor:
    """The denoising loss on clips of one effect that nobody has seen before."""
    prompts = draw_prompts(batch, rng)
    forget = torch.rand(batch, generator=rng) < FORGET
    text = torch.where(forget[:, None, None], embed_nothing(batch), embed(prompts))
    return denoising_loss(model, to_latents(render_effect(prompts, rng, effect)), text, rng)


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def _fresh_adapter(shop: Workshop, model: WanTransformer3DModel, adapter: Adapter) -> PeftModel:
    return _new_adapter(shop.seed + 1000 * adapter.seed, model, adapter.rank, adapter.alpha)


def _new_adapter(seed: int, model: WanTransformer3DModel, rank: int, alpha: int) -> PeftModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return new_adapter(model, rank, alpha)


def _save_model(model: WanTransformer3DModel, folder: Path) -> None:
    """Half of the float32 size; the folder appears under its name only when it is whole."""
    model.register_to_config(_name_or_path="")  # else the path it was opened from is written down
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as partial:
        model.to(torch.bfloat16).save_pretrained(partial / "transformer")


def _save_adapter(adapter: PeftModel, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".safetensors":
        with new_folder(path) as partial:
            save_peft_folder(adapter, partial)
        return
    with TemporaryDirectory() as folder:
        save_diffusers_file(adapter, Path(folder) / path.name)
        write_whole(path, (Path(folder) / path.name).read_bytes())
