"""One worker, several, in any order, interrupted: the same bytes as `transfer`, and nothing left behind."""

import json
import random
from pathlib import Path

import pytest

from loraport.batches.jobs import Request, plan_jobs
from loraport.inputs.config import TransferConfig
from loraport.objects.open import open_objects
from loraport.objects.store import ObjectStore
from loraport.transfers.run import transfer
from loraport.workers.begin import begin_run
from loraport.workers.machine import Machine
from loraport.workers.models import OpenModels
from loraport.workers.plan import RunPlan, make_plan_of_run
from loraport.workers.records import Records
from loraport.workers.share import Share
from loraport.workers.work import Worker
from tests import tiny
from tests.transfers.models import make_family

COUNT = 5


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    made = make_family(tmp_path_factory.mktemp("pair"), blocks=1)
    for number in range(COUNT):
        path = made.folder / "loras" / f"style{number}.safetensors"
        path.parent.mkdir(exist_ok=True)
        tiny.write_lora(path, tiny.lora_factors(made.source_state, seed=number, rank=2 + number % 2))
    return made


@pytest.fixture(scope="module")
def alone(family):
    """What `transfer` writes: name -> bytes."""
    written = {}
    for number in range(COUNT):
        config = family.config(f"alone{number}.safetensors", lora=str(family.folder / f"loras/style{number}.safetensors"),
                               dtype="bf16", cache=None)  # fmt: skip
        transfer(config)
        written[f"style{number}-casa.safetensors"] = Path(config.output).read_bytes()
    return written


def planned(family, folder, *, methods=("casa",), **changes) -> RunPlan:
    template = TransferConfig("", family.source, family.target, str(folder), **changes)
    jobs = plan_jobs([str(family.folder / "loras")], Request(template, methods))
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
    with_run = {name: given.pop(name) for name in ("help_others", "wait") if name in given}
    return Worker(store, plan, OpenModels(plan), **given).run(**with_run)


def test_one_worker_writes_what_transfer_writes(family, alone, tmp_path):
    store, plan = store_in(tmp_path / "out"), planned(family, tmp_path / "out")
    begun = begin_run(store, plan, OpenModels(plan))
    assert not begun.joined and not begun.already
    told = []
    assert work(store, begun.plan, tell=lambda event, **facts: told.append((event, facts)))
    assert written(tmp_path / "out") == alone
    assert sum(event == "made" for event, _ in told) == COUNT
    assert not [name for name in store.names(".batch/") if "/parts/" in name or "/leases/" in name]
    json.dumps(told)
