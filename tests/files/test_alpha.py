"""Where alpha may stand: what is applied, what is not, and that the second is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraport.conversion import convert
from loraport.errors import InputError
from loraport.files.inspect import describe, summary_lines
from loraport.files.loaders.facts import facts_of
from loraport.files.loaders.table import verdicts
from loraport.files.lora.read import Lora, read_lora
from loraport.files.names.families import FAMILIES
from loraport.merging import merge
from tests import tiny

RANK, ALPHA = 4, 1.0
STATE = tiny.tiny_state()
FACTORS = tiny.lora_factors(STATE, rank=RANK)
LAYER = "blocks.0.self_attn.q"


def tensors(prefix: str = "diffusion_model.", alpha: float | None = None) -> dict[str, Tensor]:
    found = {}
    for layer, (B, A) in FACTORS.items():
        found |= {f"{prefix}{layer}.lora_A.weight": A, f"{prefix}{layer}.lora_B.weight": B}
        if alpha is not None:
            found[f"{prefix}{layer}.alpha"] = torch.tensor(alpha)
    return found


def stored(path: Path, header: dict[str, str] | None = None, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors(**how), path, header)
    return path


def scales(lora: Lora) -> set[float]:
    return {layer.scale for layer in lora.layers.values()}


HEADERS = {
    "the trainer's": ({"ss_network_alpha": "1.0", "ss_network_dim": "4"}, "ss_network_alpha in the header is 1.0"),
    "after a dynamic resize": ({"ss_network_alpha": "Dynamic"}, "ss_network_alpha in the header is Dynamic"),
    "plain": ({"alpha": "8"}, "strength to load it at is 2"),
    "lora_alpha": ({"lora_alpha": "8", "rank": "4"}, "lora_alpha in the header is 8"),
    "network_alpha": ({"network_alpha": "16"}, "strength to load it at is 4"),
    "a component's": (
        {"transformer.lora_alpha": "64", "transformer.r": "4"},
        "transformer.lora_alpha in the header is 64",
    ),
    "inside JSON": ({"lora_config": '{"r": 4, "lora_alpha": 2}'}, "lora_alpha of lora_config in the header is 2"),
    "deep inside JSON": (
        {"training": '{"network": {"linear": 4, "linear_alpha": 8}}'},
        "linear_alpha of training in the header is 8",
    ),
    "no number": ({"alpha": "as trained"}, "alpha in the header is as trained"),
}


@pytest.mark.parametrize(("header", "told"), HEADERS.values(), ids=HEADERS)
def test_a_headers_alpha_is_told_and_not_applied(header: dict[str, str], told: str, tmp_path: Path) -> None:
    lora = read_lora(stored(tmp_path / "x.safetensors", header))
    assert scales(lora) == {1.0} and len(lora.notes) == 1
    assert told in lora.notes[0] and "not applied" in lora.notes[0]


@pytest.mark.parametrize(
    "inside",
    [lambda lora: {"lora": lora, "r": 4, "alpha": 8}, lambda lora: {"lora": lora, "config": {"lora_alpha": 8.0}}],
)
def test_an_alpha_beside_the_tensors_of_a_pickle_is_told(inside: Any, tmp_path: Path) -> None:
    torch.save(inside(tensors()), tmp_path / "x.pt")
    lora = read_lora(tmp_path / "x.pt")
    assert scales(lora) == {1.0} and "alpha beside the tensors is 8" in lora.notes[0]
    assert "strength to load it at is 2" in lora.notes[0]
    torch.save(inside(tensors(alpha=ALPHA)), tmp_path / "x.pt")
    assert read_lora(tmp_path / "x.pt").notes == ()


QUIET: dict[str, tuple[dict[str, str], float | None]] = {
    "none": ({}, None),
    "equal to the rank": ({"ss_network_alpha": "4.0", "alpha": "4"}, None),
    "empty": ({"ss_network_alpha": "None", "alpha": ""}, None),
    "beside tensors": ({"ss_network_alpha": "1.0"}, ALPHA),
    "a word that ends alike": ({"ss_alphabet": "8", "modelspec.title": "alpha centauri"}, None),
}


@pytest.mark.parametrize(("header", "alpha"), QUIET.values(), ids=QUIET)
def test_nothing_is_told_where_nothing_was_left_out(
    header: dict[str, str], alpha: float | None, tmp_path: Path
) -> None:
    lora = read_lora(stored(tmp_path / "x.safetensors", header, alpha=alpha))
    assert scales(lora) == {1.0 if alpha is None else alpha / RANK} and lora.notes == ()


def test_a_file_that_musubi_converted_keeps_its_strength(tmp_path: Path) -> None:
    """Both factors hold √(alpha / dim), the header still has the trainer's alpha: what is stored is what is meant."""
    path = stored(tmp_path / "x.safetensors", {"ss_network_alpha": "1.0", "ss_network_dim": "32"})
    model = tiny.write_original(tmp_path / "m.safetensors", STATE)
    done = merge(str(model), [str(path)], str(tmp_path / "o.safetensors"))
    B, A = FACTORS[LAYER]
    added = load_file(tmp_path / "o.safetensors")[f"{LAYER}.weight"] - STATE[f"{LAYER}.weight"]
    torch.testing.assert_close(added, B @ A, rtol=1e-4, atol=1e-5)
    assert "ss_network_alpha" in done.notes[0]
    told = convert(str(path), "comfy", str(tmp_path / "c.safetensors"))
    assert "ss_network_alpha" in told.notes[0]
    again = read_lora(tmp_path / "c.safetensors")
    torch.testing.assert_close(again.updates[LAYER].dense(), B @ A)
    facts = facts_of(read_lora(path))
    assert facts is not None and not facts.header_scale
    assert {one.takes for one in verdicts(facts) if one.loader in ("ComfyUI", "diffusers")} == {"yes"}


