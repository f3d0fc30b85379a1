"""A run on a Ray cluster: layers are given to cards once, LoRAs go past them in waves, parts are gathered here.

Ray places the actors, starts a process again that died, moves LoRAs and parts. What is ours: which card has which
layers, what to do when a machine is gone (its layers go to the others) and when a LoRA kills whoever has it (it is put
aside).
"""

from __future__ import annotations

from loraport.objects.store import ObjectStore
from loraport.workers.on_ray.card import CardOrders
from loraport.workers.on_ray.cluster import open_cluster
from loraport.workers.on_ray.coordinator import ClusterRun, Hear
from loraport.workers.plan import RunPlan


def run_on_ray(
    store: ObjectStore, plan: RunPlan, *, address: str, hear: Hear, device: str = "auto", cache: str | None = None,
    resident_bytes: int | None = None,
) -> bool:  # fmt: skip
    """Make all outputs of a plan on the cards of a cluster, and return whether the run is over.

    Models are opened by every card, so their places must mean the same on all machines. `resident_bytes`: what layers
    may take on each card; None goes by its memory.
    Raises MissingError without Ray, InputError where there is no cluster, or no card that can work.
    """
    with open_cluster(address) as cluster:
        run = ClusterRun(cluster, store, plan, hear, CardOrders(
            plan.text(), f"the run in {store.url}", None if store.folder is not None else store.url, device, cache,
            resident_bytes,
        ))  # fmt: skip
        try:
            run.start()
            return run.work()
        finally:
            run.end()
