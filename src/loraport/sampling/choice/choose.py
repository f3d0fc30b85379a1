"""Choose one of several candidates by its end effect: direct reuse is kept unless another one is surely better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from loraport.compute import peak_rss_bytes
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
from loraport.files.lora.write import output_dialect
from loraport.files.strength import split_strength
from loraport.inputs.accelerator import target_places
from loraport.inputs.config import TransferConfig
from loraport.plain_json import json_text
from loraport.progress import NO_PROGRESS, Progress
from loraport.sampling.calibration.run import CalibrationSettings, calibrate, calibration_passes
from loraport.sampling.choice.candidate_folder import candidate_folder
from loraport.sampling.choice.candidates import check_place, read_adapter, write_calibrated
from loraport.sampling.choice.commands import score_table
from loraport.sampling.choice.guard import DIRECT, Verdict, decide
from loraport.sampling.end_error import EndEffect
from loraport.sampling.pair import Pair, Sampler, Updates
from loraport.sampling.pass_counter import PassCounter
from loraport.sampling.samples import SampleStore
from loraport.sampling.score import judged_clips, score, score_passes
from loraport.spectral.low_rank import LowRank
from loraport.transfers.results import BatchResult, TransferResult

CALIBRATED = "calibrated"


@dataclass(frozen=True)
class Candidates:
    """What one adapter on the target is chosen from, and where it goes."""

    runs: tuple[TransferConfig, ...]
    """A transfer of the same LoRA by each method, `direct` among them, all into one folder."""
    output: str
    files: tuple[str, ...] = ()
    """LoRAs on the target that are there already."""
    calibrated: bool = False
    """Whether an adapter fitted by sampling competes too."""
    clips: int = 32

    @property
    def folder(self) -> Path:
        """Where the results of the methods wait."""
        return Path(self.runs[0].output).parent

    @property
    def calibrated_place(self) -> Path:
        """Where the calibrated adapter waits."""
        return self.folder / f"{CALIBRATED}{Path(self.runs[0].output).suffix}"


@dataclass(frozen=True)
class Choice:
    """Which candidate was kept and written."""

    output: str
    verdict: Verdict
    result: TransferResult | None
    """The transfer of the one that is kept; None where that is a file."""
    passes: dict[str, int]
    sampler: Sampler
    notes: tuple[str, ...]
    """What did not compete, and what of the models was not sampled."""
    seconds: float

    def table(self) -> dict[str, str]:
        """Return what the choice adds to the lines of a transfer: what was kept, and all scores."""
        took = f"{self.seconds:.1f} s, at most {peak_rss_bytes() / 1e9:.2f} GB of memory"  # not the transfer alone
        kept = f"{self.verdict.kept}: {self.verdict.reason}"
        return {"took": took, "kept": kept, "target": self.sampler.in_words()} | dict(score_table(self.verdict.scores))

    def in_words(self) -> dict[str, str]:
        """Return the same in two lines, for the warnings of a transfer and for `transfer --guard`."""
        return {"guard": f"kept {self.verdict.kept}: {self.verdict.reason}", "target": self.sampler.in_words()}

    def as_json(self) -> dict[str, Any]:
        """Return the one object that `choose --json` prints."""
        return {
            "output": self.output,
            **self.verdict.as_json(),
            "target_sampler": self.sampler.as_json(),
            "passes": self.passes,
            "notes": list(self.notes),
            "transfer": None if self.result is None else self.result.as_json(),
            "seconds": self.seconds,
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def as_guarded_transfer(self) -> dict[str, Any]:
        """Return the transfer's object with the verdict in it, as `transfer --guard --json` prints it."""
        judged = {"guard": self.verdict.as_json(), "target_sampler": self.sampler.as_json(), "passes": self.passes}
        return {} if self.result is None else self.result.as_json() | judged


def choose_among(
    candidates: Candidates,
    pair: Pair,
    transfer: Callable[[Sequence[TransferConfig]], BatchResult],
    *,
    progress: Progress = NO_PROGRESS,
) -> Choice:
    """Make the candidates, score all of them, and write the one that is kept.

    The results of the methods lie in a folder of their own, which is removed at the end; after a kill the next run
    goes on with what is in it. Raises SettingsError for what cannot be scored, OutputError where something else is in
    that folder's place.
    """
    began = perf_counter()
    opened = _open(candidates, pair)
    names = (*(Path(run.output).name for run in candidates.runs), candidates.calibrated_place.name)
    with candidate_folder(candidates.folder, names):
        batch = transfer(candidates.runs)
        return _decided(candidates, opened, batch, pair, progress, began)


def check_choice(candidates: Candidates, pair: Pair) -> int:
    """Refuse what `choose_among` refuses before its work. Returns the passes that it would take."""
    return _passes(candidates, _open(candidates, pair), pair, len(candidates.runs))


