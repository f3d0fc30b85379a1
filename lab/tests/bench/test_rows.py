"""Ablations and negative controls are what they are called, and are not what they are not called."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")

from loraport.methods.casa import casa
from loraport.methods.layer import Layer
from loraport.methods.recipes import find_recipe
from loraport.methods.settings import PAPER
from loraport.spectral.basis import decompose
from loraport.spectral.kernels import inner
from loraport.spectral.low_rank import LowRank
from loraport_lab.bench.calibration import calibration_rows
from loraport_lab.bench.material import Material, all_cells
from loraport_lab.bench.negative_controls import theseus
from loraport_lab.bench.premises import premises
from loraport_lab.bench.rows import (
    BARE_PROBES,
    BARE_STUDENT,
    MAIN,
    NO_CLUSTERS,
    NO_DOMINANCE,
    STUDIES,
    STUDY_CELLS,
    Row,
    rows_of,
)
from loraport_lab.family.family import CELLS, FAMILY

SHAPES = {"square": (24, 24), "tall": (36, 24), "wide": (24, 36)}


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(shape: str, *, lora: float = 0.3, drift: float = 0.1) -> Layer:
    out, into = SHAPES[shape]
    W, F = random(out, into, seed=1), drift * random(out, into, seed=2)
    low = LowRank(lora * random(out, 4, seed=3), random(4, into, seed=4))
    return Layer(low, F, decompose(W), decompose(W + F))


def is_near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).norm() <= 1e-6 * other.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_without_clusters_is_with_clusters_of_one_member_and_else_another_thing(shape):
    weak, strong = layer(shape, lora=1e-6), layer(shape)
    assert casa(weak).facts["largest_cluster"] == pytest.approx(1 / casa(weak).facts["k"])
    assert is_near(casa(weak, NO_CLUSTERS).dense(), casa(weak).dense())
    assert casa(strong).facts["clusters"] < casa(strong).facts["k"] == casa(strong, NO_CLUSTERS).facts["clusters"]
    assert not is_near(casa(strong, NO_CLUSTERS).dense(), casa(strong).dense())


@pytest.mark.parametrize("shape", SHAPES)
def test_without_dominance_nothing_is_restored_and_all_that_agrees_is_a_candidate(shape):
    one = layer(shape)
    plain = casa(one, NO_DOMINANCE)
    assert plain.facts["restored"] == 0 and plain.facts["k"] == 24
    assert is_near(casa(one, replace(NO_DOMINANCE, restore=0.0)).dense(), plain.dense())
    assert not is_near(casa(one, replace(PAPER, restore=0.0)).dense(), casa(one).dense())
    every = casa(one, replace(NO_DOMINANCE, q_act=0.0)).facts["arbitrated"]
    C_lora = one.basis.U.mT @ one.lora.dense() @ one.basis.Vh.mT
    C_drift = one.basis.U.mT @ one.drift @ one.basis.Vh.mT
    assert every == int((C_lora * C_drift > 0).sum()) - 1  # all but the one of least risk, which the quantile is
    assert casa(one, replace(PAPER, q_act=0.0)).facts["arbitrated"] < every


@pytest.mark.parametrize("shape", SHAPES)
def test_an_orthogonal_shift_is_orthogonal_and_all_but_direct_reuse(shape):
    one, orthogonal_shift = layer(shape), find_recipe("undo-orthogonal:0")
    shifted, D = orthogonal_shift(one).dense(), one.lora.dense()
    assert abs(inner(shifted, one.drift)) < 1e-9 < abs(inner(D, one.drift))
    assert 0 < (shifted - D).norm() < 0.1 * D.norm()
    bent = replace(one, drift=2.5 * D)
    assert orthogonal_shift(bent).dense().norm() < 1e-9 * D.norm(), "along the drift it leaves nothing of the LoRA"
    assert torch.equal(orthogonal_shift(replace(one, drift=0 * D)).dense(), D)


@pytest.mark.parametrize("shape", SHAPES)
def test_theseus_turns_the_lora_with_the_weight_and_keeps_it_where_nothing_turned(shape):
    one = layer(shape)
    same = replace(one, drift=0 * one.drift, target=one.basis)
    assert is_near(theseus(same), one.lora.dense())
    out, into = SHAPES[shape]
    turn_out, turn_in = (torch.linalg.qr(torch.eye(n) + 0.02 * random(n, n, seed=n)).Q.double() for n in (out, into))
    turn_out, turn_in = turn_out * turn_out.diagonal().sign(), turn_in * turn_in.diagonal().sign()
    W = one.basis.U @ one.basis.S.diag() @ one.basis.Vh
    turned = replace(one, target=decompose(turn_out @ W @ turn_in.mT))
    inside = one.basis.U @ one.basis.U.mT @ one.lora.dense() @ one.basis.Vh.mT @ one.basis.Vh
    low = torch.linalg.svd(inside, full_matrices=False)
    whole = replace(turned, lora=LowRank(low.U * low.S, low.Vh))
    assert is_near(theseus(whole), turn_out @ inside @ turn_in.mT)
    assert not is_near(theseus(whole), inside)
    assert torch.linalg.svdvals(theseus(whole)).allclose(low.S, atol=1e-9)


def test_theseus_does_not_depend_on_the_signs_of_singular_pairs_but_on_their_order():
    one = layer("square")
    signs = torch.where(random(24, seed=5) > 0, 1.0, -1.0).double()
    flipped = replace(one.target, U=one.target.U * signs, Vh=signs[:, None] * one.target.Vh)
    assert is_near(theseus(replace(one, target=flipped)), theseus(one))
    order = torch.arange(24).roll(1)
    swapped = replace(one.target, U=one.target.U[:, order], Vh=one.target.Vh[order])
    assert not is_near(theseus(replace(one, target=swapped)), theseus(one))


def test_rows_of_one_key_are_one_thing_and_names_are_told_apart():
    """A part is stored under its row's key alone: only rows that give the same numbers may share one."""
    for cell in all_cells():
        rows = (*rows_of(cell), *calibration_rows(Material(cell, FAMILY)))
        assert len({row.name for row in rows}) == len(rows)
        shared = [[row for row in rows if row.key == key] for key in {row.key for row in rows}]
        several = {tuple(sorted(row.name for row in group)) for group in shared if len(group) > 1}
        same = ("casa, full rank", "casa, rank full", "q_act 0.85", "q_dom 0.5", "restore 1", "tau 1")
        assert several <= {same}
        assert all(row.against in {other.name for other in rows} for row in rows)


