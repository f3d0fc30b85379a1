"""Say how a LoRA file is loaded in each program, alone or beside an accelerator."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from loraport.plain_json import json_text


@dataclass(frozen=True)
class ToLoad:
    """A file, and the accelerator that belongs beside it."""

    file: str
    """Its path; of PEFT's format the folder."""
    family: str
    accelerator: str | None = None
    strength: float = 1.0
    """Of the accelerator; the file's own is 1."""

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return PurePath(self.file).name


def how_to_load(loader: str, one: ToLoad) -> str | None:
    """Return what to do or type in a program; None for one of which that is not known here."""
    way = _WAYS.get(loader)
    return None if way is None else way(one)


def _comfyui(one: ToLoad) -> str:
    own = f"put it into models/loras; node LoraLoaderModelOnly with lora_name {one.name} and strength_model 1"
    return own + (f", behind one with {one.accelerator} and {one.strength:g}" if one.accelerator else "")


def _diffusers(one: ToLoad) -> str:
    hunyuan = one.family.startswith("hunyuan")  # whose pipelines have no loader of their own
    pipe, load = ("pipe.transformer", "load_lora_adapter") if hunyuan else ("pipe", "load_lora_weights")
    folder = _quoted(PurePath(one.file).parent)
    own = f'{pipe}.{load}({folder}, weight_name={_quoted(one.name)}, adapter_name="moved")'
    if one.accelerator is None:
        return own
    together = f'{pipe}.set_adapters(["accelerator", "moved"], [{one.strength:g}, 1.0])'
    return f'{own}; {one.accelerator} likewise as "accelerator"; then {together}'


def _peft(one: ToLoad) -> str:
    own = f"model = PeftModel.from_pretrained(transformer, {_quoted(one.file)})"
    return own + (f", with {one.accelerator} in the transformer already" if one.accelerator else "")


def _musubi(one: ToLoad) -> str:
    files = [*([one.accelerator] if one.accelerator else []), one.file]
    strengths = f"{one.strength:g} 1.0" if one.accelerator else "1.0"
    return f"--lora_weight {shlex.join(files)} --lora_multiplier {strengths}"


def _lightx2v(one: ToLoad) -> str:
    beside = (
        f'{{"path": {_quoted(one.accelerator)}, "strength": {one.strength:g}}}, ' if one.accelerator is not None else ""
    )
    return f'"lora_configs": [{beside}{{"path": {_quoted(one.file)}, "strength": 1.0}}] in its configuration'


def _fastvideo(one: ToLoad) -> str:
    own = f'generator.set_lora_adapter(lora_nickname="moved", lora_path={_quoted(one.file)})'
    return own + (f", on a model that {one.accelerator} has been merged into" if one.accelerator else "")


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
