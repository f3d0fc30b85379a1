"""What is written behind the work: in order, all of it, with few writes waiting; failures come out."""

import threading

import pytest
import torch

from loraport.store.basis_source import keeps_routing
from loraport.store.behind import MOST, WriteBehind, start_to_host


def test_writes_happen_in_order_and_beside_the_work():
    written, gate = [], threading.Event()
    behind = WriteBehind()
    behind.submit("a", lambda: (gate.wait(5), written.append("a")))
    behind.submit("b", lambda: written.append("b"))
    assert written == [], "the work goes on while the first write waits"
    gate.set()
    behind.finish("a")
    assert written[0] == "a"
    behind.finish()
    assert written == ["a", "b"]


def test_few_writes_wait():
    started, gate = [], threading.Event()
    behind = WriteBehind()
    for number in range(MOST):
        behind.submit(str(number), lambda number=number: (started.append(number), gate.wait(5)))
    threading.Timer(0.05, gate.set).start()
    behind.submit("one more", lambda: None)
    assert gate.is_set(), "it waited for the first to end"
    behind.finish()


def test_a_failure_is_raised_by_the_next_write_or_at_the_end():
    behind = WriteBehind()
    behind.submit("a", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        behind.finish()
    behind.finish()


def test_what_is_in_main_memory_is_not_copied():
    tensors = {"x": torch.ones(3)}
    assert start_to_host(tensors)() is tensors


@pytest.mark.parametrize(
    ("device", "shape", "kept"), [("cpu", (5, 5), True), ("cuda", (5, 5), False), ("cuda", (5, 9), True)]
)
def test_a_routing_is_kept_where_reading_it_is_faster_than_making_it(device, shape, kept):
    assert keeps_routing(shape, device) is kept
