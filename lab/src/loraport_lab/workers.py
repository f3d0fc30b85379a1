"""Processes of the benchmark and of the training, which end with the program: a Ctrl-C is for the program alone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any

import torch

Submit = Callable[..., "Future[Any]"]


@contextmanager
def workers(jobs: int) -> Iterator[Submit]:
    """So many processes with a thread each, as a function that gives them work; on any error they are ended at once.

    What a worker had not finished appears nowhere: parts are written whole or not at all.
    """
    before = set(active_children())
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))

    def submit(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        with _ignoring_interrupts():  # a process is started here, and keeps what its parent ignores
            return pool.submit(work, *arguments)

    try:
        yield submit
    except BaseException:
        for process in set(active_children()) - before:
            process.kill()  # one that is only starting, or asleep in a library, may take its time over a request
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C, which a terminal sends to all processes; elsewhere than in the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, heard)
