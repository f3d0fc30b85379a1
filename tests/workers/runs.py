"""Plans, stores and workers of the tests."""

from pathlib import Path

from loraport.batches.jobs import Request, plan_jobs
from loraport.inputs.config import TransferConfig
from loraport.objects.open import open_objects
from loraport.objects.store import ObjectStore
from loraport.workers.begin import begin_run
from loraport.workers.machine import Machine
from loraport.workers.models import OpenModels
from loraport.workers.plan import RunPlan, make_plan_of_run
from loraport.workers.work import Worker

COUNT = 4
LAYERS = ("self_attn.q", "self_attn.o", "cross_attn.k", "ffn.0")


def planned(family, folder, *, methods=("casa",), loras=None, **changes) -> RunPlan:
    template = TransferConfig("", family.source, family.target, str(folder), **changes)
    jobs = plan_jobs([str(loras or family.folder / "loras")], Request(template, methods))
    return make_plan_of_run(jobs, str(folder), Machine.here("cpu", 1))


def store_in(folder) -> ObjectStore:
    return open_objects(str(folder))


def written(folder) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*.safetensors"))
        if ".batch" not in path.parts
    }


def work(store, plan, **given) -> bool:
    with_run = {name: given.pop(name) for name in ("wait",) if name in given}
    return Worker(store, plan, OpenModels(plan), **given).run(**with_run)


def begun(family, folder):
    """Return a store in a folder, and the plan of a run that was begun there."""
    store, plan = store_in(folder), planned(family, folder)
    return store, begin_run(store, plan, OpenModels(plan)).plan
