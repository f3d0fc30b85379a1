"""Turns: who of several threads may work, so that a job that finds too little memory beside others is done alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from loraport.compute import is_out_of_memory

Made = TypeVar("Made")


class Turns:
    """All threads have one, until one of them finds too little memory; from then on one works at a time."""

    def __init__(self, most: int) -> None:
        self._most, self._working, self._changed = most, 0, threading.Condition()

    def do(self, work: Callable[[], Made]) -> Made:
        """Do a job when it is its turn; what finds too little memory beside others is begun anew, alone."""
        with self._turn() as alone:
            try:
                return work()
            except Exception as error:
                if alone or not is_out_of_memory(error):
                    raise
        # behind the handler, whose error holds on to all that the job had made
        with self._changed:
            self._most = 1
        with self._turn():
            torch.cuda.empty_cache()  # each stream has its own, which another cannot use
            return work()

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        with self._changed:
            self._changed.wait_for(lambda: self._working < self._most)
            self._working += 1
            alone = self._most == 1
        try:
            yield alone
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()
