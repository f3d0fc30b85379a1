"""A transfer whose result is judged by its end effect: direct reuse is written unless a method surely beats it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraport.errors import SettingsError
from loraport.files.adapters.peft_fields import CONFIG_NAME, WEIGHTS_NAME
from loraport.files.disk.user_paths import expand_home
from loraport.files.formats.safetensors_read import read_safetensors
from loraport.files.formats.safetensors_write import (
    OWN_PREFIX,
    Pending,
    save_folder,
    save_safetensors,
    write_safetensors,
)
from loraport.files.lora.read import Lora
from loraport.inputs.accelerator import target_places
from loraport.inputs.config import TransferConfig
from loraport.plain_json import json_text
from loraport.progress import NO_PROGRESS, Progress
from loraport.sampling.calibration.run import CalibrationSettings, calibrate, calibration_passes
from loraport.sampling.choice.candidate_folder import waiting_room
from loraport.sampling.choice.candidates import DIRECT, check_place, read_adapter, write_calibrated
from loraport.sampling.choice.guard import Verdict, decide
from loraport.sampling.end_error import EndEffect
from loraport.sampling.pair import Pair, Sampler, Updates
from loraport.sampling.pass_counter import PassCounter
from loraport.sampling.samples import SampleStore
from loraport.sampling.score import judged_clips, score, score_passes
from loraport.spectral.low_rank import LowRank
from loraport.transfers.results import BatchResult, TransferResult

CALIBRATED = "calibrated"


@dataclass(frozen=True)
class Guarded:
    """A transfer with the verdict on it."""

    result: TransferResult
    verdict: Verdict
    passes: dict[str, int]
    sampler: Sampler
    notes: tuple[str, ...] = ()
    """What did not compete, and what of the models was not sampled."""

    def in_words(self) -> dict[str, str]:
        """What the guard adds to the transfer's own lines."""
        return {"guard": f"kept {self.verdict.kept}: {self.verdict.reason}", "target": self.sampler.in_words()}

    def as_json(self) -> dict[str, Any]:
        """The transfer's object, with `guard` in it, how the target was sampled, and the `passes` that this took."""
        judged = {"guard": self.verdict.as_json(), "target_sampler": self.sampler.as_json(), "passes": self.passes}
        return self.result.as_json() | judged


