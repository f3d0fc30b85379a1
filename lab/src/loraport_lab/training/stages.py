"""The stages that make a family, one function each; what they learn from is in `loraport_lab.training.distill`."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
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
    device_of,
    landing_error,
    regression_loss,
)
from loraport_lab.training.fit import LossReport, Schedule, fit, generator_for, save_whole
from loraport_lab.training.recipe import Recipe

FORGET = 0.1  # share of prompts replaced by the empty one, for guidance


@dataclass(frozen=True)
class TrainingJob:
    """Where a family is made, from which seed, by which recipe."""

    out: Path
    recipe: Recipe
    seed: int
    progress: LossReport
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compiled: bool = False
    """Fuse the base's elementwise work by `torch.compile`; rounds otherwise, so it is part of what a seed gives."""

    def base(self) -> WanTransformer3DModel:
        """Open the finished base where it is trained on."""
        return open_base(self.out).to(self.device)

    def learn(
        self, stage: str, module: nn.Module, loss: Callable[[Generator], Tensor], schedule: Schedule, half: bool = True
    ) -> None:
        """Train `module`, continuing the stage's checkpoint if there is one."""
        checkpoint = self.out / "checkpoints" / f"{stage}.pt"
        fit(stage, module, loss, schedule, seed=self.seed, checkpoint=checkpoint, progress=self.progress, half=half)


def train_base(job: TrainingJob) -> None:
    """Train the base: flow matching on plain clips from nothing."""
    model = new_model(job.seed, job.recipe.size).to(job.device)
    called = torch.compile(model) if job.compiled else model
    job.learn("base", model, partial(_fresh_loss, called, "plain", job.recipe.base.batch), job.recipe.base)
    _save_model(model, job.out / "base")


def train_judge(job: TrainingJob) -> None:
    """Train the networks that judge clips."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        judge = Judge()
    job.learn("judge", judge, lambda rng: judge_loss(judge, job.recipe.judge.batch, rng), job.recipe.judge, False)
    save_judge(judge, job.out)


def keep_trajectories(job: TrainingJob, adapter: Adapter | None = None) -> None:
    """Keep the guided base's way from noise to clips, plain or with an adapter, in portions that survive a restart."""
    model, count = job.base(), job.recipe.trajectories
    name = "trajectories"
    if adapter is not None:
        attach(model, adapter_path(adapter.name, job.out))
        name, count = f"{adapter.name}-trajectories", job.recipe.styled
    for start in range(0, count, job.recipe.portion):
        file = job.out / "checkpoints" / name / f"{start:05d}.pt"
        if not file.exists():
            rng = generator_for(job.seed, name, start)
            size = min(job.recipe.portion, count - start)
            prompts, noise = draw_prompts(size, rng), draw_noise(size, rng)
            states = list(trajectory(model, prompts, noise.to(job.device)))
            kept = torch.stack([states[step] for step in KEPT], dim=1).cpu()
            save_whole({"prompts": prompts, "states": kept.half()}, file)
            job.progress(name, start + size, count, 0.0)
    (job.out / "checkpoints" / f"{name}.done").touch()


def _trajectories(job: TrainingJob, name: str) -> Trajectories:
    parts = [torch.load(file, weights_only=True) for file in sorted((job.out / "checkpoints" / name).glob("*.pt"))]
    return Trajectories(torch.cat([part["prompts"] for part in parts]), torch.cat([part["states"] for part in parts]))


def train_adapter(job: TrainingJob, adapter: Adapter) -> None:
    """Train a LoRA on the base: flow matching on clips with its effect."""
    model = _fresh_adapter(job, job.base(), adapter)
    schedule = job.recipe.adapters[adapter.name]
    job.learn(adapter.name, model, partial(_fresh_loss, model, adapter.effect, schedule.batch), schedule)
    _save_adapter(model, adapter_path(adapter.name, job.out))


def train_student(job: TrainingJob, student: Student) -> None:
    """Fine-tune every weight of the base, or an accelerator LoRA on it, to make clips in a few steps."""
    given = _trajectories(job, "trajectories")
    schedule = job.recipe.students[student.name]
    model: Network = prepared(job.base(), student)
    if student.accelerator:
        model = _new_adapter(job.seed, model, job.recipe.accelerator_rank, job.recipe.accelerator_rank)
    else:
        model.requires_grad_(True)
    loss = partial(_regression, model, student, given, schedule.batch)
    job.learn(student.name, model, loss, schedule)
    if student.sampler == "renoise":
        _match(job, student, model)
    path = student_path(student.name, job.out)
    _save_adapter(model, path) if student.accelerator else _save_model(model, path)


