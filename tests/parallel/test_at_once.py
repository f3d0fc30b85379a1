"""Threads: what is read beside the work, how many jobs are in work at a time, and what is left of them afterwards."""

import threading
import time

import pytest
import torch

from loraport.errors import FileFormatError
from loraport.parallel.at_once import in_parallel, read_ahead

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
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


@pytest.mark.parametrize(("at_a_time", "share"), [(1, 4), (2, 2), (4, 1)])
def test_so_many_jobs_are_in_work_share_the_threads_and_come_in_order(at_a_time, share):
    together, shares = threading.Barrier(at_a_time, timeout=10), set()

    def work(job, inputs):
        value = inputs()
        if job < at_a_time:
            together.wait()  # breaks where the first ones are not in work at the same time
        shares.add(torch.get_num_threads())
        time.sleep(0.002 * (job % 3))  # later ones end before earlier ones
        return job, value

    done = list(in_parallel(range(12), lambda job: job * job, work, CPU, at_a_time))
    assert done == [(job, job * job) for job in range(12)]
    assert shares == {share} and torch.get_num_threads() == 4
    assert list(in_parallel([], lambda job: job, work, CPU, at_a_time)) == []


@pytest.mark.parametrize(("at_a_time", "ahead"), [(1, 1), (2, 0), (2, 4), (4, 4)])
def test_what_is_read_and_not_yet_worked_on_is_bounded(at_a_time, ahead, monkeypatch):
    monkeypatch.setattr("loraport.parallel.at_once.readers_for", lambda device, at_a_time: ahead)
    lock, held, most, in_work, busiest = threading.Lock(), 0, 0, 0, 0

    def read(job):
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return job

    def work(job, inputs):
        nonlocal held, in_work, busiest
        inputs()
        with lock:
            in_work += 1
            busiest = max(busiest, in_work)
        time.sleep(0.005)
        with lock:
            held, in_work = held - 1, in_work - 1

    list(in_parallel(range(30), read, work, CPU, at_a_time))
    assert (busiest, held) == (at_a_time, 0) and at_a_time <= most <= at_a_time + ahead


def test_a_slow_job_does_not_keep_the_others_from_going_on():
    """More than the window of those in work and read: what is done only waits for its turn to be told."""
    others = threading.Semaphore(0)

    def work(job, _):
        if job:
            others.release()
        else:
            assert all(others.acquire(timeout=10) for _ in range(10))
        return job

    assert list(in_parallel(range(20), lambda job: job, work, CPU, 2)) == list(range(20))


@pytest.mark.parametrize("at_a_time", [1, 2, 4])
@pytest.mark.parametrize("where", ["read", "work"])
def test_a_failure_comes_out_at_its_turn_and_what_has_not_begun_never_does(where, at_a_time):
    begun, before = [], set(threading.enumerate())  # those of an earlier test may still be ending

    def fail(job):
        if job == 3:
            raise RuntimeError("broken")
        return job

    def work(job, inputs):
        value = inputs()
        begun.append(job)
        return value if where == "read" else fail(job)

    done = in_parallel(range(50), fail if where == "read" else lambda job: job, work, CPU, at_a_time)
    assert [next(done) for _ in range(3)] == [0, 1, 2]
    time.sleep(0.05)
    with pytest.raises(RuntimeError, match="broken"):
        next(done)
    assert max(begun) <= 3 if at_a_time == 1 else len(begun) < 20
    assert torch.get_num_threads() == 4
    new = set(threading.enumerate()) - before
    assert not [thread for thread in new if thread.name.startswith("loraport-")]


def test_a_later_failure_does_not_hide_what_comes_before_it():
    later_failed = threading.Event()

    def work(job, _):
        if job == 1:
            later_failed.set()
            raise RuntimeError("broken")
        assert later_failed.wait(10)
        time.sleep(0.02)
        return job

    done = in_parallel(range(9), lambda job: job, work, CPU, 2)
    assert next(done) == 0
    with pytest.raises(RuntimeError, match="broken"):
        next(done)


@pytest.mark.parametrize(("at_a_time", "ahead"), [(1, 1), (2, 0), (4, 4)])
def test_whoever_leaves_early_waits_for_what_is_in_work_and_for_nothing_else(at_a_time, ahead, monkeypatch):
    monkeypatch.setattr("loraport.parallel.at_once.readers_for", lambda device, at_a_time: ahead)
    begun, ended, before = [], [], set(threading.enumerate())

    def work(job, _):
        begun.append(job)
        time.sleep(0.02)
        ended.append(job)
        return job

    class StoppedError(BaseException):
        """As Ctrl-C is: no Exception."""

    def consume():
        for job in in_parallel(range(50), lambda job: job, work, CPU, at_a_time):
            raise StoppedError(job)

    with pytest.raises(StoppedError):
        consume()
    time.sleep(0.05)
    assert sorted(begun) == sorted(ended) and len(begun) < 15
    new = set(threading.enumerate()) - before
    assert not [thread for thread in new if thread.name.startswith("loraport-")]


def test_a_job_without_room_beside_others_is_done_again_alone_and_so_are_those_after_it():
    began, tries = [], []
    lock, together, in_work = threading.Lock(), threading.Barrier(2, timeout=10), 0

    def work(job, inputs):
        nonlocal in_work
        value = inputs()
        with lock:
            in_work += 1
            beside, first = in_work, job not in began
            began.append(job)
        try:
            if job < 2 and first:
                together.wait()
                if job == 1:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            elif job > 2:
                tries.append((job, beside))
            time.sleep(0.01)
            return job, value
        finally:
            with lock:
                in_work -= 1

    assert list(in_parallel(range(8), lambda job: -job, work, CPU, 2)) == [(job, -job) for job in range(8)]
    assert sorted(began) == [0, 1, 1, 2, 3, 4, 5, 6, 7]
    assert len(tries) == 5 and {beside for _, beside in tries} == {1}


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_a_job_without_room_even_alone_fails(at_a_time):
    tried = []

    def work(job, _):
        tried.append(job)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        list(in_parallel([0], lambda job: job, work, CPU, at_a_time))
    assert tried == [0] * at_a_time


def test_an_error_of_the_input_is_no_lack_of_memory_whatever_its_words():
    tried = []

    def work(job, _):
        tried.append(job)
        raise FileFormatError("out of memory.safetensors is truncated")

    with pytest.raises(FileFormatError):
        list(in_parallel([0], lambda job: job, work, CPU, 2))
    assert tried == [0]
