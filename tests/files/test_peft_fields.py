"""Adapters that took their own start out of the base: computed as PEFT's own loader does it, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loraport.conversion import convert
from loraport.errors import FileFormatError, InputError, MismatchError, SettingsError
from loraport.files.adapters.residual import Residual
from loraport.files.inspect import describe, summary_lines
from loraport.files.lora.read import read_lora
from loraport.inputs.config import TransferConfig
from loraport.merging import merge
from loraport.transfers.run import transfer
from tests import tiny

peft = pytest.importorskip("peft")

WIDE, TALL = 24, 40
STATE = tiny.tiny_state(blocks=1)
LAYERS = ("blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.0.ffn.2")


class Block(nn.Module):
    """A square, a tall and a wide layer under Wan's names, with the weights of the tiny model."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({"q": nn.Linear(WIDE, WIDE)})
        self.ffn = nn.ModuleList([nn.Linear(WIDE, TALL), nn.GELU(), nn.Linear(TALL, WIDE)])

    def forward(self, x: Tensor) -> Tensor:
        for step in (self.self_attn["q"], *self.ffn):
            x = step(x)
        return x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block()])
        self.load_state_dict({name: STATE[name] for name in self.state_dict()})

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.blocks[0](x)
        return found


def trained(folder: Path, **fields: Any) -> dict[str, Tensor]:
    """An adapter trained for a few steps and saved; {layer: what PEFT's own loader adds to the weight on the disk}."""
    torch.manual_seed(1)
    fields = {"r": 3, "lora_alpha": 5, "target_modules": ["q", "ffn.0", "ffn.2"]} | fields
    model = peft.get_peft_model(Net(), peft.LoraConfig(**fields))
    for _ in range(3):
        model(torch.randn(8, WIDE)).sub(1).square().mean().backward()
        with torch.no_grad():
            for value in model.parameters():
                if value.grad is not None:
                    value -= 0.05 * value.grad
                    value.grad = None
    model.save_pretrained(folder)
    after = peft.PeftModel.from_pretrained(Net(), folder).merge_and_unload().state_dict()
    return {layer: after[f"{layer}.weight"] - STATE[f"{layer}.weight"] for layer in LAYERS}


COMPUTED: dict[str, dict[str, Any]] = {
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "olora, stabilised": {"init_lora_weights": "olora", "use_rslora": True},
    "pissa, patterns": {"init_lora_weights": "pissa", "rank_pattern": {"ffn.0": 5}, "alpha_pattern": {"q": 1}},
}
PLAIN = ("gaussian", "eva", "orthogonal", "mica")
"""These leave the base as it was."""


@pytest.fixture(params=COMPUTED)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Tensor]]:
    wanted = trained(tmp_path / "adapter", **COMPUTED[request.param])
    tiny.write_original(tmp_path / "base.safetensors", STATE)
    return str(tmp_path / "adapter"), wanted


def close(got: Tensor, wanted: Tensor) -> bool:
    """To 1e-4 of the update, and what PEFT loses by its decomposition in single precision: 1e-5 of the weight."""
    return float((got - wanted).norm()) <= 1e-4 * float(wanted.norm()) + 6e-5


def test_every_command_adds_what_peft_adds(case: tuple[str, dict[str, Tensor]], tmp_path: Path) -> None:
    """merge and convert on the base, a transfer from it; the plain product would be far off."""
    place, wanted = case
    base = str(tmp_path / "base.safetensors")
    lora = read_lora(place)
    for layer in LAYERS:
        update = lora.updates[layer]
        assert isinstance(update, Residual) and not close(update.inner.dense(), wanted[layer])
    done = merge(base, [place], str(tmp_path / "merged.safetensors"))
    assert "factors belong to a base" in done.notes[0]
    merged = load_file(tmp_path / "merged.safetensors")
    assert all(close(merged[f"{layer}.weight"] - STATE[f"{layer}.weight"], wanted[layer]) for layer in LAYERS)

    convert(place, "comfy", str(tmp_path / "plain.safetensors"), source=base, dtype="fp32")
    plain = read_lora(tmp_path / "plain.safetensors").updates
    assert all(close(plain[layer].dense(), wanted[layer]) for layer in LAYERS)

    target = tiny.write_original(tmp_path / "target.safetensors", tiny.drifted(STATE))
    out, settings = str(tmp_path / "moved"), {"method": "direct", "dtype": "fp32", "exclude": ("ffn.2",)}
    transfer(TransferConfig(place, base, str(target), out, **settings))  # type: ignore[arg-type]
    moved = read_lora(out).updates
    assert all(close(moved[layer].dense(), wanted[layer]) for layer in LAYERS)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "transformer", "dit"])
