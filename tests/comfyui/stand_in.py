"""A small ComfyUI: the modules, names and rules that the nodes rely on, so that they can be tested without it.

What is here behaves as version 0.3.64 does where the nodes can tell the difference: schemas are checked and become the
V1 description that the server sends, nodes run in inference mode, a choice may be any text, a MODEL keeps its patches
beside its weights. `test_server.py` runs the same nodes in ComfyUI itself, where a checkout is named.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

NODES = Path(__file__).parents[2] / "comfyui"
PACKAGE = "comfyui_nodes_under_test"
LINEAR_ENDINGS = (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")


class InterruptProcessingException(Exception):  # noqa: N818  # ComfyUI's name
    """What ComfyUI ends an interrupted node by; no subclass of anything that nodes catch."""


@dataclass
class Socket:
    """An input or an output of a node, of a type by name."""

    id: str
    type: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def optional(self) -> bool:
        return bool(self.options.get("optional"))


def comfy_type(name: str, *, allowed: Sequence[str] = (), output: Sequence[str] = ("display_name", "tooltip")) -> Any:
    """A type of `io`: its Input takes the options that the real one takes, and no others."""
    inputs = {"display_name", "optional", "tooltip", "lazy", *allowed}

    def make_input(id: str, **options: Any) -> Socket:
        assert set(options) <= inputs, f"{name}.Input takes no {set(options) - inputs}"
        return Socket(id, name, options)

    def make_output(id: str | None = None, **options: Any) -> Socket:
        assert set(options) <= {*output, "is_output_list"}, f"{name}.Output takes no {set(options) - set(output)}"
        return Socket(id or name, name, options)

    return SimpleNamespace(Input=make_input, Output=make_output, io_type=name)


@dataclass
class Schema:
    """What a node says of itself."""

    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Socket] = field(default_factory=list)
    outputs: list[Socket] = field(default_factory=list)
    description: str = ""
    is_output_node: bool = False

    def validate(self) -> None:
        """The real one's rule: ids are unique, also between inputs and outputs."""
        ids = [one.id for one in (*self.inputs, *self.outputs)]
        if len(ids) != len(set(ids)):
            raise ValueError(f"Ids must be unique: {ids}")


class NodeOutput:
    """What a node gives back."""

    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui

    @property
    def result(self) -> tuple[Any, ...] | None:
        return self.args or None


class ComfyNode:
    """The base of V3 nodes, which are never instantiated."""

    @classmethod
    def GET_SCHEMA(cls) -> Schema:  # noqa: N802
        schema: Schema = cls.define_schema()  # type: ignore[attr-defined]
        schema.validate()
        return schema


class ComfyExtension:
    """The base of what an entry point returns."""


class ProgressBar:
    """ComfyUI's bar; `seen` is what every one of them was told, for the tests."""

    seen: list[tuple[int, int]] = []  # noqa: RUF012

    def __init__(self, total: int, node_id: str | None = None) -> None:
        self.total = total

    def update_absolute(self, value: int, total: int | None = None, preview: object = None) -> None:
        self.total = self.total if total is None else total
        ProgressBar.seen.append((min(value, self.total), self.total))


class LoRAAdapter:
    """ComfyUI's patch of a plain LoRA: (up, down, alpha, mid, dora_scale, reshape)."""

    name = "lora"

    def __init__(self, weights: tuple[Any, ...]) -> None:
        self.weights = weights

    def added(self) -> Tensor:
        up, down, alpha = self.weights[:3]
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        return scale * (up.float() @ down.float())


def load_lora(lora: Mapping[str, Tensor], known: Mapping[str, Any], log_missing: bool = True) -> dict[Any, Any]:
    """The patches that a LoRA's tensors are, by the weight that they are for."""
    patches: dict[Any, Any] = {}
    for name, weight in known.items():
        for down, up in LINEAR_ENDINGS:
            if f"{name}{up}" in lora:
                alpha = lora.get(f"{name}.alpha")
                patches[weight] = LoRAAdapter((lora[f"{name}{up}"], lora[f"{name}{down}"], alpha, None, None, None))
        if f"{name}.diff" in lora:
            patches[weight] = ("diff", (lora[f"{name}.diff"],))
        if f"{name}.diff_b" in lora:
            patches[weight.removesuffix(".weight") + ".bias"] = ("diff", (lora[f"{name}.diff_b"],))
    return patches


