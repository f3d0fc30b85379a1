"""Layers of another shape among many that fit, and layers that the source lacks: said, not all refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from loraport.analysis.probe_model import ProbeConfig, probe
from loraport.analysis.probes import KeepDominant
from loraport.cli import app
from loraport.console import probe_words
from loraport.errors import InputError, MismatchError
from loraport.files.models.checkpoint import open_checkpoint
from loraport.inputs.accelerator import open_target
from loraport.merging import merge
from loraport.transfers.run import transfer
from tests import tiny
from tests.transfers.models import deltas, make_family

WIDE = {
    "patch_embedding.lora_A.weight": torch.randn(4, 8, 1, 2, 2, generator=torch.Generator().manual_seed(3)),
    "patch_embedding.lora_B.weight": torch.randn(24, 4, 1, 1, 1, generator=torch.Generator().manual_seed(4)),
}
"""A patch embedding of twice the channels, as control LoRAs have it."""


@pytest.fixture
def family(tmp_path):
    return make_family(tmp_path)


def with_keys(family, keys, name="lora.safetensors"):
    """The family's LoRA with more keys."""
    more = {f"diffusion_model.{key}": tensor for key, tensor in keys.items()}
    save_file(load_file(family.lora) | more, family.folder / name)
    return str(family.folder / name)


@pytest.mark.parametrize("method", ["casa", "direct"])
def test_one_layer_of_another_shape_is_set_aside(family, method):
    plain = transfer(family.config("plain.safetensors", method=method))
    result = transfer(family.config(lora=with_keys(family, WIDE, "wide.safetensors"), method=method))
    row = next(row for row in result.layers if row.name == "patch_embedding")
    assert row.status == "skipped" and "24 × 32" in row.reason and result.lost
    assert [key for key, _ in result.keys.dropped] == [f"diffusion_model.{key}" for key in sorted(WIDE)]
    assert load_file(result.output).keys() == load_file(plain.output).keys()


def test_patterns_come_before_shapes(family):
    """The user may ask for the rest, and for the layer as it is: no loss then, but a word about loaders."""
    for number, patterns in enumerate(({"exclude": ("patch",)}, {"include": ("blocks.*",)})):
        result = transfer(family.config(f"{number}.safetensors", lora=with_keys(family, WIDE), **patterns))
        row = next(row for row in result.layers if row.name == "patch_embedding")
        assert row.status == "copied" and "excluded by the user" in row.reason and not result.lost
        assert any("loaders may refuse" in note for note in result.warnings)
        assert sum(row.status == "transferred" for row in result.layers) == 20
        written = load_file(result.output)["diffusion_model.patch_embedding.lora_A.weight"]
        assert written.shape[1:] == (8, 1, 2, 2)


def test_most_layers_of_another_shape_are_another_model(family):
    """Six of ten; and an excluded one does not count for either side."""
    wrong = tiny.lora_factors(tiny.tiny_state(0, dim=16), rank=4)
    right = tiny.lora_factors(family.source_state, rank=4)
    names = sorted(right)[:10]
    for count, fits in ((6, False), (5, False), (4, True)):
        mixed = {name: (wrong if at < count else right)[name] for at, name in enumerate(names)}
        lora = str(tiny.write_lora(family.folder / f"{count}.safetensors", mixed))
        if fits:
            assert transfer(family.config(lora=lora)).lost
            assert len(merge(family.source, [lora], str(family.folder / "m.safetensors")).keys.dropped) == 8
            continue
        with pytest.raises(MismatchError, match="made for another model"):
            transfer(family.config(lora=lora))
        with pytest.raises(MismatchError, match="made for another model"):
            merge(family.source, [lora], str(family.folder / "no.safetensors"))
        assert transfer(family.config(lora=lora, exclude=tuple(names[:count]))).layers[0].status == "copied"


def test_merge_and_accelerators_leave_the_misfit_out(family):
    wide = with_keys(family, WIDE, "wide.safetensors")
    merged = merge(family.source, [wide], str(family.folder / "merged.safetensors"))
    assert merged.lost and [key for key, _ in merged.keys.dropped] == [f"diffusion_model.{key}" for key in sorted(WIDE)]
    alone = merge(family.source, [family.lora], str(family.folder / "alone.safetensors"))
    one, other = load_file(merged.output), load_file(alone.output)
    assert all(torch.equal(one[name], other[name]) for name in other)
    target = open_target(f"source+{wide}", open_checkpoint(family.source))
    assert len(target.weights) == 20 and any("no place" in note for note in target.notes(family.factors, 20))


