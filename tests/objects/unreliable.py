"""A store of which a share of all requests fails, by a seeded plan: before the work, or after it, its answer lost."""

import errno
import random
from collections import Counter
from dataclasses import dataclass, field

from loraport.objects.backend import Backend
from loraport.objects.patience import Patience
from loraport.objects.store import ObjectStore


class AnswerError(Exception):
    """What clients raise for a status of HTTP: it stands in `response`, as botocore has it."""

    def __init__(self, status, code=""):
        super().__init__(f"HTTP {status}")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


FAILURES = (
    lambda: AnswerError(503, "SlowDown"),
    lambda: AnswerError(429),
    lambda: AnswerError(500),
    lambda: AnswerError(400, "RequestTimeout"),
    lambda: TimeoutError("timed out"),
    lambda: ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    lambda: OSError(errno.ENOSPC, "No space left on device"),
)


@dataclass
class Unreliable:
    """A backend of which a share of all requests fails; `failed` counts them by kind of request."""

    inside: Backend
    seed: int = 0
    share: float = 0.1
    failed: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self._plan = random.Random(self.seed)

    @property
    def url(self):
        return self.inside.url

    def __getattr__(self, name):
        ask = getattr(self.inside, name)

        def unreliable(*words):
            if self._plan.random() >= self.share:
                return ask(*words)
            self.failed[name] += 1
            if self._plan.random() < 0.5:
                ask(*words)  # done, but nobody hears of it
            raise self._plan.choice(FAILURES)()

        return unreliable


def unreliable(store, seed=0, share=0.1):
    """Return a store over the same objects that fails, and asks again without waiting."""
    return ObjectStore(
        Unreliable(store.backend, seed, share), Patience(1e6, first_pause=1e-9, sleep=lambda seconds: None)
    )