@pytest.mark.parametrize("start", ["", "^"])
def test_patterns_name_modules_as_the_wrapped_model_has_them(wrapper: str, start: str, tmp_path: Path) -> None:
    """A compiled model, or one inside another, has names with the wrapper in front, and so have its patterns."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, wrapper, Net())

    torch.manual_seed(1)
    name = f"{start}{wrapper}.blocks.0.ffn.0"
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["q", "ffn.0"], init_lora_weights=False, rank_pattern={name: 2},
        alpha_pattern={name: 7},
    )  # fmt: skip
    model = peft.get_peft_model(Wrapped(), config)
    model.save_pretrained(tmp_path)
    after = model.merge_and_unload().state_dict()
    layers = read_lora(tmp_path).updates
    for layer in LAYERS[:2]:
        wanted = after[f"{wrapper}.{layer}.weight"] - STATE[f"{layer}.weight"]
        assert close(layers[layer].dense(), wanted)  # type: ignore[union-attr]


def test_without_the_model_it_is_said_and_refused(tmp_path: Path) -> None:
    trained(tmp_path / "adapter", init_lora_weights="pissa")
    facts = summary_lines(describe(str(tmp_path / "adapter")))
    assert "PiSSA" in facts["layers"] and "init_lora_weights says PiSSA" in facts["note"][0]
    with pytest.raises(SettingsError, match=r"is a PiSSA, whose update depends on the weights.*--source"):
        convert(str(tmp_path / "adapter"), "comfy", str(tmp_path / "o.safetensors"))


@pytest.mark.parametrize("init", PLAIN)
def test_other_starts_leave_the_base_alone(init: str, tmp_path: Path) -> None:
    fields = {"init_lora_weights": init, "r": 4}
    wanted = trained(tmp_path / "adapter", **fields)
    lora = read_lora(tmp_path / "adapter")
    assert all(close(lora.updates[layer].dense(), wanted[layer]) for layer in LAYERS) and lora.notes == ()


LOST = {
    "pissa_niter_4": "random numbers.*path_initial_model_for_weight_conversion",
    "pissa_niter_16": "random numbers",
    "corda": "covariances.*path_initial_model_for_weight_conversion",
    "lora_ga": "gradients.*path_initial_model_for_weight_conversion",
    "loftq": "quantising the base.*merge it in PEFT",
}
NO_UPDATES: dict[str, Any] = {
    "kasa_config": {"beta": 1},
    "use_qalora": True,
    "use_bdlora": {"target_modules_bd_a": ["q"]},
    "arrow_config": {"top_k": 3},
    "alora_invocation_tokens": [1, 2],
    "layer_replication": [[0, 1], [0, 1]],
    "target_parameters": ["experts.up"],
}


def saved(folder: Path, fields: dict[str, Any], where: str) -> Path:
    """A plain pair with the fields in a folder's configuration, or in a header by component."""
    prefix = "base_model.model." if where == "folder" else "transformer."
    name = f"{prefix}blocks.0.{'self_attn.q' if where == 'folder' else 'attn1.to_q'}"
    pair = {f"{name}.lora_A.weight": torch.ones(2, WIDE), f"{name}.lora_B.weight": torch.ones(WIDE, 2)}
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 2} | fields
    if where == "folder":
        save_file(pair, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(fields))
        return folder
    header = {f"{where}.{name}": value for name, value in fields.items()}
    save_file(pair, folder / "x.safetensors", {"lora_adapter_metadata": json.dumps(header)})
    return folder / "x.safetensors"


@pytest.mark.parametrize("where", ["folder", "transformer"])
@pytest.mark.parametrize(("init", "told"), LOST.items())
def test_a_start_that_no_file_keeps_is_refused(init: str, told: str, where: str, tmp_path: Path) -> None:
    path = saved(tmp_path, {"init_lora_weights": init}, where)
    with pytest.raises(FileFormatError, match=f"init_lora_weights is {init!r}.*{told}"):
        read_lora(path)
    assert init in describe(str(path))["refused"]


@pytest.mark.parametrize(("field", "value"), NO_UPDATES.items())
def test_what_is_no_update_of_a_weight_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=f"{field} is set"):
        read_lora(saved(tmp_path, {field: value}, "folder"))
    empty = False if value is True else None
    assert read_lora(saved(tmp_path, {field: empty}, "folder")).layers


def test_starts_where_peft_makes_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="DoRA that started as PiSSA"):
        read_lora(saved(tmp_path, {"init_lora_weights": "pissa", "use_dora": True}, "folder"))
    with pytest.raises(InputError, match="adapter of text_encoder is a OLoRA"):
        read_lora(saved(tmp_path, {"init_lora_weights": "olora"}, "text_encoder"))
    conv = {f"base_model.model.patch_embedding.lora_{x}.weight": torch.ones(2, 2, 1, 1, 1) for x in "AB"}
    saved(tmp_path, {"init_lora_weights": "pissa"}, "folder")
    save_file(conv, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match="does not belong to a linear layer"):
        read_lora(tmp_path)


def test_in_diffusers_headers_too(tmp_path: Path) -> None:
    lora = read_lora(saved(tmp_path, {"init_lora_weights": "pissa"}, "transformer"))
    (update,) = lora.updates.values()
    assert isinstance(update, Residual) and update.rank == 4
    U, S, Vh = torch.linalg.svd(STATE["blocks.0.self_attn.q.weight"])
    wanted = torch.ones(WIDE, WIDE) * 2 - (U[:, :2] * S[:2]) @ Vh[:2]
    assert close(update.difference(STATE["blocks.0.self_attn.q.weight"]).dense(), wanted)
    with pytest.raises(MismatchError, match="of rank 2 cannot have started"):
        update.difference(torch.ones(1, WIDE))
