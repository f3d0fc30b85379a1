"""Find the two experts of a model (Wan 2.2 A14B): which files one name stands for, and what each run takes.

diffusers keeps the high-noise expert in `transformer/`, the low-noise one in `transformer_2/`. Wan's own repositories
and LightX2V's have folders `high_noise_model/` and `low_noise_model/`; others say high and low in their files' names.
So does what is written here: LightX2V and ComfyUI's users tell the two by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraport.errors import SettingsError
from loraport.files.accelerator_names import fitted
from loraport.files.disk.user_paths import expand_home
from loraport.files.formats.in_memory import InMemory
from loraport.files.lora.parts import expert_parts
from loraport.files.models.hub import listing, looks_like_hub_id
from loraport.files.models.presets import PRESETS
from loraport.files.models.shards import GGUF, PICKLES, SAFETENSORS
from loraport.files.strength import split_strength
from loraport.inputs.accelerator import SOURCE, split_target
from loraport.inputs.expert_names import FOLDERS, HIGH, LOW, WORD, name_for, partner_paths, partners, side_of

EXPERTS = ("high-noise expert", "low-noise expert")
Places = tuple[str, str]
"""Of the high-noise expert, and of the low-noise one."""


@dataclass(frozen=True)
class Expert:
    """One of the two: its models, its LoRA, and what was guessed from names."""

    name: str
    lora: str
    source: str
    target: str
    notes: tuple[str, ...] = ()
    lora_part: str | None = None
    """Its own part of a file that holds both experts' LoRAs."""
    accelerator_part: str | None = None
    """The same of the target's accelerator."""

    @property
    def title(self) -> str:
        """What messages call it."""
        return EXPERTS[self.name == LOW]

    def named(self, output: str) -> str:
        """Return an output's name with the expert's in it: `style-high_noise.safetensors` of `style.safetensors`."""
        path = Path(output)
        return str(path.with_name(name_for(path.name, self.name)))


def experts(loras: Sequence[str], source: str, target: str) -> tuple[Expert, Expert]:
    """Return both experts of a pair of models. One LoRA is for both, unless the other expert's lies beside it.

    Raises SettingsError for a model without two experts, for more than two LoRAs, and for two in the wrong order.
    """
    sources, targets, beside = both(source), *_targets(fitted(target, source))
    adapters, own, guesses = adapters_of_experts(loras)
    notes = [(*guesses[at], *_guesses(beside, at)) for at in (0, 1)]
    of_accelerator = _parts(beside[0][1]) if beside else (None, None)
    return (
        Expert(HIGH, adapters[0], sources[0], targets[0], notes[0], own[0], of_accelerator[0]),
        Expert(LOW, adapters[1], sources[1], targets[1], notes[1], own[1], of_accelerator[1]),
    )


Parts = tuple[str, str] | tuple[None, None]


