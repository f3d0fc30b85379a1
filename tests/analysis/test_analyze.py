"""Analysis and sweep from files: every layer or a fair sample, kept through a kill, true about the pair of models."""

import dataclasses

import pytest
import torch

from loraport.analysis.inputs import AnalyzeConfig
from loraport.analysis.run import LAYERS, analyze
from loraport.analysis.survey import shared_layers
from loraport.analysis.sweep import Grid, layer_rows, sweep
from loraport.errors import SettingsError
from loraport.files.models.checkpoint import open_checkpoint
from loraport.files.names.blocks import layer_depth, layer_kind
from loraport.inputs.layer_sample import sample_layers
from loraport.inputs.plan import LayerJob
from loraport.methods.casa import casa
from loraport.methods.settings import CasaSettings
from loraport.spectral.krylov import is_small
from loraport.spectral.low_rank import factorize, kept_correction
from loraport.transfers.run import transfer
from tests import tiny
from tests.layers import generator, layer_of, random_weights
from tests.progress import Reports
from tests.transfers.adapters import LAYERS as FEW
from tests.transfers.adapters import MAKERS, added
from tests.transfers.models import make_family, make_rounded_family


@pytest.fixture
def family(tmp_path):
    return make_family(tmp_path)


def config(family, **changes):
    given = {
        "lora": family.lora,
        "source": family.source,
        "target": family.target,
        "cache": str(family.folder / "cache"),
    }
    return AnalyzeConfig(**{**given, "output": str(family.folder / "out"), "detail": 1, **changes})


def numbers(analysis):
    return [{**layer.row(), "seconds": 0} for layer in analysis.layers]


def test_every_layer_has_a_row_and_a_few_have_curves(family):
    seen = analyze(config(family))
    assert len(seen.layers) == 20 and len(seen.curves) == 1 and seen.left_out == ()
    assert seen.layers[0].name == "blocks.0.cross_attn.k" and {layer.depth for layer in seen.layers} == {0, 1}
    assert all(0.09 < row["drift"] < 0.11 and 0.09 < row["lora"] < 0.11 for row in numbers(seen))
    assert not (family.folder / "out.partial").exists()


def test_patterns_and_samples_limit_and_say_so(family):
    seen = analyze(config(family, layers=("ffn",), sample=2, detail=0))
    assert [layer.kind for layer in seen.layers] == ["ffn.0", "ffn.2"] and seen.curves == {}
    reasons = dict(seen.left_out)
    assert len(reasons) == 18 and reasons["blocks.0.self_attn.q"] == "excluded by the user"
    assert sorted(reasons.values()).count("not in the sample") == 2
    assert len(seen.survey.layers) == 27, "the survey is of the whole model"


@pytest.mark.slow
def test_a_killed_analysis_goes_on_to_the_same_numbers(family):
    whole = analyze(config(family))
    grids = [Grid.parse("q_dom=0.3/0.7")]
    with pytest.raises(KeyboardInterrupt):
        analyze(config(family), grids, progress=Reports(LAYERS, stop_at=8))  # the first report is of the beginning
    assert len(list((family.folder / "out.partial").iterdir())) == 27 + 7
    again = analyze(config(family), grids)
    assert numbers(again) == numbers(whole) and len(again.sweeps[0].rows) == 40
    assert all(
        torch.allclose(again.curves[name][key], curve, equal_nan=True)
        for name in whole.curves
        for key, curve in whole.curves[name].items()
    )


def test_the_survey_knows_relatives_twins_and_strangers(family, tmp_path):
    def survey(state):
        path = tiny.write_original(tmp_path / "other.safetensors", state)
        return analyze(config(family, target=str(path), layers=("blocks.0.ffn.0",), detail=0)).survey

    source = family.source_state
    twin = survey(source)
    assert twin.identical == 1 and "no drift" in twin.verdict()
    part = survey({name: W if "blocks.0" in name else tiny.drifted({name: W})[name] for name, W in source.items()})
    assert 0.3 < part.identical < 0.5 and "relative" in part.verdict() and part.outliers() == ()
    far = survey(tiny.drifted(source) | {"blocks.1.ffn.2.weight": 3 * source["blocks.1.ffn.2.weight"]})
    assert far.outliers() == ("blocks.1.ffn.2",)
    stranger = survey(tiny.tiny_state(99))
    assert "probably not the target's base" in stranger.verdict()
    assert max(layer.cosine for layer in stranger.layers) < 0.3 and min(layer.cosine for layer in far.layers) > 0.9


@pytest.mark.slow
def test_rounding_is_told_from_drift(family, tmp_path):
    def survey(name, state):
        path = tiny.write_original(tmp_path / name, {key: W.bfloat16() for key, W in state.items()})
        return analyze(config(family, target=str(path), layers=("blocks.0.ffn.0",), detail=0)).survey

    assert survey("rounded.safetensors", family.source_state).identical == 1
    noise = survey("noise.safetensors", tiny.drifted(family.source_state, size=1e-3))
    assert len(noise.rounding) == len(noise.layers) == 27 and noise.identical == 0
    assert survey("drift.safetensors", tiny.drifted(family.source_state, size=2e-2)).rounding == ()