def test_layers_without_alpha_among_others_are_told(tmp_path: Path) -> None:
    mixed = tensors(alpha=ALPHA)
    for layer in list(FACTORS)[:3]:
        del mixed[f"diffusion_model.{layer}.alpha"]
    save_file(mixed, tmp_path / "x.safetensors", {"ss_network_alpha": "1.0"})
    lora = read_lora(tmp_path / "x.safetensors")
    assert [lora.layers[layer].scale for layer in FACTORS] == [1.0] * 3 + [ALPHA / RANK] * (len(FACTORS) - 3)
    assert "3 of 20 layers have no alpha where others have one" in lora.notes[1] and "not applied" in lora.notes[0]


CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8}


@pytest.mark.parametrize(
    ("name", "prefix", "scale"),
    [
        ("pytorch_lora_weights.safetensors", "transformer.", 1.0),
        ("style.safetensors", "diffusion_model.", 1.0),
        ("style.safetensors", "base_model.model.", 2.0),
        ("adapter_model.safetensors", "diffusion_model.", 2.0),
    ],
)
def test_a_configuration_counts_for_pefts_own_weights(name: str, prefix: str, scale: float, tmp_path: Path) -> None:
    path = stored(tmp_path / name, prefix=prefix)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    lora = read_lora(path)
    assert scales(lora) == {scale}
    if scale == 1:
        assert "adapter_config.json beside it is 8: not applied" in lora.notes[0]
        (tmp_path / "adapter_config.json").write_text("{")
        assert read_lora(path).notes == ()
    else:
        assert lora.notes == ()


def test_an_alpha_tensor_overrules_a_configuration_aloud(tmp_path: Path) -> None:
    header = {"lora_adapter_metadata": json.dumps({"r": RANK, "lora_alpha": 8})}
    lora = read_lora(stored(tmp_path / "x.safetensors", header, alpha=ALPHA))
    assert scales(lora) == {ALPHA / RANK} and "has another scale than the file header" in lora.notes[0]
    header = {"lora_adapter_metadata": json.dumps({"r": RANK, "lora_alpha": ALPHA})}
    assert read_lora(stored(tmp_path / "x.safetensors", header, alpha=ALPHA)).notes == ()