def guarded_transfer(
    configs: Sequence[TransferConfig],
    output: str,
    pair: Pair,
    transfer: Callable[[Sequence[TransferConfig]], BatchResult],
    *,
    clips: int = 32,
    calibrated: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Guarded:
    """Transfers one LoRA by each config, `direct` among them, scores the results, and writes the one that is kept.

    The candidates lie in a folder of their own, the parent of their outputs, which is removed at the end; after a kill
    the next run goes on with what is in it. Raises SettingsError for dense outputs, which cannot be scored, OutputError
    where something else is in that folder's place.
    """
    places = [Path(config.output) for config in configs]
    names = (*(place.name for place in places), f"{CALIBRATED}{places[0].suffix}")
    lora, adapter = _checked(configs, output, pair)
    with waiting_room(places[0].parent, names):
        batch = transfer(configs)
        judged = _Judged(lora, adapter, {run.method: run for run in batch.runs}, batch.not_written)
        return judged.decide(configs[0], output, pair, clips, calibrated, progress)


def check_guarded(
    configs: Sequence[TransferConfig], output: str, pair: Pair, *, clips: int = 32, calibrated: bool = False
) -> int:
    """Refuse what `guarded_transfer` refuses before its work. Returns the passes that it would take."""
    _, adapter = _checked(configs, output, pair)
    return _passes(pair, adapter, clips, len(configs), calibrated, configs[0].seed)


def _checked(configs: Sequence[TransferConfig], output: str, pair: Pair) -> tuple[Lora, Updates]:
    if configs[0].as_diff:
        raise SettingsError("the guard scores LoRAs; leave out --as diff")
    lora, adapter, _ = read_adapter(configs[0].lora, pair)
    first = configs[0]
    check_place(output, lora, first.format, (first.lora, first.source, *target_places(first.target), first.cache))
    return lora, adapter


def _passes(pair: Pair, adapter: Updates, clips: int, candidates: int, calibrated: bool, seed: int) -> int:
    planned = score_passes(pair, clips, candidates + calibrated)
    settings = CalibrationSettings(clips=clips, seed=seed)
    return planned + (sum(calibration_passes(pair, adapter, settings).values()) if calibrated else 0)


@dataclass
class _Judged:
    lora: Lora
    adapter: Updates
    runs: dict[str, TransferResult]
    not_written: tuple[tuple[str, str], ...]

    def decide(
        self, first: TransferConfig, output: str, pair: Pair, clips: int, calibrated: bool, progress: Progress
    ) -> Guarded:
        """Scores the runs, and a calibrated adapter where that may compete; writes what is kept."""
        settings = CalibrationSettings(clips=clips, seed=first.seed)
        planned = _passes(pair, self.adapter, clips, len(self.runs), calibrated, first.seed)
        counter, store = PassCounter(planned, progress), SampleStore(first.cache)
        candidates: dict[str, Updates] = {
            method: read_adapter(run.output, pair)[1] for method, run in self.runs.items()
        }
        if calibrated:
            updates = calibrate(pair, self.adapter, settings=settings, store=store, counter=counter).updates
            place = str(Path(first.output).with_name(f"{CALIBRATED}{Path(first.output).suffix}"))
            write_calibrated(place, updates, self.lora, {}, dtype=first.dtype, format=first.format)
            candidates[CALIBRATED] = updates
            self.runs[CALIBRATED] = replace(_as_calibrated(self.runs[DIRECT], updates), output=place)
        effect = EndEffect(pair, self.adapter, judged_clips(clips, first.seed), store, counter)
        verdict = decide(score(effect, self.adapter, candidates), clips)
        kept = self.runs[verdict.kept]
        guard = {f"{OWN_PREFIX}guard": json_text(verdict.as_json(), sort_keys=True)}
        rewrite(Path(kept.output), expand_home(output), guard)
        absent = (f"not a candidate: {Path(place).stem}: {reason}" for place, reason in self.not_written)
        guarded = Guarded(
            replace(kept, output=output), verdict, counter.as_json(), pair.sampler, (*absent, *pair.notes)
        )
        told = (f"{name}: {text}" for name, text in guarded.in_words().items())
        return replace(guarded, result=replace(guarded.result, warnings=(*kept.warnings, *guarded.notes, *told)))


def _as_calibrated(direct: TransferResult, updates: dict[str, LowRank]) -> TransferResult:
    """The account of direct reuse, with the calibrated updates' ranks and without numbers that are not theirs."""
    layers = tuple(
        replace(layer, rank_out=updates[layer.name].rank, update=None, cosine=None, kept_energy=None)
        if layer.name in updates
        else layer
        for layer in direct.layers
    )
    return replace(direct, method=CALIBRATED, layers=layers)


def rewrite(made: Path, output: Path, metadata: dict[str, str]) -> None:
    """A LoRA under another name with more in its metadata: a file, or a PEFT folder. Whole or not at all."""
    weights = made / WEIGHTS_NAME if made.is_dir() else made
    file = read_safetensors(weights)
    tensors = {key: Pending.of(stored.read()) for key, stored in file.tensors.items()}
    if not made.is_dir():
        save_safetensors(output, tensors, {**file.metadata, **metadata})
        return

    def write(folder: Path) -> None:
        write_safetensors(folder / WEIGHTS_NAME, tensors, {**file.metadata, **metadata})
        (folder / CONFIG_NAME).write_bytes((made / CONFIG_NAME).read_bytes())

    save_folder(output, write, frozenset({WEIGHTS_NAME, CONFIG_NAME}))
