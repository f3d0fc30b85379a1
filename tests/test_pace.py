"""The bar's estimate, with a fake clock on layer times that were recorded."""

import random

import pytest

from loraport.console import Terminal
from loraport.estimates.layer_cost import layer_weight
from loraport.inputs.plan import LayerJob
from loraport.methods.recipes import find_recipe
from loraport.progress import Pace

SQUARE, TALL = 1.44, 3.80
"""CPU seconds that a cold layer of 1536 × 1536 and of 8960 × 1536 took, by the stages of `benchmarks.layer_costs`."""
WARM_SQUARE, WARM_TALL = 0.72, 1.08
WEIGHTS = {
    shape: layer_weight(LayerJob("", "transfer", shape, 32), find_recipe("casa"))
    for shape in ((1536, 1536), (8960, 1536))
}
"""What the table of measured layers says of them, warm or cold: a bar does not know what the cache has."""


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def layers(blocks, square=SQUARE, tall=TALL, seed=0):
    """(weight, seconds) of each layer of so many blocks, each a fifth slower or faster by chance."""
    chance = random.Random(seed)
    block = [(WEIGHTS[1536, 1536], square)] * 8 + [(WEIGHTS[8960, 1536], tall)] * 2
    return [(weight, seconds * chance.uniform(0.8, 1.2)) for _ in range(blocks) for weight, seconds in block]


def finished(times, at_a_time):
    """When each layer is reported: in order, so many in work at once."""
    free, reports, last = [0.0] * at_a_time, [], 0.0
    for seconds in times:
        worker = free.index(min(free))
        free[worker] += seconds
        last = max(last, free[worker])
        reports.append(last)
    return reports


def estimates(work, at_a_time, resumed=0):
    """(share of this start's layers that is done, estimate over what was left) at each report."""
    clock, total = Clock(), sum(weight for weight, _ in work)
    done = sum(weight for weight, _ in work[:resumed])
    pace, found = Pace(done, clock), []
    reports = finished([seconds for _, seconds in work[resumed:]], at_a_time)
    for number, ((weight, _), clock.now) in enumerate(zip(work[resumed:], reports, strict=True), 1):
        done += weight
        pace.report(done)
        left = reports[-1] - clock.now
        if left > 0:
            found.append((number / len(reports), pace.seconds_left(total) / left))
    return found


@pytest.mark.parametrize("at_a_time", [1, 2])
@pytest.mark.parametrize("state", [(SQUARE, TALL), (WARM_SQUARE, WARM_TALL)], ids=["cold", "warm"])
@pytest.mark.parametrize(("blocks", "off"), [(3, 0.45), (30, 0.15), (40, 0.15)])
def test_after_a_tenth_of_the_layers_the_estimate_is_close(blocks, off, state, at_a_time):
    """A model has 30 blocks or more; of three, a tenth of the layers is one and a half round of two at a time."""
    for seed in range(5):
        found = estimates(layers(blocks, *state, seed=seed), at_a_time)
        assert all(abs(ratio - 1) < off for share, ratio in found if 0.1 <= share < 0.75)


def test_layers_of_an_earlier_start_are_not_speed():
    work = layers(30)
    after = [ratio for share, ratio in estimates(work, 2, resumed=150) if 0.1 <= share < 0.9]
    assert all(0.7 < ratio < 1.3 for ratio in after)
    clock = Clock()
    counted = Pace(0, clock)  # as if they had been done in no time
    done = sum(weight for weight, _ in work[:150])
    counted.report(done)
    clock.now = 15 * SQUARE
    counted.report(done + 15 * WEIGHTS[1536, 1536])
    assert counted.seconds_left(sum(weight for weight, _ in work)) < 0.3 * sum(s for _, s in work[165:])


def test_it_counts_down_between_reports_and_knows_nothing_before_the_first():
    clock = Clock()
    pace = Pace(0, clock)
    clock.now = 7.0
    assert pace.seconds_left(100) is None
    pace.report(50)
    before = pace.seconds_left(100)
    clock.now = 9.0
    assert pace.seconds_left(100) == pytest.approx(before - 2)
    clock.now = 99.0
    assert pace.seconds_left(100) == 0


def test_the_bar_shows_it(monkeypatch):
    terminal = Terminal()
    terminal.advance("transferring", 40, 100)
    assert terminal.pace.seconds_left(100) is None
    terminal.advance("transferring", 60, 100)
    assert terminal.pace.seconds_left(100) >= 0
    shown = terminal.bar.columns[-1].render(terminal.bar.tasks[0]).plain
    assert shown.endswith(" left") and shown.count(":") == 1
    terminal.advance("writing", 0, 5)
    assert terminal.pace.seconds_left(5) is None and terminal.bar.columns[-1].render(terminal.bar.tasks[0]).plain == ""