def _match(job: TrainingJob, student: Student, model: WanTransformer3DModel) -> None:
    critic, base = job.base().requires_grad_(True), job.base()
    matching, batch = Matching(student, model, critic), job.recipe.matching.batch
    job.learn(f"{student.name}-matching", matching, lambda rng: matching.loss(base, batch, rng), job.recipe.matching)


def train_oracle(job: TrainingJob, student: Student, adapter: Adapter) -> None:
    """Train the adapter on the student, from the one that was trained on the base, until it stops improving."""
    given = _trajectories(job, f"{adapter.name}-trajectories")
    learn, held = given.rows(None, -job.recipe.held_out), given.rows(-job.recipe.held_out, None)
    model = _fresh_adapter(job, open_student(student.name, job.out).to(job.device), adapter)
    restart_from(model, adapter_path(adapter.name, job.out))
    curve = _rounds(job, f"{student.name}/{adapter.name}", model, student, learn, held)
    path = oracle_path(student.name, adapter.name, job.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path.with_suffix(".json"), (json.dumps({"held_out": curve}, indent=1) + "\n").encode())
    _save_adapter(model, path)


def _rounds(
    job: TrainingJob, stage: str, model: PeftModel, student: Student, learn: Trajectories, held: Trajectories
) -> list[float]:
    """Train in rounds and return the held-out errors before and after each; a round that does not help is undone."""
    rounds = job.recipe.oracle
    errors = [landing_error(model, student, held)]
    for turn in range(rounds.most):
        before = {name: weight.detach().clone() for name, weight in _trainable(model)}
        loss = partial(_regression, model, student, learn, rounds.schedule.batch)
        job.learn(f"{stage}/{turn}", model, loss, rounds.schedule)
        error = landing_error(model, student, held)
        if error > errors[-1]:
            with torch.no_grad():
                for name, weight in _trainable(model):
                    weight.copy_(before[name])
            break
        errors.append(error)
        if error > (1 - rounds.gain) * errors[-2]:
            break
    return errors


def _regression(model: Network, student: Student, given: Trajectories, batch: int, rng: Generator) -> Tensor:
    return regression_loss(model, student, given, batch, rng)


def _fresh_loss(model: Network, effect: str, batch: int, rng: Generator) -> Tensor:
    """Return the denoising loss on new clips of one effect."""
    prompts = draw_prompts(batch, rng)
    forget = torch.rand(batch, generator=rng) < FORGET
    text = torch.where(forget[:, None, None], embed_nothing(batch), embed(prompts))
    clean = to_latents(render_effect(prompts, rng, effect)).to(device_of(model))
    return denoising_loss(model, clean, text, rng)


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def _fresh_adapter(job: TrainingJob, model: WanTransformer3DModel, adapter: Adapter) -> PeftModel:
    return _new_adapter(job.seed + 1000 * adapter.seed, model, adapter.rank, adapter.alpha)


def _new_adapter(seed: int, model: WanTransformer3DModel, rank: int, alpha: int) -> PeftModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return new_adapter(model, rank, alpha)


def _save_model(model: WanTransformer3DModel, folder: Path) -> None:
    """Half of the float32 size, in the form that rounds less; the folder appears only when it is whole.

    bfloat16 would move every weight by a fifth of a percent, a tenth of what a mild distillation does.
    """
    model.register_to_config(_name_or_path="")  # else the path it was opened from is written down
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as partial:
        for weight in model.parameters():  # not `model.to`, which warns that some of them are better kept in float32
            weight.data = weight.data.to("cpu", torch.float16)
        model.save_pretrained(partial / "transformer")


def _save_adapter(adapter: PeftModel, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".safetensors":
        with new_folder(path) as partial:
            save_peft_folder(adapter, partial)
        return
    with TemporaryDirectory() as folder:
        save_diffusers_file(adapter, Path(folder) / path.name)
        write_whole(path, (Path(folder) / path.name).read_bytes())
