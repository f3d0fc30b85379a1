"""What a visitor asks for, checked, and the command that does it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraport.app.places import Places
from loraport.app.work_folder import WorkFolder
from loraport.batches.find import becomes_folder_itself
from loraport.diagnosis.rule.advice import RECOMMEND, is_recommended
from loraport.errors import InputError, SettingsError, unknown_name
from loraport.files.accelerator_names import fitted
from loraport.files.disk.user_paths import expand_home
from loraport.files.models.hub import looks_like_hub_id
from loraport.files.models.named_places import known_place
from loraport.files.models.shards import SAFETENSORS
from loraport.inputs.config import DTYPES, RankRule, chosen_format
from loraport.inputs.recipes import chosen_recipes
from loraport.methods.settings import KINDS, FlaggedSetting, Value, flagged_settings

Kind = Literal["diagnose", "transfer", "compare"]
COMPARED = "casa,undo:0.25"
"""What stands beside direct reuse in a comparison where no method is named."""
SETTINGS: dict[str, FlaggedSetting] = {row.name: row for kind in KINDS for row in flagged_settings(kind)}
"""All settings of methods, by name."""
_YES, _NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0")


@dataclass(frozen=True)
class Machine:
    """Where the work is done, and where it keeps what it can use again."""

    device: str = "auto"
    cache: str | None = None

    def words(self) -> list[str]:
        """Return the options of every command."""
        return [f"--device={self.device}", *([] if self.cache is None else [f"--cache={self.cache}"])]


@dataclass(frozen=True)
class Ask:
    """What was typed and chosen."""

    kind: Kind
    source: str
    target: str
    lora: str = ""
    """A name; what was uploaded wins over it."""
    upload: str | None = None
    method: str = RECOMMEND
    rank: str = ""
    """Empty stands for the usual one, as in all that follows."""
    format: str = "same"
    dtype: str = "bf16"
    preset: str = ""
    settings: str = ""
    """Settings of the method: `tau=0.9 q-dom=0.6`."""
    include: str = ""
    exclude: str = ""
    prompts: int = 1
    """How many prompts are compared."""

    def order(self, folder: Path, places: Places, work: WorkFolder, machine: Machine) -> Order:
        """Return the work, checked as far as it can be without weights. Raises InputError for what is refused."""
        changes = read_settings(self.settings)
        self._check_method(changes)
        source, target = places.find(self.source, "source"), places.target(fitted(self.target, self.source))
        lora = places.find(self.lora, "LoRA") if self.upload is None else _kept(Path(self.upload), work, folder)
        return Order(self, folder, lora, source, target, changes, machine)

    def _check_method(self, changes: Mapping[str, Value]) -> None:
        if "," in self.method:
            raise SettingsError(f"method {self.method!r}: the page moves a LoRA by one method at a time; name one")
        if not is_recommended([self.method], self.preset or None, changes):
            chosen_recipes([self.method], self.preset or None, changes)
        if self.rank:
            RankRule.parse(self.rank)
        chosen_format(self.format)
        if self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)
        if not 1 <= self.prompts <= _PROMPTS:
            raise SettingsError(f"{self.prompts} prompts are to be compared, but it must be 1 to {_PROMPTS}")


_PROMPTS = 30


@dataclass(frozen=True)
class Order:
    """What is to be done, in a folder of its own, and the commands that do it."""

    ask: Ask
    folder: Path
    lora: str
    source: str
    target: str
    changes: Mapping[str, Value]
    machine: Machine

    def first(self) -> list[str] | None:
        """Return the command that fetches the LoRA, where it has to be looked at before the output has a name."""
        wanted = self.ask.kind == "transfer" and self.ask.format == "same" and self._is_on_hub
        return ["inspect", "--json", "--", self.lora] if wanted else None

    @property
    def _is_on_hub(self) -> bool:
        place = known_place(self.lora)
        return not expand_home(place).exists() and looks_like_hub_id(place)

    def words(self) -> list[str]:
        """Return the command itself."""
        both = [f"--source={self.source}", f"--target={self.target}"]
        rest = [*self.machine.words(), "--json", "--", self.lora]
        if self.ask.kind == "diagnose":
            return ["diagnose", *both, f"--report={self.page}", *rest]
        if self.ask.kind == "compare":
            method = COMPARED if self.ask.method == RECOMMEND else self.ask.method
            size = [f"--first={self.ask.prompts}", f"--output={self.compared}"]
            return ["compare", *both, f"--with={method}", *size, *rest]
        return ["transfer", *both, *self._method_words(), f"--output={self.output()}", f"--report={self.page}", *rest]

    def _method_words(self) -> list[str]:
        ask = self.ask
        words = [f"--method={ask.method}", f"--format={ask.format}", f"--dtype={ask.dtype}"]
        words += [f"--{name}={value}" for name, value in (("rank", ask.rank), ("preset", ask.preset)) if value]
        words += [f"--include={pattern}" for pattern in ask.include.split()]
        words += [f"--exclude={pattern}" for pattern in ask.exclude.split()]
        for name, value in self.changes.items():
            option = SETTINGS[name].option
            switch = option if value else f"--no-{option[2:]}"
            words.append(switch if isinstance(value, bool) else f"{option}={value}")
        return words

    @property
    def page(self) -> Path:
        """The page about it."""
        return self.folder / ("diagnosis.html" if self.ask.kind == "diagnose" else "report.html")

    @property
    def compared(self) -> Path:
        """The folder of a comparison."""
        return self.folder / "compared"

    def output(self) -> Path:
        """Return where the new LoRA goes: a file, or PEFT's folder."""
        name = f"{_stem(self.lora)}-on-{_stem(self.ask.target.rpartition('+')[2] or self.ask.target)}"
        return self.folder / (name if becomes_folder_itself(self.lora, self.ask.format) else f"{name}.safetensors")

    def files(self) -> list[Path]:
        """Return the files of the new LoRA."""
        place = self.output()
        return sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else [place]

    def command(self) -> str:
        """Return what does the same in a terminal, without the page's own options."""
        own = {*self.machine.words(), "--json", "--", f"--report={self.page}"}
        usual = {"--format=same", "--dtype=bf16"}
        words = [word for word in self.words() if word not in own | usual]
        words.insert(1, words.pop())  # the LoRA comes first
        apart = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
        return shlex.join(["loraport", *("-o" if part == "--output" else part for part in apart)])


