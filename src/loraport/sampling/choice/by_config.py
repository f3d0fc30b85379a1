"""Choose an adapter by samples from a configuration: which candidates are meant, and which pair of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from loraport.compute import find_device
from loraport.errors import SettingsError
from loraport.inputs.batch import one_or_many
from loraport.inputs.config import RankRule, TransferConfig
from loraport.inputs.recipes import check_method_or_file, chosen_recipes
from loraport.methods.recipes import METHODS
from loraport.methods.settings import Value
from loraport.progress import NO_PROGRESS, Progress, observer
from loraport.sampling.choice.choose import CALIBRATED, Candidates, Choice, choose_among
from loraport.sampling.choice.guard import AUTO_METHODS, DIRECT
from loraport.sampling.pair import Pair
from loraport.sampling.prompts import built_in_prompts
from loraport.sampling.providers import known_place, pair_at
from loraport.sampling.wan_pipelines import PipelineSettings
from loraport.transfers.run import transfer_many


def choose(
    config: TransferConfig,
    candidates: Sequence[str] = (),
    *,
    clips: int = 32,
    pair: Pair | None = None,
    progress: Progress = NO_PROGRESS,
) -> Choice:
    """Make candidates, score them by sampling both models, and write the best one: direct reuse, unless another is
    surely better.

    `config` says everything but the method. `candidates` are methods (`casa`, `undo:0.25`), `calibrated`, or LoRAs on
    the target; none named: direct at four strengths, core and casa. `pair`: the two models as they are sampled; None
    opens diffusers' Wan pipelines at `config.source` and `config.target` with the usual settings, or what another
    package names (`toy:base`). It needs diffusers, peft and transformers (`pip install 'loraport[sample]'`).

    Raises SettingsError for what cannot be scored, and what the opening of the models and the transfers raise.
    """
    progress = observer(progress)
    named = candidates_by_name(candidates, config, rank=config.rank, clips=clips)
    if pair is None:
        usual = PipelineSettings(built_in_prompts(), device=find_device(config.device))
        pair = pair_at(config.source, config.target, lambda: usual)
    return choose_among(named, pair, partial(transfer_many, progress=progress), progress=progress)


def candidates_by_name(
    named: Sequence[str],
    template: TransferConfig,
    *,
    preset: str | None = None,
    changes: Mapping[str, Value] | None = None,
    rank: RankRule | None = None,
    clips: int = 32,
) -> Candidates:
    """Return the candidates by their names: methods with direct reuse among them, files, and a calibrated adapter.

    None named: the usual ones. The template's output is where the chosen one goes. Raises SettingsError for a name
    given twice, for an unknown one, and where direct reuse has no rival.
    """
    names = [name.strip() for name in named or AUTO_METHODS]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise SettingsError(f"candidate {name!r} is given twice; give each once")
    methods = [name for name in names if name.partition(":")[0] in METHODS]
    files = [known_place(name) for name in names if name not in methods and name != CALIBRATED]
    for name in files:
        _check_file(name, [CALIBRATED])
    if names == [DIRECT]:
        raise SettingsError("direct reuse has no rival; name another method, a LoRA on the target, or calibrated")
    recipes = chosen_recipes([*dict.fromkeys((DIRECT, *methods))], preset, changes or {})
    waiting = replace(template, output=f"{template.output}.candidates")
    runs = one_or_many(waiting, [template.lora], recipes, rank=rank, in_folder=True)
    return Candidates(runs, template.output, tuple(files), CALIBRATED in names, clips)


def _check_file(name: str, known: Sequence[str]) -> None:
    """Raise SettingsError for a word that is not a candidate."""
    if name == "none":
        raise SettingsError("'none' cannot be kept; loraport score says how far it is")
    check_method_or_file(name, known)