def adapters_of_experts(loras: Sequence[str]) -> tuple[Places, Parts, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return each expert's LoRA, its part of one file that holds both, and what was guessed from names.

    Raises SettingsError for more than two LoRAs, and for two in the wrong order.
    """
    if len(loras) > 2:
        raise SettingsError(
            f"two experts take one LoRA or two, but there are {len(loras)}; run them one after the other"
        )
    if len(loras) == 2:
        _check_order(*loras)
    adapters = (loras[0], loras[1]) if len(loras) == 2 else _one_or_twins(loras[0])
    guessed = [(loras[0], adapters)] if len(loras) == 1 else []
    return adapters, _parts(adapters), (_guesses(guessed, 0), _guesses(guessed, 1))


def _guesses(guessed: Sequence[tuple[str, Places]], at: int) -> tuple[str, ...]:
    return tuple(_guess(given, pair, at) for given, pair in guessed if pair[at] != given or pair[0] == pair[1])


def _parts(pair: Places) -> Parts:
    """Return each expert's part of one file that holds both; None if they have a file each."""
    one = pair[0] == pair[1] and (isinstance(pair[0], InMemory) or expand_home(pair[0]).exists())
    return (one and expert_parts(pair[0])) or (None, None)


def both(model: str) -> Places:
    """Return the places of both experts of a folder or repository with both inside, a preset, or one expert's place.

    The other place is the same with the other word in its name, if that exists. Raises SettingsError if nothing of this
    is found.
    """
    if f"{model}-high" in PRESETS:
        return f"{model}-high", f"{model}-low"
    if found := _inside(model) or _twins(model):
        return found
    raise SettingsError(
        f"no high-noise and low-noise experts found in {model}; give a folder or a repository with transformer/ and "
        "transformer_2/, or with "
        f"{HIGH}_model/ and {LOW}_model/, a preset's name such as wan2.2-t2v-a14b, or one expert's place whose name "
        "says high or low (high_noise, HIGH, HighNoise, -H at its end) with the other's beside it"
    )


def _check_order(first: str, second: str) -> None:
    """Raise SettingsError if names say that two LoRAs are given low first."""
    twins = _twins(first)
    swapped = twins == (second, first) if twins else False
    by_word = [side_of(_name(place), WORD) for place in (first, second)]
    by_letter = [side_of(_name(place)) for place in (first, second)]
    right = twins == (first, second)
    if not right and (swapped or by_word[0] == LOW or by_word[1] == HIGH or by_letter == [LOW, HIGH]):
        raise SettingsError(
            f"the first LoRA is the high-noise expert's, the second the low-noise one's, but these names say "
            f"otherwise: give {second} {first}, or rename them"
        )


def _targets(target: str) -> tuple[Places, list[tuple[str, Places]]]:
    """Return the same for a target, and (accelerator as given, each expert's), one for both if it has no twin."""
    pieces = split_target(target)
    if pieces is None:
        return both(target), []
    texts = (SOURCE, SOURCE) if pieces[0] == SOURCE else both(pieces[0])
    accelerators = []
    for text in pieces[1:]:
        place, _ = split_strength(text)
        strength, beside = text.removeprefix(place), _one_or_twins(place)
        texts = (f"{texts[0]}+{beside[0]}{strength}", f"{texts[1]}+{beside[1]}{strength}")
        accelerators.append((place, beside))
    return texts, accelerators


def _one_or_twins(lora: str) -> Places:
    return _twins(lora) or _inside(lora) or (lora, lora)


def adapters_of_both(lora: str) -> tuple[tuple[str, str | None], tuple[str, str | None]]:
    """Return the (place, part in it) of a LoRA for each expert: two files side by side, two in one, or one for both."""
    pair, parts, _ = adapters_of_experts([lora])
    return (pair[0], parts[0]), (pair[1], parts[1])


def _guess(given: str, pair: Places, at: int) -> str:
    """Return the note where names decided which file an expert takes."""
    name = _name(given)
    if part := _parts(pair)[at]:
        return f"{part} of {name} is taken for the {EXPERTS[at]}"
    if pair[0] != pair[1]:
        why = f"it goes with {name} by its name" if given in pair else f"so its name says in {given}"
        return f"{pair[at]} is taken for the {EXPERTS[at]}: {why}"
    why = (
        "its name says neither high nor low"
        if side_of(name) is None
        else "no file beside it has its name with the other word"
    )
    return f"{name} serves both experts: {why}"


def _inside(place: str) -> Places | None:
    """Return both experts in a folder or repository: the usual folders, or the one pair of names with high and low."""
    folder = expand_home(place)
    if folder.is_dir():
        entries, join = [entry.name for entry in folder.iterdir() if entry.is_dir() or _is_weights(entry.name)], "/"
    elif _is_remote(place):
        repo, colon, inner = place.partition(":")
        start = f"{inner.strip('/')}/" if colon else ""
        inside = [file.removeprefix(start) for file in listing(repo) or () if file.startswith(start)]
        entries = list(dict.fromkeys(file.partition("/")[0] for file in inside if "/" in file or _is_weights(file)))
        join = "/" if colon else ":"
    else:
        return None
    pairs = [pair for pair in FOLDERS.items() if set(pair) <= set(entries)]
    if not pairs:
        named = {(name, other) for name in entries for side, other in partners(name) if side == HIGH}
        pairs = sorted(pair for pair in named if pair[1] in entries)
    if len(pairs) > 1:
        listed = ", ".join(f"{place}{join}{high}" for high, _ in pairs)
        raise SettingsError(f"{place} holds several pairs of experts; name the high-noise one of: {listed}")
    return None if not pairs else (f"{place}{join}{pairs[0][0]}", f"{place}{join}{pairs[0][1]}")


def _twins(place: str) -> Places | None:
    """Return a place and the other expert's, if that exists, the high-noise one first."""
    preset, dash, noise = place.rpartition("-")
    if place in PRESETS:
        return (f"{preset}-high", f"{preset}-low") if dash and noise in ("high", "low") else None
    path = Path(place)
    if expand_home(path).exists() or not looks_like_hub_id(place):
        return _twin_among(place, path.parts, lambda parts: _on_disk(Path(*parts))) if path.parts else None
    repo, _, inside = place.partition(":")
    if not inside:
        owner, _, name = repo.partition("/")
        return _twin_among(
            place, (name,), lambda parts: f"{owner}/{parts[0]}" if listing(f"{owner}/{parts[0]}") else None
        )
    files = listing(repo)

    def in_repository(parts: tuple[str, ...]) -> str | None:
        path = "/".join(parts)
        known = files is None or any(file == path or file.startswith(f"{path}/") for file in files)
        return f"{repo}:{path}" if known else None

    return _twin_among(place, tuple(inside.strip("/").split("/")), in_repository)


def _twin_among(place: str, parts: Sequence[str], find: Callable[[tuple[str, ...]], str | None]) -> Places | None:
    for side, other in partner_paths(parts):
        if twin := find(other):
            return (place, twin) if side == HIGH else (twin, place)
    return None


def _on_disk(path: Path) -> str | None:
    """Return the path as it is on disk, in whatever case its name is written; None if it does not exist."""
    known = expand_home(path)
    if known.exists():
        return str(path)
    folder = known.parent
    alike = [e.name for e in folder.iterdir() if e.name.casefold() == path.name.casefold()] if folder.is_dir() else []
    return str(path.with_name(alike[0])) if len(alike) == 1 else None


def _name(place: str) -> str:
    """Return the last name of a path, or of what a Hub id names."""
    return Path(place.rpartition(":")[2]).name


def _is_remote(place: str) -> bool:
    return not expand_home(place).exists() and looks_like_hub_id(place)


def _is_weights(name: str) -> bool:
    return name.lower().endswith((*SAFETENSORS, *PICKLES, GGUF))
