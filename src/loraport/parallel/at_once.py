"""Work on several jobs at once, each on a thread, and read what they need before their turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

import torch

from loraport.parallel.streams import enter, stream_of_thread, streams_for
from loraport.parallel.turns import Turns

Job = TypeVar("Job")
Read = TypeVar("Read")
Done = TypeVar("Done")

AT_MOST = {"cpu": 2, "cuda": 4}
"""Layers in work at once: more would take more memory of a processor than they gain time, and a card has few gaps left
to fill."""
READERS = 4
"""Threads that read and hash for a card, and layers that are read before their turn: one such thread reads and hashes
1 to 2 GB a second, and what waits is in the form that the files have it."""


def readers_for(device: torch.device, at_a_time: int) -> int:
    """Return how many threads read beside the work: none where two jobs share a processor, each of which reads its own
    while the other one computes.
    """
    return READERS if device.type == "cuda" else int(at_a_time == 1)


def in_parallel(
    jobs: Sequence[Job],
    read: Callable[[Job], Read],
    work: Callable[[Job, Callable[[], Read]], Done],
    device: torch.device,
    at_a_time: int,
) -> Iterator[Done]:
    """Return what `work` makes of each job, in the order of the jobs; it takes what is read for it by a function, and
    nothing else holds on to that.

    So many are in work at a time, each on a thread. On a processor they share its threads: decompositions hardly use a
    second one, and threads that share one product wait for each other. On a card each has a stream, so that the card
    goes on with one layer where it would wait for another's launches and answers; a layer's own work is the same, and
    so are its bytes. What comes back is not to lie on the card. At most so many more are being read, or wait.

    An error comes out at its job's turn; what has not begun when it happens never does.
    """
    threads, readers = torch.get_num_threads(), readers_for(device, at_a_time)
    # OpenMP keeps its number of threads for each calling thread, so each worker sets its share as it starts
    share = max(1, threads // at_a_time) if device.type == "cpu" else threads
    pending: deque[Future[Done]] = deque()
    unfinished: set[Future[Done]] = set()
    turns, failed = Turns(at_a_time), list[int]()

    def do(number: int, job: Job, inputs: Callable[[], Read]) -> Done:
        if any(earlier < number for earlier in failed):  # whose turn comes first, and ends it all
            raise CancelledError
        try:
            return turns.do(lambda: work(job, inputs))
        except BaseException:
            failed.append(number)
            raise

    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        streams: SimpleQueue[torch.cuda.Stream | None] = SimpleQueue()
        for stream in stack.enter_context(streams_for(device, at_a_time)):
            streams.put(stream)
        reading = stack.enter_context(_readers(readers, device)) if readers else None
        workers = stack.enter_context(ThreadPoolExecutor(at_a_time, "loraport-layer", _begin, (share, streams)))
        try:
            for number, job in enumerate(jobs):
                if len(unfinished) >= at_a_time + max(1, readers):
                    unfinished = wait(unfinished, return_when=FIRST_COMPLETED).not_done
                inputs = _inputs(read, job, reading)
                pending.append(workers.submit(do, number, job, inputs))
                unfinished.add(pending[-1])
                while pending and pending[0].done():
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BaseException:
            for pool in (workers, reading):
                if pool is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
            raise


def _inputs(read: Callable[[Job], Read], job: Job, reading: ThreadPoolExecutor | None) -> Callable[[], Read]:
    """Return what gives what is read for a job, once; a job that is begun anew reads it again."""
    ahead = [reading.submit(read, job)] if reading else []
    return lambda: ahead.pop().result() if ahead else read(job)


def _begin(share: int, streams: SimpleQueue[torch.cuda.Stream | None]) -> None:
    torch.set_num_threads(share)
    enter(streams.get())


def _readers(count: int, device: torch.device | None = None) -> ThreadPoolExecutor:
    """Return threads that read, in the stream of the thread that asks: tensors may lie on a card already."""
    return ThreadPoolExecutor(count, "loraport-read", enter, (stream_of_thread(device),))


def read_ahead(jobs: Sequence[Job], read: Callable[[Job], Read], ahead: int = 1) -> Iterator[tuple[Job, Read]]:
    """Return each job with what is read for it; so many of the next ones are read meanwhile, and no more than that."""
    with _readers(ahead) as readers:
        pending: deque[Future[Read]] = deque()
        try:
            waiting = iter(jobs)
            pending.extend(readers.submit(read, job) for job in islice(waiting, ahead))
            for job in jobs:
                inputs = pending.popleft().result()
                pending.extend(readers.submit(read, following) for following in islice(waiting, 1))
                yield job, inputs
        finally:
            for future in pending:
                future.cancel()
