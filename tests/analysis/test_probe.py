"""The probes as files: the target's layout, its own bits where nothing changes, and parts that add up."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file

from loraport.analysis.probe_model import ProbeConfig, probe
from loraport.analysis.probes import KeepDominant, OverActivate
from loraport.errors import InputError, LoraportError
from loraport.files.formats.safetensors_read import read_safetensors
from loraport.files.models.checkpoint import open_checkpoint
from tests import tiny
from tests.transfers.models import make_family, make_rounded_family


@pytest.fixture
def family(tmp_path):
    return make_family(tmp_path)


def run(family, recipe, output="probed", **changes):
    given = {"source": family.source, "target": family.target, "output": str(family.folder / output), "probe": recipe}
    return probe(ProbeConfig(**{**given, "cache": str(family.folder / "cache"), **changes}))


def weights(path):
    model = open_checkpoint(path)
    return {name: model.tensor(name) for name in model}


@pytest.mark.parametrize(
    "recipe",
    [KeepDominant(0.0, directions="all"), OverActivate(top=0.0), OverActivate(mean=1.0, variance=0.0, noise="factors")],
    ids=str,
)
def test_a_probe_of_nothing_is_the_target_bit_by_bit(family, recipe):
    done = run(family, recipe)
    assert (done.layers, done.untouched, done.changed) == (0, 27, 0.0)
    before, after = weights(family.target), weights(done.output)
    assert all(torch.equal(before[name], after[name]) for name in before) and len(before) == len(after)


def test_what_is_kept_and_what_is_removed_add_up_and_the_rest_is_the_targets(family):
    done = run(family, KeepDominant(0.6, directions="all", clusters="single"))
    source, target, after = family.source_state, weights(family.target), weights(done.output)
    assert done.layers > 20 and 0 < done.changed < 1
    for name in (f"{layer}.weight" for layer in open_checkpoint(family.source).layers):
        kept, removed, drift = after[name] - source[name], target[name] - after[name], target[name] - source[name]
        assert torch.allclose(kept + removed, drift, atol=1e-6)
        assert abs(float((kept * removed).sum())) < 1e-4 * float(drift.square().sum()), "orthogonal parts"
    assert all(torch.equal(target[name], after[name]) for name in target if not name.endswith(".weight"))
    folder = family.folder / "probed"
    assert (folder / "config.json").is_file()
    note = json.loads(read_safetensors(next(folder.glob("*.safetensors"))).metadata["loraport.probe"])
    assert note == {
        "probe": "KeepDominant", "q": 0.6, "directions": "all", "clusters": "single", "tau": 1.0, "energy": 0.9,
        "eps": 1e-6, "seed": 0,
    }  # fmt: skip


def test_the_papers_model_has_no_drift_beyond_the_leading_directions(family):
    """So even with every cluster dominant it is not the target, and less of the drift's energy stays than in ours."""
    printed = run(family, KeepDominant(0.0), "printed")
    ours = run(family, KeepDominant(0.0, directions="all"), "ours")
    assert ours.changed == 0 < printed.changed < 1
    halves = [run(family, KeepDominant(0.5, directions=one), f"half-{one}").changed for one in ("leading", "all")]
    assert halves[0] > halves[1]


def test_more_is_removed_at_a_higher_quantile_and_a_lora_changes_the_clusters(family):
    shares = [run(family, KeepDominant(q, clusters="single"), f"q{q}").changed for q in (0.2, 0.5, 1.0)]
    assert shares == sorted(shares) and shares[2] < 1
    by_lora = KeepDominant(0.5, clusters="lora", tau=0.3)
    assert run(family, by_lora, "clustered", lora=family.lora).changed != pytest.approx(shares[1])


@pytest.mark.parametrize("noise", ["printed", "scaled", "factors"])
def test_over_activation_disturbs_in_the_unit_that_was_chosen(noise, family):
    """The printed noise has no unit and drowns the drift; in units of the blocks it is of the drift's own size."""
    changed = run(family, OverActivate(noise=noise), noise).changed
    assert changed > 10 if noise == "printed" else 0.05 < changed < 10


def test_over_activation_repeats_with_its_seed_alone(family):
    one, same, other = (
        load_file(next((family.folder / name).glob("*.safetensors")))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
        if run(family, OverActivate(noise="scaled"), name, seed=seed).changed > 0.05
    )
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_the_parts_of_a_pickle_can_be_named(family, tmp_path):
    """Between a pickle's two parts there is a drift; between one part and itself there is none."""
    states = {"generator": family.source_state, "generator_ema": family.target_state}
    path = str(tiny.write_pickle(tmp_path / "both.pt", states))
    given = {"source": path, "target": family.target}
    drift = run(family, KeepDominant(0.5), "a", **given, source_part="generator")
    none = run(family, KeepDominant(0.5), "b", **given)
    assert drift.layers > 20 and (none.layers, none.changed) == (0, None)


def test_only_the_layers_that_fit_are_probed(family):
    done = run(family, KeepDominant(0.5), layers=("blocks.1.ffn",))
    assert done.layers == 2 and len(done.left_out) == 25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "source+x.safetensors"}, "merge the accelerator"),
        ({"layers": ("nothing",)}, "nothing to probe"),
        ({"lora": "some.safetensors"}, "a LoRA plays no part in clusters drift"),
        ({"output": "file.safetensors"}, "name a folder"),
    ],
    ids=str,
)
def test_what_cannot_be_probed_is_refused(family, changes, message):
    if "output" in changes:
        changes = {"output": str(family.folder / changes["output"])}
    with pytest.raises(LoraportError, match=message):
        run(family, KeepDominant(), **changes)


def test_clusters_by_a_lora_need_one(family):
    with pytest.raises(InputError, match="name it with --lora"):
        run(family, KeepDominant(clusters="lora"))


def test_a_drift_within_rounding_is_left_as_it_is_unless_it_is_forced(tmp_path):
    """As a transfer copies the LoRA there: one rule for both."""
    family = make_rounded_family(tmp_path)
    done = run(family, KeepDominant(0.5))
    assert done.layers == 0 and done.untouched > 20
    assert run(family, KeepDominant(0.5), "forced", force_drift=True).layers > 20


def test_a_quantised_target_is_refused(family, tmp_path):
    small = {name: W.to(torch.float8_e4m3fn) if W.dim() == 2 else W for name, W in family.target_state.items()}
    path = tiny.write_original(tmp_path / "small.safetensors", small)
    with pytest.raises(InputError):
        run(family, KeepDominant(), "small-probed.safetensors", target=str(path))


def test_the_cache_is_written_when_a_probe_has_ended(family, tmp_path, monkeypatch):
    from loraport.store.bases import BasisCache

    own = BasisCache._write

    def slowly(self, key, tensors):
        time.sleep(0.2)
        own(self, key, tensors)

    monkeypatch.setattr(BasisCache, "_write", slowly)
    run(family, KeepDominant(q=0.3), cache=str(tmp_path / "cache"), layers=("blocks.1.ffn",))
    kept = sorted(path.name for path in (tmp_path / "cache").rglob("*.safetensors"))
    time.sleep(0.5)
    assert kept and kept == sorted(path.name for path in (tmp_path / "cache").rglob("*.safetensors"))
