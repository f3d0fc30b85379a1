"""Read from a LoRA file what its card says: how it was made, under which licence, and where it loads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport._version import __version__
from loraport.errors import InputError, SettingsError
from loraport.files.adapters.peft_fields import CONFIG_NAME, WEIGHTS_NAME
from loraport.files.disk.user_paths import expand_home
from loraport.files.loaders.facts import facts_of
from loraport.files.loaders.rules import Verdict
from loraport.files.loaders.table import verdicts
from loraport.files.lora.header import shown_fields
from loraport.files.lora.provenance import (
    accelerator_hub_ids,
    accelerators_of,
    loading_hint,
    provenance_facts,
    transfer_steps,
)
from loraport.files.lora.read import read_lora
from loraport.files.presets.table import ACCELERATORS, PRESETS

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""`org/repo`."""
_GUESSED = " captions)"
"""How a trigger word ends that is no field of the header, but a tag of nearly all captions."""


@dataclass(frozen=True)
class MovedLora:
    """What is published of one LoRA."""

    path: Path
    """The file; of PEFT's format the folder."""
    family: str | None
    sha256: str
    step: Mapping[str, str]
    """Its own transfer: method, settings, source, target, hashes."""
    steps: tuple[Mapping[str, str], ...]
    made: Mapping[str, str]
    beside: tuple[tuple[str, float], ...]
    """The accelerators that it is loaded beside."""
    hub_ids: tuple[str | None, ...]
    """The Hub id of each of them; None where it is not known."""
    hint: str | None
    header_licence: str | None
    licence: str
    triggers: tuple[str, ...]
    loaders: tuple[Verdict, ...]
    source: str | None
    """The Hub id of the source; None where it is not known."""
    target: str | None

    @property
    def base_models(self) -> list[str]:
        """The Hub's `base_model`: target first, which its page goes by, then the source; none without the target.

        With the source alone the Hub would offer the file for that, which it was not made for.
        """
        if self.target is None:
            return []
        return list(dict.fromkeys(one for one in (self.target, self.source) if one is not None))

    @property
    def files(self) -> dict[str, Path]:
        """Its files by their names in the repository."""
        if not self.path.is_dir():
            return {self.path.name: self.path}
        return {name: self.path / name for name in (WEIGHTS_NAME, CONFIG_NAME) if (self.path / name).is_file()}

    def as_json(self) -> dict[str, Any]:
        """Return the content of loraport.json."""
        return {
            "format": 1, "loraport": __version__, "file": self.path.name, "sha256": self.sha256,
            "family": self.family, "licence": self.licence, "source": self.source, "target": self.target,
            "base_model": self.base_models, "made": dict(self.made), "transfers": [dict(step) for step in self.steps],
            "beside": [
                {"name": name, "strength": strength, "hub": hub}
                for (name, strength), hub in zip(self.beside, self.hub_ids, strict=True)
            ],
            "trigger_words": list(self.triggers),
        }  # fmt: skip


def read_moved(place: str, licence: str | None, source: str | None, target: str | None) -> MovedLora:
    """Return what is published of a LoRA that `transfer` wrote; only headers are read.

    Raises InputError for one that it did not write, or that has no licence, neither in its header nor named.
    """
    path = expand_home(place)
    if not path.exists():
        raise InputError(f"{place} does not exist here; push takes the file or the PEFT folder that transfer wrote")
    lora = read_lora(place, dense=True, outlines=True)
    steps = transfer_steps(lora.metadata)
    made = provenance_facts(lora.metadata)
    if not steps or "method" not in made:
        raise InputError(
            f"{place} does not say that `loraport transfer` wrote it, so a card could not say what was moved from "
            "where; move the LoRA first, and push the result"
        )
    shown = shown_fields(lora.metadata)
    stated = shown.get("licence")
    chosen = (licence or stated or "").strip()
    if not chosen:
        raise InputError(
            f"{place} names no licence, and nothing is published without one: give the licence of the LoRA that it was "
            "made from, such as --license apache-2.0 (a moved LoRA inherits it, and the models' licences hold besides)"
        )
    facts = facts_of(lora)
    beside = accelerators_of(lora.metadata)
    words = [word for word in shown.get("trigger words", "").split(", ") if word]
    own_source = _hub_id("--source", source, made.get("source"))
    own_target = _hub_id("--target", target, None if beside else made.get("target"))
    if beside and target is None:  # on a model with an accelerator beside it
        model = made.get("target", "").removesuffix("".join(f"+{name}" for name, _ in beside))
        own_target = own_source if model in ("source", made.get("source")) else _hub_id("", None, model)
    return MovedLora(
        path, lora.dialect.family, lora.sha256, steps[-1], tuple(steps), made, beside,
        tuple(map(_accelerator_id, (name for name, _ in beside), accelerator_hub_ids(lora.metadata))),
        loading_hint(lora.metadata),
        stated, chosen, tuple(word for word in words if not word.endswith(_GUESSED)),
        () if facts is None else verdicts(facts), own_source, own_target,
    )  # fmt: skip


_PLACE = re.compile(HUB_ID.pattern + r"(@[\w./-]+)?(:[\w./ -]+)?")
"""A Hub id with a revision and a file in it."""


def _accelerator_id(name: str, recorded: str) -> str | None:
    """Return where an accelerator is on the Hub: as the file says, else as the presets say of a file of that name."""
    if _PLACE.fullmatch(recorded):
        return recorded
    places = {place for one in ACCELERATORS.values() for place, _ in one.files}
    fits = [place for place in places if place.rpartition(":")[2].rpartition("/")[2] == name]
    return fits[0] if len(fits) == 1 else None


def _hub_id(option: str, named: str | None, recorded: str | None) -> str | None:
    """Return the repository that is named by id or preset, else that of the preset which the header's name fits."""
    if named is not None:
        preset = PRESETS.get(named)
        repo = named if preset is None else preset.repo
        if not HUB_ID.fullmatch(repo):
            raise SettingsError(f"{option} {named!r} is neither a Hub id (org/repo) nor a name from `loraport presets`")
        return repo
    fits = {one.repo for one in PRESETS.values() if recorded in (one.name, Path(one.where).name)}
    return fits.pop() if len(fits) == 1 else None