def test_inspect_says_where_the_scale_comes_from(tmp_path: Path) -> None:
    path = stored(tmp_path / "x.safetensors", {"alpha": "8"})
    lines = summary_lines(describe(str(path)))
    assert lines["scale"] == "1 (no alpha anywhere)" and "alpha in the header is 8" in lines["note"][0]
    assert "note" not in summary_lines(describe(str(stored(path, {}))))


@pytest.mark.parametrize("inner", ["module.", "base_model.model.", "_orig_mod.module."])
def test_each_component_has_its_own_alpha_whatever_stands_behind_its_name(inner: str, tmp_path: Path) -> None:
    fields = {"transformer.lora_alpha": 8, "transformer_2.lora_alpha": 2}
    both = tensors(f"transformer.{inner}") | tensors(f"transformer_2.{inner}")
    both = {key: tensor.clone() for key, tensor in both.items()}
    save_file(both, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(fields)})
    high, low = (read_lora(tmp_path / "x.safetensors", part=one) for one in ("transformer", "transformer_2"))
    assert (scales(high), scales(low)) == ({2.0}, {0.5})


@pytest.fixture
def of_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family whose loaders take the header's alpha, as MiniMax-H3's do: here Wan's tables with that said of them."""
    monkeypatch.setitem(FAMILIES, "wan", replace(FAMILIES["wan"], header_alpha=True))  # type: ignore[index]


@pytest.mark.usefixtures("of_header")
def test_one_alpha_in_the_header_counts_for_every_layer_where_its_loaders_take_it(tmp_path: Path) -> None:
    path = stored(tmp_path / "x.safetensors", {"alpha": "8", "alphas": "3"})
    lora = read_lora(path)
    assert scales(lora) == {8 / RANK} and "alpha in the header is 8 and counts" in lora.notes[0]
    B, A = FACTORS[LAYER]
    torch.testing.assert_close(lora.updates[LAYER].dense(), 8 / RANK * (B @ A))
    assert describe(str(path))["alpha"] == {"file header (alpha)": len(FACTORS)}
    facts = facts_of(lora)
    assert facts is not None and facts.network_alpha and not facts.header_scale
    comfy = next(one for one in verdicts(facts) if one.loader == "ComfyUI")
    assert comfy.takes == "partly" and "alpha in the header" in comfy.reasons[0]
    convert(str(path), "comfy", str(tmp_path / "c.safetensors"))
    again = read_lora(tmp_path / "c.safetensors")  # the scale is inside the factors: nothing is applied twice
    assert scales(again) == {1.0} and "alpha" not in again.metadata and again.notes == ()
    torch.testing.assert_close(again.updates[LAYER].dense(), 8 / RANK * (B @ A), rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("of_header")
@pytest.mark.parametrize(
    ("header", "alpha", "scale"),
    [
        ({"alpha": "8"}, ALPHA, ALPHA / RANK),  # a tensor anywhere in the file, and the header's counts for none
        ({"alpha": "as trained"}, None, 1.0),
        ({"alpha": "4"}, None, 1.0),
        ({"ss_network_alpha": "8"}, None, 1.0),
        ({"lora_adapter_metadata": json.dumps({"r": RANK, "lora_alpha": 2}), "alpha": "8"}, None, 0.5),
    ],
)
def test_the_headers_alpha_comes_last(
    header: dict[str, str], alpha: float | None, scale: float, tmp_path: Path
) -> None:
    lora = read_lora(stored(tmp_path / "x.safetensors", header, alpha=alpha))
    assert scales(lora) == {scale}
    if header == {"alpha": "as trained"}:
        assert "no number" in lora.notes[0]


@pytest.mark.usefixtures("of_header")
@pytest.mark.parametrize("value", ["0", "nan"])
def test_a_headers_alpha_that_means_nothing_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="alpha in the header is"):
        read_lora(stored(tmp_path / "x.safetensors", {"alpha": value}))