class Model(torch.nn.Module):
    """A loaded model; its weights lie under `diffusion_model.`."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.state = {f"diffusion_model.{name}": tensor for name, tensor in state.items()}

    def state_dict(self) -> dict[str, Tensor]:  # type: ignore[override]
        return dict(self.state)


class ModelPatcher:
    """A MODEL: a model that clones share, and patches of its weights that each has for itself."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.patches: dict[str, list[tuple[Any, ...]]] = {}
        self.attachments: dict[str, Any] = {}

    def clone(self) -> ModelPatcher:
        other = ModelPatcher(self.model)
        other.patches = {key: list(rows) for key, rows in self.patches.items()}
        other.attachments = dict(self.attachments)
        return other

    def set_attachments(self, key: str, attachment: Any) -> None:
        self.attachments[key] = attachment

    def add_patches(
        self, patches: Mapping[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> list[Any]:
        for key, patch in patches.items():
            if key in self.model.state:
                self.patches.setdefault(key, []).append((strength_patch, patch, strength_model, None, None))
        return [key for key in patches if key in self.model.state]

    def get_key_patches(self, filter_prefix: str) -> dict[str, list[Any]]:
        return {
            key: [(weight, lambda tensor, **_: tensor), *self.patches.get(key, [])]
            for key, weight in self.model.state.items()
            if key.startswith(filter_prefix)
        }

    def weight(self, name: str) -> Tensor:
        """The weight that is sampled with, in float32."""
        key = f"diffusion_model.{name}"
        W = self.model.state[key].float()
        for strength, patch, *_ in self.patches.get(key, []):
            W = W + strength * (patch[1][0].float() if isinstance(patch, tuple) else patch.added())
        return W


class Comfy:
    """The stand-in, with its folders under a root; `with` puts its modules in their places."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.interrupt_after: int | None = None
        self.freed: list[int] = []
        self.folders = {kind: [str(root / "models" / kind)] for kind in ("loras", "diffusion_models", "checkpoints")}
        self.nodes: dict[str, Any] = {}
        self.module: ModuleType | None = None

    def __enter__(self) -> Comfy:
        self._before = dict(sys.modules)
        sys.modules.update(self._modules())
        spec = importlib.util.spec_from_file_location(PACKAGE, NODES / "__init__.py")
        assert spec is not None and spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = self.module
        spec.loader.exec_module(self.module)
        extension = asyncio.run(self.module.comfy_entrypoint())
        assert isinstance(extension, ComfyExtension)
        for node in asyncio.run(extension.get_node_list()):
            self.nodes[node.GET_SCHEMA().node_id] = node
        return self

    def __exit__(self, *_: object) -> None:
        for name in [name for name in sys.modules if name.startswith(PACKAGE) or name in self._modules()]:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in self._before.items() if name not in sys.modules})

    def part(self, name: str) -> Any:
        """A module of the nodes."""
        return sys.modules[f"{PACKAGE}.nodes.{name}"]

    def run(self, node_id: str, **inputs: Any) -> NodeOutput:
        """Execute a node as the server does: defaults filled in, in inference mode, choices unchecked."""
        node = self.nodes[node_id]
        given = {
            one.id: one.options.get("default", (one.options.get("options") or [None])[0])
            for one in node.GET_SCHEMA().inputs
            if not one.optional
        }
        with torch.inference_mode():
            output: NodeOutput = node.execute(**{**given, **inputs})
        return output

    def _check(self) -> None:
        if self.interrupt_after is not None:
            self.interrupt_after -= 1
            if self.interrupt_after < 0:
                self.interrupt_after = None
                raise InterruptProcessingException

    def _list(self, kind: str) -> list[str]:
        files = [path for root in map(Path, self.folders[kind]) for path in root.rglob("*.safetensors")]
        return sorted(str(path.relative_to(self.folders[kind][0])) for path in files)

    def _find(self, kind: str, name: str) -> str | None:
        found = Path(self.folders[kind][0], name)
        return str(found) if found.is_file() else None

    def _modules(self) -> dict[str, ModuleType]:
        widget = ("default", "socketless", "force_input")
        io = _module(
            "comfy_api.latest._io",
            ComfyNode=ComfyNode,
            Schema=Schema,
            NodeOutput=NodeOutput,
            Input=Socket,
            Combo=comfy_type("COMBO", allowed=("options", *widget)),
            String=comfy_type("STRING", allowed=("multiline", "placeholder", *widget)),
            Float=comfy_type("FLOAT", allowed=("min", "max", "step", "round", *widget)),
            Boolean=comfy_type("BOOLEAN", allowed=("label_on", "label_off", *widget)),
            Model=comfy_type("MODEL"),
            AnyType=comfy_type("*"),
            Custom=comfy_type,
        )
        ui = _module("comfy_api.latest._ui", PreviewText=lambda text: {"text": (text,)})
        management = _module(
            "comfy.model_management",
            InterruptProcessingException=InterruptProcessingException,
            throw_exception_if_processing_interrupted=self._check,
            get_torch_device=lambda: torch.device("cpu"),
            free_memory=lambda size, device: self.freed.append(size),
        )
        lora = _module(
            "comfy.lora",
            load_lora=load_lora,
            model_lora_keys_unet=lambda model, known: {
                **known,
                **{key.removesuffix(".weight"): key for key in model.state if key.endswith(".weight")},
            },
        )
        utils = _module("comfy.utils", ProgressBar=ProgressBar)
        return {
            "comfy_api": _module("comfy_api"),
            "comfy_api.latest": _module("comfy_api.latest", io=io, ui=ui, ComfyExtension=ComfyExtension),
            "comfy": _module("comfy", lora=lora, model_management=management, utils=utils),
            "comfy.lora": lora,
            "comfy.model_management": management,
            "comfy.utils": utils,
            "folder_paths": _module(
                "folder_paths",
                folder_names_and_paths=self.folders,
                get_filename_list=self._list,
                get_full_path=self._find,
                get_folder_paths=lambda kind: list(self.folders[kind]),
                get_user_directory=lambda: str(self.root / "user"),
            ),
        }


def _module(name: str, **names: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(names)
    return module