@pytest.mark.parametrize(
    ("key", "tensor", "reason"),
    [
        ("patch_embedding.diff", torch.ones(24, 8, 1, 2, 2), "24 × 8 × 1 × 2 × 2"),
        ("blocks.0.ffn.0.diff_b", torch.ones(24), "it is 24"),
        ("blocks.0.diff_m", torch.ones(1, 6, 16), "1 × 6 × 16"),
        ("blocks.0.self_attn.norm_q.diff", torch.ones(16), "it is 16"),
        ("blocks.0.self_attn.norm_q.diff_b", torch.ones(24), "has no blocks.0.self_attn.norm_q.bias"),
        ("blocks.9.ffn.0.diff_b", torch.ones(40), "no such layer"),
    ],
)
def test_what_is_carried_through_fits_the_target_or_is_dropped(family, key, tensor, reason):
    result = transfer(family.config(lora=with_keys(family, {key: tensor}), method="direct"))
    assert result.lost and [(name, reason in why) for name, why in result.keys.dropped] == [
        (f"diffusion_model.{key}", True)
    ]
    assert f"diffusion_model.{key}" not in load_file(result.output)


def test_what_fits_is_carried_through_and_what_is_not_finite_is_refused(family):
    good = {"patch_embedding.diff": torch.ones(24, 4, 1, 2, 2), "blocks.0.diff_m": torch.ones(1, 6, 24)}
    result = transfer(family.config(lora=with_keys(family, good), method="direct"))
    assert not result.lost and {f"diffusion_model.{key}" for key in good} <= load_file(result.output).keys()
    for value in (float("nan"), float("-inf")):
        bad = {key: torch.full_like(tensor, value) for key, tensor in list(good.items())[:1]}
        with pytest.raises(InputError, match="NaN or infinite"):
            transfer(family.config("bad.safetensors", lora=with_keys(family, bad), method="direct"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "what"),
    [
        (lambda state: {name: W for name, W in state.items() if "blocks.0.ffn.0" not in name}, "lacks it"),
        (lambda state: {**state, "blocks.0.ffn.0.weight": torch.ones(32, 24)}, "has another shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_layer_that_the_source_has_not_is_a_loss(family, state, what):
    """Under casa; direct reuse needs no source, so nothing is lost there."""
    tiny.write_original(family.folder / "source.safetensors", state(family.source_state))
    common = ["--source", family.source, "--target", family.target, "--no-cache", "-o"]
    done = CliRunner().invoke(app, ["transfer", family.lora, *common, str(family.folder / "o.safetensors"), "--json"])
    told = json.loads(done.stdout)
    rows = {row["name"]: row for row in told["layers"]}
    assert done.exit_code == 3 and rows["blocks.0.ffn.0"]["drift_unknown"]
    assert "drift is unknown" in rows["blocks.0.ffn.0"]["reason"]
    assert any("blocks.0.ffn.0" in note and "not transferred" in note for note in told["warnings"])
    copied = deltas(family.folder / "o.safetensors")["blocks.0.ffn.0"]
    B, A = family.factors["blocks.0.ffn.0"]
    assert float((copied - (B @ A).double()).norm() / copied.norm()) < 1e-2
    for words, code in ((["--method", "direct"], 0), (["--exclude", "ffn.0"], 0), (["--method", "direct:1.1"], 3)):
        out = str(family.folder / f"{len(words[1])}.safetensors")
        done = CliRunner().invoke(app, ["transfer", family.lora, *common, out, *words])
        assert done.exit_code == code, done.output
        assert ("copied untransferred" in done.stdout) == (code == 3)


def test_a_probe_says_which_layers_of_its_lora_play_no_part(family):
    target = str(tiny.write_original(family.folder / "target.safetensors", family.target_state))
    for layers, unused in (((), ("patch_embedding",)), (("blocks.0.*",), None)):
        config = ProbeConfig(
            family.source, target, str(family.folder / f"{len(layers)}.safetensors"), KeepDominant(clusters="lora"),
            lora=with_keys(family, WIDE, "wide.safetensors"), layers=layers,
        )  # fmt: skip
        result = probe(config)
        assert result.unused == unused if unused else len(result.unused) == 11
        assert "patch_embedding" in probe_words(result)["LoRA"] or len(result.unused) == 11
    with pytest.raises(MismatchError, match=r"no layer of .* fits one that is probed"):
        probe(replace(config, layers=("head.*",), output=str(family.folder / "no.safetensors")))
