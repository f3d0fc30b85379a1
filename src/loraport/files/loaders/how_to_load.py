"""Say how a LoRA file is loaded in each program, alone or beside accelerators."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from loraport.plain_json import json_text


@dataclass(frozen=True)
class ToLoad:
    """A file, and the accelerators that belong beside it."""

    file: str
    """Its path; of PEFT's format the folder."""
    family: str
    beside: tuple[tuple[str, float], ...] = ()
    """Accelerators with their strengths; the file's own is 1."""

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return PurePath(self.file).name

    @property
    def others(self) -> str:
        """The accelerators' names in a sentence."""
        return " and ".join(name for name, _ in self.beside)


def how_to_load(loader: str, one: ToLoad) -> str | None:
    """Return what to do or type in a program; None for one of which that is not known here."""
    way = _WAYS.get(loader)
    return None if way is None else way(one)


def _comfyui(one: ToLoad) -> str:
    own = f"put it into models/loras; node LoraLoaderModelOnly with lora_name {one.name} and strength_model 1"
    return own + "".join(f", behind one with {name} and {strength:g}" for name, strength in one.beside)


def _diffusers(one: ToLoad) -> str:
    hunyuan = one.family.startswith("hunyuan")  # whose pipelines have no loader of their own
    pipe, load = ("pipe.transformer", "load_lora_adapter") if hunyuan else ("pipe", "load_lora_weights")
    folder = _quoted(PurePath(one.file).parent)
    own = f'{pipe}.{load}({folder}, weight_name={_quoted(one.name)}, adapter_name="moved")'
    if not one.beside:
        return own
    titles = ["accelerator", *(f"accelerator{number}" for number in range(2, len(one.beside) + 1))]
    named = zip(one.beside, titles, strict=True)
    likewise = " and ".join(f'{name} likewise as "{title}"' for (name, _), title in named)
    strengths = ", ".join([*(f"{strength:g}" for _, strength in one.beside), "1.0"])
    return f"{own}; {likewise}; then {pipe}.set_adapters({json_text([*titles, 'moved'])}, [{strengths}])"


def _peft(one: ToLoad) -> str:
    own = f"model = PeftModel.from_pretrained(transformer, {_quoted(one.file)})"
    return own + (f", with {one.others} in the transformer already" if one.beside else "")


def _musubi(one: ToLoad) -> str:
    files = [*(name for name, _ in one.beside), one.file]
    strengths = " ".join([*(f"{strength:g}" for _, strength in one.beside), "1.0"])
    return f"--lora_weight {shlex.join(files)} --lora_multiplier {strengths}"


def _lightx2v(one: ToLoad) -> str:
    beside = "".join(f'{{"path": {_quoted(name)}, "strength": {strength:g}}}, ' for name, strength in one.beside)
    return f'"lora_configs": [{beside}{{"path": {_quoted(one.file)}, "strength": 1.0}}] in its configuration'


def _fastvideo(one: ToLoad) -> str:
    own = f'generator.set_lora_adapter(lora_nickname="moved", lora_path={_quoted(one.file)})'
    return own + (f", on a model that {one.others} has been merged into" if one.beside else "")


def _quoted(path: str | PurePath) -> str:
    """Return a path as Python and JSON take it, with slashes, which all systems do."""
    return json_text(PurePath(path).as_posix(), ensure_ascii=False)


def _sd_scripts(one: ToLoad) -> str:
    return f"--network_module networks.lora --network_weights {shlex.quote(one.file)} --network_mul 1.0, in gen_img.py"


def _generate_py(one: ToLoad) -> str:
    return "as pytorch_lora_weights.safetensors in a folder of its own, which generate.py is given"


_WAYS: dict[str, Callable[[ToLoad], str]] = {
    "ComfyUI": _comfyui,
    "diffusers": _diffusers,
    "PEFT": _peft,
    "musubi-tuner": _musubi,
    "LightX2V": _lightx2v,
    "FastVideo": _fastvideo,
    "sd-scripts": _sd_scripts,
    "generate.py": _generate_py,
}