def read_settings(text: str) -> dict[str, Value]:
    """Return the settings in `tau=0.9 q-dom=0.6`. Raises SettingsError for what is none of them."""
    found: dict[str, Value] = {}
    for word in re.split(r"[\s,]+", text.strip()):
        if word:
            option, is_set, value = word.removeprefix("--").partition("=")
            name = option.replace("-", "_")
            if not is_set:
                raise SettingsError(f"the setting {word!r} has no value; write for example tau=0.9")
            if name not in SETTINGS:
                raise unknown_name("setting", option, [row.option[2:] for row in SETTINGS.values()])
            found[name] = _value(SETTINGS[name], value)
    return found


def _value(row: FlaggedSetting, text: str) -> Value:
    """Return a value by the type of its setting."""
    if row.type is bool:
        if text.lower() not in (*_YES, *_NO):
            raise SettingsError(f"{row.option[2:]} is {text!r}, but it is either yes or no")
        return text.lower() in _YES
    try:
        return row.type(text)
    except ValueError as error:
        kind = "a whole number" if row.type is int else "a number"
        raise SettingsError(f"{row.option[2:]} is {text!r}, but it must be {kind}") from error


def _kept(upload: Path, work: WorkFolder, folder: Path) -> str:
    """Return a job's own name for an uploaded file, which stays when the upload is cleaned away.

    Raises InputError for what was not uploaded.
    """
    real = upload.resolve()
    if not work.holds_upload(real):
        raise InputError("the uploaded LoRA is no longer here; upload it again")
    if real.suffix.lower() not in SAFETENSORS:
        raise InputError(f"{real.name} is not a .safetensors file, and the page takes no others")
    own = folder / "in" / f"{_stem(real.name)}{real.suffix.lower()}"
    own.parent.mkdir(exist_ok=True)
    try:
        os.link(real, own)
    except OSError:  # a disk without links
        shutil.copyfile(real, own)
    return str(own)


def _stem(place: str) -> str:
    """Return a name for files from a place: its last part without ending and strength, of harmless characters."""
    name = re.split(r"[/\\:]", place.partition("*")[0].rstrip("/\\"))[-1]
    stem = name.rpartition(".")[0] if name.lower().endswith((*SAFETENSORS, ".gguf", ".pt", ".pth")) else name
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.")[:80] or "lora"
