"""How the rows of q, k and v lie where names do not tell: by the files, by the drift, as asked; else it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraport.errors import SettingsError
from loraport.files.models.checkpoint import open_checkpoint
from loraport.files.models.layout import assumed_layout, layout_of, parse_layouts
from loraport.inputs.config import TransferConfig
from loraport.inputs.open import prepare
from loraport.merging import merge
from loraport.transfers.run import transfer
from loraport.workers.plan import config_from, config_json
from tests.families import State, minimax_h3, original_h3

pytest.importorskip("diffusers")
Q = "transformer_blocks.0.attn.to_q"


def write(path: Path, state: State, how: str) -> str:
    """A model: diffusers' names, or the original's with rows stacked or interleaved, in one file or in two shards."""
    if how == "diffusers":
        tensors = {name: value.contiguous().clone() for name, value in state.items()}
    else:
        tensors = original_h3(state, interleaved="interleaved" in how)
    if "shards" not in how:
        save_file(tensors, path.with_suffix(".safetensors"))
        return str(path.with_suffix(".safetensors"))
    path.mkdir()
    names = sorted(tensors)
    where = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(names)}
    for shard in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == shard}, path / shard)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return str(path)


@pytest.fixture(scope="module")
def states() -> tuple[State, State]:
    one = {name: value.detach().clone() for name, value in minimax_h3().state_dict().items()}
    generator = torch.Generator().manual_seed(7)
    return one, {name: value + 0.05 * value.abs().mean() * torch.randn(value.shape, generator=generator)
                 for name, value in one.items()}  # fmt: skip


@pytest.fixture
def lora(tmp_path: Path) -> tuple[str, Tensor]:
    """A LoRA of q in diffusers' names, which are the same in every layout."""
    A, B = torch.ones(2, 12) / 9, torch.randn(256, 2, generator=torch.Generator().manual_seed(1))
    keys = {f"transformer.{Q}.lora_A.weight": A, f"transformer.{Q}.lora_B.weight": B}
    save_file(keys, tmp_path / "lora.safetensors")
    return str(tmp_path / "lora.safetensors"), B.double() @ A.double()


CASES = {
    # source, target, the flag -> the layouts taken, and a word of the note
    ("stacked", "stacked", ""): ("stacked", "stacked", "one file"),
    ("stacked", "interleaved shards", ""): ("stacked", "interleaved", "in several files"),
    ("diffusers", "interleaved", ""): (None, "interleaved", "since only so"),
    ("diffusers", "stacked shards", ""): (None, "stacked", "since only so"),
    ("interleaved", "diffusers", ""): ("interleaved", None, "since only so"),
    ("interleaved", "stacked", "source=interleaved"): ("interleaved", "stacked", "one file"),
    ("stacked", "interleaved", "source=stacked"): ("stacked", "interleaved", "since only so"),
    ("stacked", "interleaved", ""): ("stacked", "interleaved", "since only so"),
    ("interleaved shards", "stacked shards", ""): ("interleaved", "stacked", "since only so"),
    ("interleaved", "interleaved", "interleaved"): ("interleaved", "interleaved", ""),
}


@pytest.mark.parametrize("case", CASES, ids=" - ".join)
def test_what_is_taken_is_said_and_right(
    case: tuple[str, str, str], states: tuple[State, State], lora: tuple[str, Tensor], tmp_path: Path
) -> None:
    source, target = (write(tmp_path / name, state, how) for name, state, how in zip("st", states, case, strict=False))
    config = TransferConfig(lora[0], source, target, str(tmp_path / "o.safetensors"), qkv=(case[2],) if case[2] else ())
    inputs = prepare(config)
    taken = (layout_of(inputs.source), layout_of(inputs.target))  # type: ignore[arg-type]
    assert taken == CASES[case][:2]
    assert any(CASES[case][2] in note for note in ("", *inputs.plan.warnings))
    for model, state in zip((inputs.source, inputs.target), states, strict=True):
        assert torch.equal(model.tensor(f"{Q}.weight"), state[f"{Q}.weight"])  # type: ignore[union-attr]
    row = transfer(config).layers[0]
    assert row.drift is not None and row.drift < 0.1


