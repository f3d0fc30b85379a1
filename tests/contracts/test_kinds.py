"""What loaders take beside plain LoRAs, as their sources say; `inspect` in ten lines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraport.files.inspect import describe, summary_lines
from loraport.files.loaders.table import LOADERS
from tests.dialects import CASES, write

Q = "diffusion_model.blocks.0.self_attn.q"
FLAT = "lora_unet_blocks_0_self_attn_q"
AB = {".lora_A.weight": torch.ones(2, 8), ".lora_B.weight": torch.ones(8, 2)}
DOWN_UP = {".lora_down.weight": torch.ones(2, 8), ".lora_up.weight": torch.ones(8, 2)}
LOHA = {
    ".hada_w1_a": torch.ones(8, 2),
    ".hada_w1_b": torch.ones(2, 8),
    ".hada_w2_a": torch.ones(8, 2),
    ".hada_w2_b": torch.ones(2, 8),
}
LOKR = {".lokr_w1": torch.ones(2, 2), ".lokr_w2": torch.ones(4, 4)}
ALPHA = {".alpha": torch.tensor(2.0)}

FILES: dict[str, tuple[str, dict[str, Tensor], set[str], set[str]]] = {
    # stem, tensors, who takes all of it, who takes a part
    "LoHa": (Q, LOHA, {"ComfyUI"}, set()),
    "LoHa of kohya": (FLAT, LOHA | ALPHA, {"ComfyUI", "musubi-tuner"}, set()),
    "LoKr of kohya": (FLAT, LOKR | ALPHA, {"ComfyUI", "musubi-tuner"}, set()),
    "DoRA": (Q, AB | {".dora_scale": torch.ones(8, 1)}, {"ComfyUI", "Wan2GP"}, set()),
    "DoRA of kohya": (FLAT, DOWN_UP | ALPHA | {".dora_scale": torch.ones(8, 1)}, {"ComfyUI", "Wan2GP"}, set()),
    "a bias": (
        Q,
        AB | {".diff_b": torch.ones(8)},
        {"ComfyUI", "diffusers", "LightX2V", "Wan2GP"},
        {"FastVideo", "Krea", "Rolling Forcing"},
    ),
    "a modulation": (
        Q,
        AB | {".diff_m": torch.ones(1, 6, 8)},
        {"LightX2V"},
        {"ComfyUI", "diffusers", "FastVideo", "Krea", "Rolling Forcing"},
    ),
    "kohya, incomplete": (FLAT, DOWN_UP | ALPHA, {"ComfyUI", "musubi-tuner", "Wan2GP"}, set()),
    "kohya without alpha": (FLAT, DOWN_UP, {"ComfyUI", "Wan2GP"}, set()),
    "alpha unlike rank": (
        Q,
        AB | {".alpha": torch.tensor(1.0)},
        {"ComfyUI", "diffusers", "LightX2V", "Krea", "Rolling Forcing", "Wan2GP"},
        {"FastVideo"},
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_who_takes_it(name: str, tmp_path: Path) -> None:
    stem, parts, yes, partly = FILES[name]
    save_file({stem + part: tensor for part, tensor in parts.items()}, tmp_path / "x.safetensors")
    rows = {row["loader"]: row for row in describe(str(tmp_path / "x.safetensors"))["loaders"]}
    assert {loader for loader, row in rows.items() if row["takes"] == "yes"} == yes
    assert {loader for loader, row in rows.items() if row["takes"] == "partly"} == partly
    assert all(row["reasons"] and row["format"] for row in rows.values() if row["takes"] != "yes")


@pytest.mark.parametrize("case", ["g4", "g5", "g3-patterns", "g9-processor"])
def test_ten_lines(case: str, tmp_path: Path) -> None:
    facts = describe(str(write(CASES[case], tmp_path).path))
    lines = summary_lines(facts)
    assert len(lines) == 10 and all("\n" not in str(line) for line in lines.values())
    named = " ".join(str(lines[name]) for name in ("taken by", "partly by", "not by"))
    assert all(loader.name in named for loader in LOADERS if "wan" in loader.spellings)
    assert next(iter(facts["alpha"])) in lines["scale"]


def test_unknown_names_have_no_verdicts_and_models_keep_their_facts(tmp_path: Path) -> None:
    save_file({f"some.thing{part}": tensor for part, tensor in AB.items()}, tmp_path / "x.safetensors")
    facts = describe(str(tmp_path / "x.safetensors"))
    assert facts["loaders"] == [] and summary_lines({"kind": "model"}) == {"kind": "model"}
    assert "none of the loaders" in summary_lines(facts)["taken by"]


def test_the_page_of_each_family_names_its_loaders_and_where_they_were_read() -> None:
    folder = Path(__file__).parents[2] / "docs" / "reference" / "formats"
    for loader in LOADERS:
        for family in loader.spellings:
            page = (folder / f"{family}.md").read_text(encoding="utf-8").partition("## Loaders")[2]
            assert f"| {loader.name} |" in page and loader.source.replace("|", "/") in page