@dataclass(frozen=True)
class _Opened:
    """The LoRA and the files among the candidates, read."""

    lora: Lora
    adapter: Updates
    files: dict[str, tuple[Path, Updates]]
    notes: tuple[str, ...]


def _open(candidates: Candidates, pair: Pair) -> _Opened:
    first = candidates.runs[0]
    if first.as_diff:
        raise SettingsError("candidates are scored as LoRAs; leave out --as diff")
    lora, adapter, _ = read_adapter(first.lora, pair, part=first.lora_part)
    inputs = (first.lora, first.source, *target_places(first.target), first.cache, *candidates.files)
    check_place(candidates.output, lora, first.format, inputs)
    files: dict[str, tuple[Path, Updates]] = {}
    notes: list[str] = []
    for text in candidates.files:
        own, updates, more = read_adapter(text, pair)
        _check_form(text, own.path, lora, first.format)
        files[text] = own.path, updates
        notes += more
    return _Opened(lora, adapter, files, tuple(notes))


def _check_form(text: str, path: Path, lora: Lora, format: str) -> None:
    """Raise SettingsError for a file that could not be written to the output as it is."""
    if split_strength(text)[1] != 1:
        raise SettingsError(f"{text}: a file is kept as it is, so it is chosen at strength 1; leave out the strength")
    if path.is_dir() != output_dialect(lora, format).folder:
        wanted = "a folder in PEFT's format" if not path.is_dir() else "a file"
        raise SettingsError(
            f"{text} cannot be the output, which is {wanted}; convert it first (loraport convert), or give --format"
        )
    read_safetensors(path / WEIGHTS_NAME if path.is_dir() else path)  # a pickle is refused now, not after the work


def _passes(candidates: Candidates, opened: _Opened, pair: Pair, runs: int) -> int:
    planned = score_passes(pair, candidates.clips, runs + len(opened.files) + candidates.calibrated)
    settings = CalibrationSettings(clips=candidates.clips, seed=candidates.runs[0].seed)
    fitted = calibration_passes(pair, opened.adapter, settings) if candidates.calibrated else {}
    return planned + sum(fitted.values())


def _decided(
    candidates: Candidates, opened: _Opened, batch: BatchResult, pair: Pair, progress: Progress, began: float
) -> Choice:
    """Score the runs, the files, and a calibrated adapter where that may compete; write what is kept."""
    first, clips = candidates.runs[0], candidates.clips
    counter = PassCounter(_passes(candidates, opened, pair, len(batch.runs)), progress)
    store, runs = SampleStore(first.cache), {run.method: run for run in batch.runs}
    adapters: dict[str, Updates] = {method: read_adapter(run.output, pair)[1] for method, run in runs.items()}
    adapters |= {text: updates for text, (_, updates) in opened.files.items()}
    if candidates.calibrated:
        settings = CalibrationSettings(clips=clips, seed=first.seed)
        updates = calibrate(pair, opened.adapter, settings=settings, store=store, counter=counter).updates
        place = str(candidates.calibrated_place)
        write_calibrated(place, updates, opened.lora, {}, dtype=first.dtype, format=first.format)
        adapters[CALIBRATED] = updates
        runs[CALIBRATED] = replace(_as_calibrated(runs[DIRECT], updates), output=place)
    effect = EndEffect(pair, opened.adapter, judged_clips(clips, first.seed), store, counter)
    verdict = decide(score(effect, opened.adapter, adapters), clips)
    kept = runs.get(verdict.kept)
    made = opened.files[verdict.kept][0] if kept is None else Path(kept.output)
    rewrite(made, expand_home(candidates.output), {f"{OWN_PREFIX}guard": json_text(verdict.as_json(), sort_keys=True)})
    absent = (f"not a candidate: {Path(one.output).stem}: {one.reason}" for one in batch.not_written)
    notes = (*absent, *opened.notes, *pair.notes)
    passes = counter.as_json()
    choice = Choice(candidates.output, verdict, None, passes, pair.sampler, notes, perf_counter() - began)
    if kept is None:
        return choice
    words = (f"{name}: {text}" for name, text in choice.in_words().items())
    return replace(choice, result=replace(kept, output=candidates.output, warnings=(*kept.warnings, *notes, *words)))


def _as_calibrated(direct: TransferResult, updates: dict[str, LowRank]) -> TransferResult:
    """Return direct reuse's result with the calibrated updates' ranks, and without the numbers that would differ."""
    layers = tuple(
        replace(layer, rank_out=updates[layer.name].rank, update=None, cosine=None, kept_energy=None)
        if layer.name in updates
        else layer
        for layer in direct.layers
    )
    return replace(direct, method=CALIBRATED, layers=layers)


def rewrite(made: Path, output: Path, metadata: dict[str, str]) -> None:
    """Write a LoRA (a file, or a PEFT folder) under another name with more metadata, whole or not at all."""
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
