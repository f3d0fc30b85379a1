"""Seconds of stages, with a clock that the test turns."""

import threading
import time

import pytest
import torch

from loraport.stopwatch import STAGES, Stopwatch


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def pass_(seconds):
        now[0] += seconds

    return pass_


def test_a_stage_inside_another_counts_for_itself_alone(clock):
    watch = Stopwatch(torch.device("cpu"))
    with watch.stage("transfer"):
        clock(1)
        with watch.stage("routing"):
            clock(2)
            with watch.stage("basis"):
                clock(4)
        clock(8)
    with watch.stage("routing"):
        clock(16)
    assert watch.seconds == {"read": 0, "basis": 4, "routing": 18, "transfer": 9} and tuple(watch.seconds) == STAGES


def test_threads_are_added_up_and_do_not_see_each_other(clock):
    watch = Stopwatch(torch.device("cpu"))
    inside, outside = threading.Event(), threading.Event()

    def other():
        with watch.stage("read"):
            inside.set()
            outside.wait(10)

    thread = threading.Thread(target=other)
    with watch.stage("transfer"):
        thread.start()
        inside.wait(10)
        clock(3)
        outside.set()
        thread.join(10)
    assert watch.seconds["read"] == watch.seconds["transfer"] == 3


def test_a_failure_is_counted_and_a_stage_that_is_none_is_refused(clock):
    watch = Stopwatch(torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), watch.stage("read"):
        clock(5)
        raise ZeroDivisionError
    assert watch.seconds["read"] == 5
    with pytest.raises(KeyError), watch.stage("think"):
        pass


def test_a_card_is_marked_and_waited_for_only_when_seconds_are_asked(clock, monkeypatch):
    """With marks as CUDA makes them: they are passed when the card comes to them, not when they are made."""
    waited, now, passed = [], [0.0], [False]

    class Mark:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            self.at = now[0]

        def elapsed_time(self, other):
            return 1000 * (other.at - self.at)

        def query(self):
            return passed[0]

    monkeypatch.setattr(torch.cuda, "Event", Mark)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: (waited.append(device), passed.__setitem__(0, True)))
    card = torch.device("cuda", 1)
    watch = Stopwatch(card)
    with watch.stage("transfer"):
        now[0] += 2
        with watch.stage("basis"):
            now[0] += 5
    with watch.stage("read", on_card=False):
        clock(3)
    assert waited == []
    assert watch.seconds == {"read": 3, "basis": 5, "routing": 0, "transfer": 2} and waited == [card]


def test_a_slow_stream_keeps_no_other_from_being_counted(clock, monkeypatch):
    """Threads have streams of their own, and marks of one pass before older ones of another."""
    now, slow = [0.0], threading.Event()

    class Mark:
        def __init__(self, enable_timing):
            self.of_slow = threading.current_thread() is not threading.main_thread()

        def record(self, stream):
            self.at = now[0]

        def elapsed_time(self, other):
            return 1000 * (other.at - self.at)

        def query(self):
            return slow.is_set() or not self.of_slow

    monkeypatch.setattr(torch.cuda, "Event", Mark)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: slow.set())
    watch = Stopwatch(torch.device("cuda", 0))

    def layer(name, seconds):
        with watch.stage(name):
            now[0] += seconds

    first = threading.Thread(target=layer, args=("basis", 7))
    first.start()
    first.join(10)
    for _ in range(5):
        layer("transfer", 2)
    assert watch._seconds == {"read": 0, "basis": 0, "routing": 0, "transfer": 10}
    assert len(watch._marked) == 1, "marks that are passed do not pile up behind one that is not"
    assert watch.seconds["basis"] == 7
