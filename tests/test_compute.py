"""Threads: what is read beside the work, how many jobs are in work at a time, and what is left of them afterwards."""

import threading

import pytest
import torch

from loraport.compute import in_parallel, layer_generator, read_ahead

CPU = torch.device("cpu")


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_the_next_layer_is_read_while_this_one_is_worked_on_and_no_more_than_that():
    started = [threading.Event() for _ in range(4)]

    def read(number):
        started[number].set()
        return -number

    seen = []
    for number, weights in read_ahead([0, 1, 2, 3], read):
        seen.append((number, weights))
        if number < 3:
            assert started[number + 1].wait(5), "the next one is read without being asked for"
        if number < 2:
            assert not started[number + 2].wait(0.05), "the one after it is not: memory stays at one layer and the next"
    assert seen == [(0, 0), (1, -1), (2, -2), (3, -3)]
    assert list(read_ahead([], read)) == []


def test_several_are_read_ahead_by_as_many_threads_and_no_more():
    together, started = threading.Barrier(3, timeout=10), []

    def read(number):
        started.append(number)
        if number < 3:
            together.wait()  # breaks where the first three are not read at the same time
        return -number

    for number, value in read_ahead(range(8), read, 3):
        assert value == -number and max(started) <= number + 3


@pytest.mark.usefixtures("four_threads")
def test_two_jobs_are_in_work_with_half_of_the_threads_each_and_come_in_order():
    together, shares = threading.Barrier(2, timeout=10), []

    def work(job, value):
        if job < 2:
            together.wait()  # breaks where the first two are not in work at the same time
        shares.append(torch.get_num_threads())
        return job, value

    assert list(in_parallel(range(5), lambda job: job * job, work, CPU)) == [(job, job * job) for job in range(5)]
    assert set(shares) == {2} and torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_a_failure_comes_out_and_what_has_not_begun_never_does():
    begun = []

    def work(job, _):
        begun.append(job)
        if job == 0:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(in_parallel(range(50), lambda job: job, work, CPU))
    assert len(begun) < 10 and torch.get_num_threads() == 4


def test_random_numbers_of_a_layer_depend_on_seed_and_name_alone():
    draws = [float(torch.rand(1, generator=layer_generator(*of))) for of in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))]
    assert draws[0] == draws[1] and len(set(draws)) == 3
