"""How fast this machine is, against the one where layers were measured: by one product, as often as a run has layers in
work at once.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

from loraport.estimates.card_memory import layers_at_a_time

SIZE, ROUNDS = 512, 45
REFERENCE = 0.0053
"""CPU seconds of one product of this size in double precision on one thread where `PROCESSOR` was measured."""


@cache
def slowness() -> float:
    """Return how many times as long this machine takes for a product, with all that a run does at once beside it.

    Measured once a process, in a quarter of a second or what a busy machine makes of it: the mean of many rounds, since
    a few of a few milliseconds each say nothing of how the machine divides its time.
    """
    threads, together = torch.get_num_threads(), layers_at_a_time(torch.device("cpu"), ())
    X = torch.eye(SIZE, dtype=torch.float64).add_(0.5)
    try:
        with ThreadPoolExecutor(together, "loraport-speed", torch.set_num_threads, (threads // together,)) as pool:
            for number in range(ROUNDS + 1):
                if number == 1:  # the first one starts the threads
                    start = time.perf_counter()
                list(pool.map(lambda _: X @ X, range(together)))
            passed = time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    return passed / ROUNDS / REFERENCE
