"""The simulation keeps the work, never gains from nothing, and the page shows its tables."""

import pytest
from benchmarks.scale import PAGE, WAVE, Site, measured, owners, played, shapes_of, with_tables

EVEN = Site(spread=0.0)
SHAPES = shapes_of("1.3b")
LAYERS = measured(SHAPES)


def test_the_work_is_the_same_on_any_number_of_cards():
    everything = Site(spread=0.0, memory=1e15)
    work = sum(one.shared + 100 * one.own for one in LAYERS)
    for cards in (1, 3, 8):
        one = played(SHAPES, LAYERS, cards, 100, everything)
        assert one.busy == pytest.approx(work)
        assert one.seconds >= everything.start + work / cards
        assert one.idle == pytest.approx(1 - work / cards / one.seconds)


def test_more_cards_take_less_time_and_leave_more_idle():
    few, many, most = (played(SHAPES, LAYERS, cards, 10, EVEN) for cards in (1, 8, 64))
    assert few.seconds > many.seconds > most.seconds > EVEN.start
    assert few.idle < many.idle < most.idle < 1 and most.limit == "start"
    assert few.read == many.read == most.read and few.written == pytest.approx(most.written)


def test_waves_that_are_not_played_take_what_those_before_took():
    played_all = played(SHAPES, LAYERS, 4, 6 * WAVE, EVEN)
    longer = played(SHAPES, LAYERS, 4, 12 * WAVE, EVEN)
    own = sum(one.own for one in LAYERS)
    assert longer.busy - played_all.busy == pytest.approx(6 * WAVE * own)
    assert longer.written == pytest.approx(2 * played_all.written)


def test_a_card_without_room_reads_its_share_again_in_every_wave():
    room, none = (played(SHAPES, LAYERS, 1, 3 * WAVE, Site(spread=0.0, memory=memory)) for memory in (1e15, 0.0))
    bytes_of_layers = sum(6.0 * m * n for m, n in SHAPES)
    assert none.read - room.read == pytest.approx(
        2 * bytes_of_layers, rel=0.02
    )  # the last one of a wave is there still


def test_a_slow_store_is_named_as_the_limit():
    assert played(SHAPES, LAYERS, 8, 1000, Site(write=1e7)).limit == "store"
    assert played(SHAPES, LAYERS, 8, 1000).limit == "card"


def test_the_longest_layers_are_given_out_first():
    takes = [5.0, 4.0, 3.0, 3.0, 3.0]
    loads = sorted(sum(takes[layer] for layer in own) for own in owners(takes, 2))
    assert loads == [8.0, 10.0]


def test_the_page_shows_what_the_simulation_says():
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, "python -m benchmarks.scale --write"
