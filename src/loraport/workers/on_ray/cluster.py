"""A Ray cluster: joined or started, its cards counted, an actor on each. The only module that imports Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from loraport.errors import InputError, MissingError
from loraport.workers.machine import Machine
from loraport.workers.on_ray.card import Card, CardOrders

LOCAL = "local"
RESTARTS = -1
"""A card's process that dies is started again by Ray, as often as it takes: what kills it is found and put aside."""


class CardDiedError(Exception):
    """A card's process ended in the middle of a call; Ray starts it again, or its machine is gone."""


@contextmanager
def open_cluster(address: str) -> Iterator[Cluster]:
    """Join the cluster at an address, or start one of this machine (`local`), and leave it at the end.

    Raises MissingError where Ray is not installed, InputError where there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingError("--ray needs Ray; install it: pip install 'loraport[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of every start
        try:
            ray.init(
                address="local" if address == LOCAL else address, include_dashboard=False if address == LOCAL else None,
                log_to_driver=False, configure_logging=True, logging_level=logging.ERROR,
            )  # fmt: skip
        except (ConnectionError, ValueError, RuntimeError, AssertionError) as error:
            why = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
            raise InputError(
                f"there is no Ray cluster at {address} ({why}); start one with `ray start --head`, or give `local`"
            ) from error
    try:
        yield Cluster(ray)
    finally:
        if ours:
            ray.shutdown()


@dataclass(frozen=True)
class Cluster:
    """A joined cluster."""

    ray: Any

    def living(self) -> set[str]:
        """Return the ids of machines that are there."""
        return {str(node["NodeID"]) for node in self.ray.nodes() if node["Alive"]}

    def count(self, threads: int) -> tuple[int, dict[str, float]]:
        """Return how many workers fit, and what each asks for: a card, or where there is none a processor's threads."""
        every = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if cards := sum(int(one.get("GPU", 0)) for one in every):
            return cards, {"num_gpus": 1.0, "num_cpus": 0.0}
        return sum(int(one.get("CPU", 0)) // threads for one in every), {"num_cpus": float(threads)}

    def here(self, device: str, threads: int) -> Machine:
        """Return what the cluster's cards are, by the first of them. Raises InputError where it has none."""
        count, asked = self.count(threads)
        if not count:
            raise InputError("the Ray cluster has no card and no free core")

        def look() -> Machine:
            return Machine.here(device, threads)

        found: Machine = self.result(self.ray.remote(max_retries=1, **asked)(look).remote())
        return found

    def cards(self, orders: CardOrders, threads: int) -> list[Any]:
        """Start an actor for each card; they stand ready one after the other."""
        count, asked = self.count(threads)
        ray = self.ray

        class CardActor(Card):
            def __init__(self, orders: CardOrders) -> None:
                super().__init__(orders, ray.get, ray.get_runtime_context().get_node_id())

        # Ray starts a process again, and calls are repeated here: after a death job by job, to find the one that kills.
        actor = ray.remote(CardActor).options(
            max_restarts=RESTARTS, max_task_retries=0, scheduling_strategy="SPREAD", **asked
        )  # fmt: skip
        return [actor.remote(orders) for _ in range(count)]

    def share(self, files: Mapping[str, bytes]) -> Any:
        """Put a LoRA where every machine gets it once; return the reference."""
        return self.ray.put(dict(files))

    def next_done(self, references: Sequence[Any], seconds: float) -> list[Any]:
        """Return the references of calls that are done, after so many seconds at most."""
        done, _ = self.ray.wait(list(references), num_returns=1, timeout=seconds)
        return list(done)

    def result(self, reference: Any) -> Any:
        """Return what a call gave. Raises what it raised, and CardDiedError."""
        errors = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except (
            errors.RayActorError,
            errors.ObjectLostError,
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
        ) as error:
            raise CardDiedError(f"{error}".splitlines()[0]) from error
        except errors.RayTaskError as error:  # what the call raised stands inside, and counts
            cause = error.cause
            raise cause if isinstance(cause, Exception) else CardDiedError(str(error)) from error

    def stop(self, actor: Any) -> None:
        """End an actor, for good."""
        self.ray.kill(actor, no_restart=True)

    @staticmethod
    def facts(actor: Any) -> Any:
        """Ask a card what it is; return the reference."""
        return actor.facts.remote()