def test_the_survey_reads_the_shards_that_the_lora_does_not_touch(family, tmp_path):
    places = {}
    for name, state in (("source", family.source_state), ("target", family.target_state)):
        places[name] = str(tmp_path / f"{name}-shards")
        tiny.write_shards(tmp_path / f"{name}-shards", tiny.in_diffusers_names(state))
    lora = str(tiny.write_lora(tmp_path / "one.safetensors", {FEW[0]: family.factors[FEW[0]]}))
    seen = analyze(config(family, lora=lora, detail=0, **places))
    assert [layer.name for layer in seen.layers] == FEW[:1]
    assert len(seen.survey.layers) == 27 and seen.survey.not_fetched == 0
    some = (open_checkpoint(places[name], layers={FEW[0]}) for name in ("source", "target"))
    names, partly = shared_layers(*some)
    assert 0 < len(names) < 27 and partly.not_fetched >= 27 - len(names), "what is not opened is said"
    assert partly.only_source == partly.only_target == 0


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_adapter_is_looked_at_as_what_it_adds(tmp_path, kind):
    family = make_family(tmp_path, rank=2)
    place = MAKERS[kind](family)
    seen = analyze(config(family, lora=place, detail=0))
    assert [layer.name for layer in seen.layers] == sorted(FEW)
    for layer in seen.layers:
        W = family.source_state[f"{layer.name}.weight"].double()
        size = float(added(family, place, family.source_state, layer.name).norm() / W.norm())
        assert layer.row()["lora"] == pytest.approx(size, rel=1e-4)


def test_parts_of_a_pickle_are_different_targets(family, tmp_path):
    """The moving average is the target unless the other part is asked for, here the source itself: no drift."""
    states = {"generator": family.source_state, "generator_ema": family.target_state}
    path = str(tiny.write_pickle(tmp_path / "both.pt", states))
    average, other = (analyze(config(family, target=path, target_part=part, detail=0)) for part in (None, "generator"))
    assert average.survey.identical == 0 and other.survey.identical == 1
    assert other.survey.median() is None and average.survey.median() > 0.05


def test_layers_of_another_shape_are_counted(family, tmp_path):
    other = tiny.write_original(tmp_path / "wider.safetensors", tiny.tiny_state(0, ffn=48, blocks=1))
    names, survey = shared_layers(open_checkpoint(family.source), open_checkpoint(str(other)))
    assert (survey.other_shape, survey.only_source, survey.only_target) == (2, 10, 0)
    assert len(names) == 15


def test_a_sweep_agrees_with_the_transfer_and_knows_its_ends(family):
    grid = Grid.parse("q_dom=0/0.5/1,restore=0/1")
    [swept] = sweep(config(family, layers=("blocks.0",)), [grid])
    assert len(swept.rows) == 10 * 6 and swept.knobs == ("q_dom", "restore")
    moved = {layer.name: layer for layer in transfer(family.config(include=("blocks.0",))).layers}
    for row in swept.rows:
        if (row["q_dom"], row["restore"]) == (0.5, 1):
            layer = moved[row["layer"]]
            assert row["kept_correction"] == pytest.approx(layer.kept_correction, rel=1e-3)
            assert row["kept_energy"] == pytest.approx(layer.kept_energy, rel=1e-3)
            assert row["clusters"] == layer.clusters
    none = transfer(family.config("none.safetensors", include=("blocks.0",), settings=CasaSettings(restore=0.0)))
    shown = {row["layer"]: row for row in swept.rows if (row["q_dom"], row["restore"]) == (0.5, 0)}
    assert all(shown[layer.name]["restored"] == layer.restored == 0 for layer in none.layers if layer.name in shown)
    by = {(row["q_dom"], row["restore"]): row for row in swept.rows if row["layer"] == "blocks.0.self_attn.q"}
    assert by[0, 1]["restored"] < by[0.5, 1]["restored"] < by[1, 1]["restored"]
    assert by[1, 1]["distance"] < by[0.5, 1]["distance"] < by[0.5, 0]["distance"], "restoring leads back to the source"
    assert by[0.5, 1]["distance_written"] > by[0.5, 1]["distance"], "truncation keeps some of the drift"


@pytest.mark.parametrize("kind", MAKERS)
def test_a_sweep_truncates_to_the_rank_that_the_transfer_takes(tmp_path, kind):
    """Of a DoRA that is not twice the rank of its factors: what it adds to the weight has more."""
    family = make_family(tmp_path, rank=2)
    place = MAKERS[kind](family)
    [swept] = sweep(config(family, lora=place), [Grid.parse("q_dom=0.5")])
    moved = {layer.name: layer for layer in transfer(family.config(lora=place)).layers}
    for row in swept.rows:
        assert row["kept_correction"] == pytest.approx(moved[row["layer"]].kept_correction, rel=0.05)


