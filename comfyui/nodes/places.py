"""What a choice or a text in a node means: a file in ComfyUI's folders, or a place that is clearly meant."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraport import InputError, OutputError, SettingsError, presets

LORAS = "loras"
NONE = "none"
SAME = "the source itself"
"""The choice of a target that is the source with accelerators."""
CHECKPOINTS = "checkpoints/"
"""Stands before whole checkpoints among the models, since their names may be those of networks alone."""
_KINDS = {"": ("diffusion_models", "unet_gguf"), CHECKPOINTS: ("checkpoints",)}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?(:[\w./ -]+)?")
_FILES = (".safetensors", ".gguf", ".pt", ".pth", ".ckpt", ".bin")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class Folders:
    """ComfyUI's folders, by its own functions."""

    names: Callable[[str], Sequence[str]]
    """Kind of model -> its files, relative to the folders of that kind; empty for an unknown kind."""
    find: Callable[[str, str], str | None]
    """Kind and name -> the file."""
    roots: Callable[[str], Sequence[str]]
    """Kind -> its folders; the first is the one that is written to."""

    def loras(self) -> list[str]:
        """Return the LoRAs to choose from."""
        return list(self.names(LORAS))

    def models(self) -> list[str]:
        """Return the models to choose from: networks alone, then whole checkpoints."""
        return [f"{start}{name}" for start, kinds in _KINDS.items() for kind in kinds for name in self.names(kind)]

    def lora(self, choice: str) -> Path:
        """Return the file of a chosen LoRA. Raises InputError for what is no file of ComfyUI's folders."""
        return self._file(LORAS, choice, "LoRA")

    def model(self, choice: str, elsewhere: str = "", *, what: str) -> str:
        """Return the place of a model: a text that names one outside ComfyUI's folders wins over the choice.

        Raises InputError for what is no file of the folders, SettingsError for a text that may mean anything.
        """
        if elsewhere.strip():
            return place_elsewhere(elsewhere.strip(), what=what)
        choice = str(choice)  # from the server's API it may be anything
        start = CHECKPOINTS if choice.startswith(CHECKPOINTS) else ""
        name = choice.removeprefix(start)
        for kind in _KINDS[start]:
            if name in self.names(kind):
                return str(self._file(kind, name, what))
        folders = " or ".join(kind for kinds in _KINDS.values() for kind in kinds[:1])
        if choice in ("", NONE):
            raise InputError(
                f"no {what} is chosen; put its file into ComfyUI/models/{folders}, press R, and choose it, or name its "
                "place in the field below"
            )
        raise InputError(f"{choice!r} is no file in ComfyUI/models/{folders}; choose the {what} from the list")

    def output(self, wanted: str, usual: str) -> Path:
        """Return where a new LoRA goes: into the first folder of LoRAs, under the wanted name, or the usual one.

        A name may have folders of its own. Raises SettingsError for one that leads out of the folder.
        """
        roots = self.roots(LORAS)
        if not roots:
            raise OutputError("ComfyUI has no folder of LoRAs to write to")
        root = Path(roots[0])
        name = (wanted.strip() or usual).replace("\\", "/")
        name = name if name.lower().endswith(".safetensors") else f"{name}.safetensors"
        parts = name.split("/")
        if name.startswith("/") or _DRIVE.match(name) or any(part in ("", ".", "..") for part in parts):
            raise SettingsError(
                f"the name {wanted!r} leads out of {root}; give a name such as wan/style-fast, without .. and without "
                "a drive or a slash in front"
            )
        place = root.joinpath(*parts)
        if Path(os.path.realpath(root)) not in Path(os.path.realpath(place)).parents:
            raise SettingsError(f"the name {wanted!r} leads out of {root} by a link; give another name")
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def relative(self, place: Path) -> str:
        """Return a LoRA's name as ComfyUI lists it."""
        return os.path.relpath(place, self.roots(LORAS)[0])

    def _file(self, kind: str, name: str, what: str) -> Path:
        found = self.find(kind, name) if name in self.names(kind) else None
        if found is None:
            folders = ", ".join(self.roots(kind)) or f"ComfyUI/models/{kind}"
            known = "" if self.names(kind) else "; there are none yet: put the file there and press R"
            raise InputError(f"{name!r} is no {what} in {folders}{known or '; choose one from the list'}")
        return Path(found)


def place_elsewhere(text: str, *, what: str) -> str:
    """Return a place outside ComfyUI's folders as it was written, if it can mean nothing else.

    An absolute path, a preset's name, a Hub id, or a model of an installed package (`toy:base`). Raises SettingsError
    for a relative path, which would depend on where ComfyUI was started.
    """
    if os.path.isabs(text) or _DRIVE.match(text):
        if not os.path.exists(text):
            raise InputError(f"there is no {text}; mend the path of the {what}, or choose a file from the list")
        return text
    is_hub_id = _HUB_ID.fullmatch(text) and (":" in text or not text.lower().endswith(_FILES))
    if text in presets() or is_hub_id or re.fullmatch(r"[a-z]+:[\w.-]+", text):
        return text
    raise SettingsError(
        f"{text!r} is no place for the {what}: give a whole path from the drive or root on, a preset such as "
        "wan2.1-t2v-1.3b, or a Hub id such as Wan-AI/Wan2.1-T2V-1.3B"
    )


@dataclass(frozen=True)
class AcceleratorLora:
    """A LoRA that makes a model need few steps, as it is loaded with it."""

    path: Path
    strength: float


def target_place(
    folders: Folders,
    choice: str,
    elsewhere: str,
    accelerators: Sequence[AcceleratorLora],
) -> str:
    """Return the target as loraport names it: a model, or a model with accelerators beside it."""
    model = "source" if choice == SAME and not elsewhere.strip() else ""
    if model and not accelerators:
        raise SettingsError(
            f"the target is {SAME}, so nothing would change; connect an Accelerator LoRA, or choose the distilled model"
        )
    place = model or folders.model(choice, elsewhere, what="target")
    return "+".join((place, *(f"{one.path}*{one.strength:g}" for one in accelerators)))


def usual_name(lora: Path, target: str, accelerators: Sequence[AcceleratorLora], method: str) -> str:
    """Return the name that a result has unless another is given: the LoRA's, what it is for, and how it was made."""
    beside = [one.path.stem for one in accelerators]
    known = [] if target.startswith("source") else [re.split(r"[\\/:]", target.partition("+")[0])[-1]]
    words = [lora.stem, "for", *(Path(one).stem if one.endswith((".safetensors", ".gguf")) else one for one in known)]
    return re.sub(r"[^\w.+-]+", "_", "-".join([*words, *beside, method]))


def file_state(paths: Sequence[str | None]) -> str:
    """Return what changes when one of the files does: for ComfyUI, which keeps a node's result until then."""
    return str([_stat(path) for path in paths if path])


def _stat(path: str) -> tuple[str, int, int] | str:
    try:
        found = os.stat(path)
    except OSError:
        return path
    return path, found.st_size, found.st_mtime_ns


def choices_of(wanted: object, known: Sequence[str] | Mapping[str, object], *, what: str) -> str:
    """Return a choice that is known. Raises SettingsError: ComfyUI's server takes any text for a choice."""
    if not isinstance(wanted, str) or wanted not in known:
        raise SettingsError(f"{wanted!r} is no {what}; choose one of: {', '.join(known)}")
    return wanted