@pytest.mark.parametrize("case", [("stacked shards", "stacked"), ("interleaved", "interleaved shards")])
def test_where_nothing_tells_which_it_is_refused(
    case: tuple[str, str], states: tuple[State, State], lora: tuple[str, Tensor], tmp_path: Path
) -> None:
    """Taken as they seem, the drift would be that of other rows."""
    places = [write(tmp_path / name, state, how) for name, state, how in zip("st", states, case, strict=True)]
    with pytest.raises(SettingsError, match="say which order it is: --qkv stacked or --qkv interleaved") as caught:
        prepare(TransferConfig(lora[0], *places, str(tmp_path / "o.safetensors")))
    assert "\n" not in str(caught.value)
    wrong = [assumed_layout(open_checkpoint(place), None, "source") for place in places]
    one, other = (model.tensor(f"{Q}.weight") for model in wrong)
    assert float((one - other).norm() / one.norm()) > 1


@pytest.mark.parametrize("how", ["stacked", "interleaved shards"])
def test_a_merge_puts_the_rows_where_the_file_has_them(
    how: str, states: tuple[State, State], lora: tuple[str, Tensor], tmp_path: Path
) -> None:
    place = write(tmp_path / "m", states[0], how)
    out = tmp_path / ("out" if "shards" in how else "out.safetensors")
    done = merge(place, [lora[0]], out)
    assert any("--qkv model=" in note for note in done.notes)
    wanted = {**states[0], f"{Q}.weight": (states[0][f"{Q}.weight"].double() + lora[1]).float()}
    files = sorted(out.glob("*.safetensors")) if out.is_dir() else [out]
    got = {name: value for file in files for name, value in load_file(file).items()}
    for name, tensor in original_h3(wanted, interleaved="interleaved" in how).items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-6, atol=1e-6)
    other = tmp_path / ("other" if "shards" in how else "other.safetensors")
    merge(place, [lora[0]], other, qkv=["model=stacked" if "shards" in how else "model=interleaved"])
    files = sorted(other.glob("*.safetensors")) if other.is_dir() else [other]
    moved = {name: value for file in files for name, value in load_file(file).items()}
    assert not torch.allclose(moved["blocks.0.attn.qkv_proj.weight"], got["blocks.0.attn.qkv_proj.weight"])


def test_a_run_of_many_workers_keeps_the_flag() -> None:
    config = TransferConfig("a", "b", "c", "d.safetensors", qkv=("lora=stacked", "source=interleaved"))
    assert config_from(json.loads(json.dumps(config_json(config)))).qkv == config.qkv
    assert config.recorded_settings()["qkv"] == ["lora=stacked", "source=interleaved"]
    assert "qkv" not in TransferConfig("a", "b", "c", "d.safetensors").recorded_settings()


def test_words_of_the_flag() -> None:
    roles = ("lora", "source", "target")
    assert parse_layouts(["interleaved"], roles) == dict.fromkeys(roles, "interleaved")
    assert parse_layouts(["lora=stacked", "source=interleaved"], roles) == {"lora": "stacked", "source": "interleaved"}
    with pytest.raises(SettingsError, match="'interleaved'"):
        parse_layouts(["interleave"], roles)
    with pytest.raises(SettingsError, match="'sauce'; known: lora, source, target"):
        parse_layouts(["sauce=stacked"], roles)
    with pytest.raises(SettingsError, match="both stacked and interleaved"):
        parse_layouts(["interleaved", "lora=stacked"], roles)
    with pytest.raises(SettingsError):
        TransferConfig("a", "b", "c", "d.safetensors", qkv=("rows",))
