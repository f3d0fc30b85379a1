"""Threads and a card's streams, on a card that only writes down what it is given (`tests.parallel.card`)."""

import contextlib
import threading

import pytest
import torch

from loraport.parallel.at_once import READERS, in_parallel, read_ahead
from loraport.parallel.streams import copying_stream
from loraport.store import behind
from tests.parallel.card import Card, Stream

CUDA = torch.device("cuda")


@pytest.fixture
def card(monkeypatch):
    one = Card(monkeypatch)
    yield one
    one.close()


def run(card, at_a_time, count=12):
    """Work that gives the card a name for each job; {job: (thread, stream)} of reading and of working."""
    reading, working, together = {}, {}, threading.Barrier(at_a_time, timeout=10)

    def read(job):
        reading[job] = threading.get_ident(), card.current
        return job

    def work(job, inputs):
        assert inputs() == job
        if job < at_a_time:
            together.wait()
        working[job] = threading.get_ident(), card.current
        card.current.todo.append(f"layer {job}")
        return job

    assert list(in_parallel(range(count), read, work, CUDA, at_a_time)) == list(range(count))
    return reading, working


@pytest.mark.parametrize("at_a_time", [1, 2, 4])
def test_each_thread_has_a_stream_of_its_own_for_all_its_work(card, at_a_time):
    reading, working = run(card, at_a_time)
    assert len({stream for _, stream in working.values()}) == at_a_time == len(set(working.values()))
    assert card.usual not in {stream for _, stream in working.values()}
    assert {stream for _, stream in reading.values()} == {card.usual} and len(set(reading.values())) <= READERS
    assert card.current is card.usual, "whoever asked stays in the stream that it was in"


def test_streams_begin_after_what_was_given_before_and_the_rest_comes_after_them(card):
    card.current.todo.append("the caller's tensors")
    _, working = run(card, 3)
    for stream in {stream for _, stream in working.values()}:
        first = next(at for at, entry in enumerate(stream.todo) if isinstance(entry, str))
        assert stream._sees(first, card.usual, "the caller's tensors")
    assert all(card.usual.comes_after(stream, f"layer {job}") for job, (_, stream) in working.items())
    assert not card.usual.comes_after(working[0][1], "layer of nobody")


def test_they_come_after_the_stream_that_the_caller_is_in_and_are_used_again(card):
    _, before = run(card, 2)
    own = Stream()
    torch.cuda.set_stream(own)
    own.todo.append("made here")
    reading, working = run(card, 2)
    assert {stream for _, stream in reading.values()} == {own}
    assert all(stream.comes_after(own, "made here") for _, stream in working.values())
    assert {stream for _, stream in before.values()} == {stream for _, stream in working.values()}
    assert len(card.made) == 2, "a run makes no streams where there are some: each keeps memory for good"
    with contextlib.closing(read_ahead([1], lambda job: card.current)) as one:
        assert next(one) == (1, own)


def test_on_a_processor_threads_read_from_a_card_in_the_stream_of_the_caller(card):
    own, seen = Stream(), []
    torch.cuda.set_stream(own)
    list(
        in_parallel(
            range(4), lambda job: seen.append(card.current), lambda job, inputs: inputs(), torch.device("cpu"), 2
        )
    )
    assert set(seen) == {own} and card.made == []


def test_the_caller_comes_after_them_even_if_one_fails(card):
    def work(job, value):
        card.current.todo.append(f"layer {job}")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(in_parallel(range(5), lambda job: job, work, CUDA, 1))
    assert card.usual.comes_after(card.made[0], "layer 0")


class OnCard:
    """What `start_to_host` sees of a tensor on a card."""

    shape, dtype, device = (3, 2), torch.float32, torch.device("cuda", 0)

    def __init__(self, name):
        self.name, self.recorded = name, []

    def record_stream(self, stream):
        self.recorded.append(stream)


def test_copies_of_several_threads_wait_for_their_own_stream_and_hold_their_memory(card, monkeypatch):
    """By stand-ins for pinned memory and for tensors: a copy is the name of its tensor in the copying stream."""

    class Pinned:
        def copy_(self, X, non_blocking):
            assert non_blocking
            card.current.todo.append(f"copy of {X.name}")
            return self

    class Event:
        def record(self, stream):
            self.after = len(stream.todo)

        def synchronize(self):
            waited.append(self.after)

    @contextlib.contextmanager
    def stream_context(stream):
        outer = card.current
        torch.cuda.set_stream(stream)
        yield
        torch.cuda.set_stream(outer)

    waited, tensors, waits = [], {}, {}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *_, dtype, pin_memory: Pinned())
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "stream", stream_context)

        def work(job, value):
            card.current.todo.append(f"layer {job}")
            tensors[job] = OnCard(str(job))
            waits[job] = card.current, behind.start_to_host({"x": tensors[job]})
            return job

        list(in_parallel(range(8), lambda job: job, work, CUDA, 4))
    beside = copying_stream(CUDA)
    for job, (stream, wait) in waits.items():
        assert tensors[job].recorded == [beside], "its memory is not given away before it is copied"
        at = beside.todo.index(f"copy of {job}")
        assert beside._sees(at, stream, f"layer {job}"), "it is copied when it is made"
        wait()
        assert waited[-1] > at, "and written when it is copied"
    assert beside not in {stream for stream, _ in waits.values()}