def test_studies_are_on_a_few_cells_and_bare_probes_wear_nothing():
    assert set(STUDY_CELLS) <= set(CELLS)
    studied = [cell.name for cell in all_cells() if any(row.group in STUDIES for row in rows_of(cell))]
    assert studied and set(studied) == {"/".join(pair) for pair in STUDY_CELLS}
    assert {row.against for row in BARE_PROBES} == {BARE_STUDENT} and not any(row.has_end for row in BARE_PROBES)
    assert all(row.use.strength == 0 for row in BARE_PROBES)
    casa_row: Row = next(row for row in MAIN if row.name == "casa")
    assert casa_row.has_end and casa_row.use.strength == 1


def test_premises_are_those_of_the_layers():
    layers = {shape: layer(shape) for shape in SHAPES}
    found = premises(layers)
    assert all(len(values) == 3 for values in found.values())
    for place, one in enumerate(layers.values()):
        W = one.basis.U @ one.basis.S.diag() @ one.basis.Vh
        assert float(found["drift"][place]) == pytest.approx(float(one.drift.norm() / W.norm()))
        assert 0 < float(found["rho2"][place]) < float(found["drift"][place]), "Mirsky: the spectrum moves less"
        upright = W if W.shape[0] >= W.shape[1] else W.mT
        D = one.lora.dense() if W.shape[0] >= W.shape[1] else one.lora.dense().mT
        sent = (D @ torch.linalg.svd(upright, full_matrices=False).Vh.mT).square().sum(0)
        assert float(found["head_lora"][place]) == pytest.approx(float(sent[:3].sum() / sent.sum()))
    still = premises({"a": replace(layer("square"), drift=torch.zeros(24, 24).double(), target=layer("square").basis)})
    assert float(still["drift"]) == float(still["rho2"]) == 0 and bool(still["kept"].isnan())
