"""The rule, on traits alone: every verdict at its edge, every regime, and what the shipped map promises."""

from dataclasses import replace

import pytest

from loraport.diagnosis.rule.advice import SAFE, Thresholds, Traits, advise, regime_of, verdict_of
from loraport.diagnosis.rule.measured_map import TOLERANCE, measured_map

PAIR = Traits(drift=0.05, floor=1e-4, lora=0.15, head_drift=0.42, rho2=0.007, raw_drift=0.05)
EDGES = Thresholds(**measured_map().thresholds)


@pytest.mark.parametrize(
    ("accelerated", "head", "verdict"),
    [
        (False, EDGES.unsure, SAFE),
        (False, EDGES.unsure + 1e-6, "choose"),
        (False, EDGES.casa, "choose"),
        (False, EDGES.casa + 1e-6, "casa"),
        (True, EDGES.casa + 1e-6, "direct"),
        (True, EDGES.unsure, "direct"),
    ],
)
def test_the_rule_turns_at_its_edges(accelerated, head, verdict):
    assert verdict_of(accelerated, head, EDGES) == verdict
    assert advise(replace(PAIR, accelerated=accelerated, head_drift=head)).verdict == verdict


@pytest.mark.parametrize(
    ("rho2", "drift", "regime"),
    [
        (0.003, 0.05, "paper"),
        (0.004, 0.05, "near"),
        (0.02, 0.05, "beyond"),
        (None, 0.005, "paper"),  # on the map ρ₂ is 13 to 29 % of the drift
        (None, 0.03, "near"),
        (None, 0.2, "beyond"),
    ],
)
def test_the_regime_is_that_of_the_spectrums_change(rho2, drift, regime):
    assert regime_of(replace(PAIR, rho2=rho2, drift=drift)) == regime


def test_off_the_map_nothing_is_sure_and_the_lora_stays_as_it_is():
    for far in (replace(PAIR, drift=0.9), replace(PAIR, lora=9.0), replace(PAIR, head_drift=0.05)):
        told = advise(far)
        assert (told.verdict, told.sure, told.method, told.on_map) == ("choose", 0.0, "direct", False)
        assert "outside of what was measured" in told.why
    assert advise(PAIR).on_map


def test_a_head_share_that_a_sample_leaves_open_is_not_decided():
    open_ = advise(replace(PAIR, head_drift=EDGES.casa + 0.01, head_error=0.02))
    assert open_.verdict == "choose" and open_.all_layers and open_.method == "casa"
    assert advise(replace(PAIR, head_drift=EDGES.casa + 0.01, head_error=0.005)).verdict == "casa"


def test_what_the_reasons_claim_holds_on_the_map():
    cells = measured_map().cells
    beyond = [cell for cell in cells if not cell.accelerated and cell.head_drift > EDGES.casa]
    good = sum(max(cell.gains.values()) - cell.gains["casa"] <= TOLERANCE for cell in beyond)
    assert (
        good >= 0.8 * len(beyond)
        and f"in {good} of {len(beyond)} measured pairs" in advise(replace(PAIR, head_drift=EDGES.casa + 0.01)).why
    )
    below = [cell for cell in cells if not cell.accelerated and cell.head_drift <= EDGES.unsure]
    means = {rule: sum(cell.gains[rule] for cell in below) / len(below) for rule in ("casa", SAFE)}
    assert means["casa"] <= means[SAFE] and min(cell.gains["casa"] for cell in below) < -0.5
    beside = [cell for cell in cells if cell.accelerated]
    assert beside and all(max(cell.gains["casa"], cell.gains[SAFE]) < 0 for cell in beside)


def test_the_advice_loses_less_than_every_fixed_rule_on_bases_that_it_was_not_fitted_to():
    regret = {row["rule"]: row for row in measured_map().regret}
    fixed = [row for rule, row in regret.items() if rule != "advice"]
    for measure in ("regret", "bases", "shipped"):
        assert regret["advice"][measure] <= min(row[measure] for row in fixed)
    assert regret["advice"]["cells"] == len(measured_map().cells) and regret["advice"]["shipped_cells"] == 18