@pytest.mark.parametrize("shape", [(230, 200), (200, 230)], ids=["tall", "wide"])
def test_a_swept_layer_has_the_numbers_of_its_dense_updates(shape):
    """Truncation in coordinates of the basis against that of the dense matrix, and against one direction less."""
    layer, rank = layer_of(*random_weights(shape, 3, rank=2, drift=0.1)), 2  # a gap behind the second direction
    assert not is_small(shape, rank)
    points = Grid.parse("q_dom=0/0.5,restore=0.5/1").settings(CasaSettings())
    job = LayerJob("blocks.0.ffn.0", "transfer", shape, 2)
    for row, (_, settings) in zip(layer_rows(layer, job, points, rank), points, strict=True):
        update = casa(layer, settings)
        dense, lora = update.dense(), layer.lora.dense()
        exact, less = (factorize(dense, count, generator=generator(0)) for count in (rank, rank - 1))
        assert row["kept_energy"] == pytest.approx(1 - exact.lost_energy, rel=1e-6)
        assert row["kept_energy"] != pytest.approx(1 - less.lost_energy, rel=1e-3)
        wanted = kept_correction(exact, layer.lora, dense - lora)
        assert row["kept_correction"] == pytest.approx(wanted, rel=1e-5)
        written = torch.linalg.vector_norm(exact.dense() + layer.drift - lora) / layer.lora.norm()
        assert row["distance_written"] == pytest.approx(float(written), rel=1e-6)


@pytest.mark.parametrize(
    ("text", "points"),
    {
        "q_dom=0.3:0.7:0.05": 9,
        "q-dom=0.1": 1,
        "tau=0.5/1/2,q_act=0.8:0.9:0.1": 6,
        "restore=0:1:0.3": 4,
    }.items(),
)
def test_grids_have_their_points(text, points):
    assert len(Grid.parse(text).points()) == points


def test_the_ends_of_a_range_are_exact():
    assert Grid.parse("q_dom=0.3:0.7:0.05").values["q_dom"][-1] == 0.7


@pytest.mark.parametrize(
    "text", ["rank=3", "tau", "tau=", "tau=1:0:0.1", "tau=0:1:0", "tau=a/b", "tau=1,tau=2", "q_dom=0:1:1e-9", "tau=1:2"]
)
def test_wrong_grids_are_refused(text):
    with pytest.raises(SettingsError):
        Grid.parse(text)


def test_values_out_of_range_are_refused_before_the_work(family):
    with pytest.raises(SettingsError, match="q_dom is 2"):
        sweep(config(family), [Grid.parse("q_dom=2")])
    for change in ({"sample": 0}, {"detail": -1}):
        with pytest.raises(SettingsError):
            dataclasses.replace(config(family), **change)


@pytest.mark.slow
def test_an_analysis_and_a_sweep_show_the_transfer_that_would_be_made(tmp_path):
    """A drift within rounding counts as none, for all of them, unless it is forced, for all of them."""
    family = make_rounded_family(tmp_path)
    grids = [Grid.parse("q_dom=0.3/0.6")]
    assert {row.status for row in transfer(family.config()).layers} == {"copied"}
    shown = analyze(config(family), grids)
    for layer in shown.layers:
        row = layer.row()
        assert row["copied"] and row["restored"] == row["arbitrated"] == 0 and row["drift"] > 0.002
        assert row["norm_casa"] == pytest.approx(row["lora"], rel=1e-4)
    assert shown.sweeps[0].rows == ()
    assert any("transfer copies the LoRA" in note for note in shown.notes)

    forced = analyze(config(family, force_drift=True, output=str(tmp_path / "forced")), grids)
    done = {row.name: row for row in transfer(family.config("forced.safetensors", force_drift=True)).layers}
    for layer in forced.layers:
        row = layer.row()
        assert not row["copied"] and row["drift"] == pytest.approx(done[layer.name].drift, rel=1e-5)
        assert row["restored"] == pytest.approx(done[layer.name].restored) and row["restored"] > 0
    assert len(forced.sweeps[0].rows) == 2 * len(forced.layers)


def test_samples_are_fair_to_kinds_and_depths():
    names = [f"blocks.{depth}.{kind}" for depth in range(30) for kind in ("attn.q", "attn.k", "ffn.0", "ffn.2")]
    some = sample_layers([*names, "head"], 13)
    kinds = [layer_kind(name) for name in some]
    assert len(some) == 13 and {kind: kinds.count(kind) for kind in set(kinds)} == {
        "attn.q": 3, "attn.k": 3, "ffn.0": 3, "ffn.2": 3, "head": 1
    }  # fmt: skip
    depths = sorted(layer_depth(name) for name in some if name != "head")
    assert depths[0] < 5 and depths[-1] > 24 and len(set(depths)) > 9
    two = sample_layers(names, 2)
    assert two == sample_layers(names, 2) and len({layer_kind(name) for name in two}) == 2
    assert sample_layers(names, 1000) == tuple(names) and sample_layers(names, 0) == ()
    assert (layer_kind("head.head"), layer_depth("head.head")) == ("head.head", None)
