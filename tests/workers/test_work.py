"""One worker, several, in any order, interrupted: the same bytes as `transfer`, and nothing left behind."""

import json
import random
import threading
from pathlib import Path

import pytest

from loraport.batches.jobs import Request, plan_jobs
from loraport.errors import FileFormatError
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
        lora = str(family.folder / f"loras/style{number}.safetensors")
        config = family.config(f"alone{number}.safetensors", lora=lora, dtype="bf16", cache=None)
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


@pytest.mark.parametrize("of", [2, 3])
def test_shards_one_after_the_other_make_the_same_and_the_last_one_gathers(family, alone, tmp_path, of):
    store, plan = store_in(tmp_path / "out"), planned(family, tmp_path / "out")
    order = list(range(of))
    random.Random(of).shuffle(order)
    for number in order:
        assert written(tmp_path / "out") == {}
        begun = begin_run(store, planned(family, tmp_path / "out"), OpenModels(plan))
        over = work(store, begun.plan, share=Share(number, of), help_others=False, wait=None)
        assert over == (number == order[-1])
    assert written(tmp_path / "out") == alone


def test_several_workers_that_meet_at_every_part_make_the_same(family, alone, tmp_path):
    """Each worker in turn makes a part, in an order that changes; some of them twice, some for another's lease."""
    store, plan = store_in(tmp_path / "out"), planned(family, tmp_path / "out")
    plan = begin_run(store, plan, OpenModels(plan)).plan
    workers = [Worker(store, plan, OpenModels(plan), share=Share(number, 3)) for number in range(3)]
    turns = random.Random(1)
    for worker in workers:
        worker.look()
    units = [unit for unit in workers[0].units(0) for _ in range(2)]
    turns.shuffle(units)
    for unit in units:
        worker = turns.choice(workers)
        worker._present.clear() if turns.random() < 0.3 else None
        worker.do(unit)
    assert workers[1].run() and workers[2].run()
    assert written(tmp_path / "out") == alone


def test_a_run_that_is_stopped_goes_on_with_the_parts_that_are_missing(family, alone, tmp_path):
    store, plan = store_in(tmp_path / "out"), planned(family, tmp_path / "out")
    plan = begin_run(store, plan, OpenModels(plan)).plan
    starts, made = 0, 0
    while written(tmp_path / "out") != alone:
        starts += 1
        stop = threading.Event()

        def tell(event, stop=stop, **facts):
            nonlocal made
            made += event == "part"
            if event == "part" and made % 7 == 6:
                stop.set()

        work(store, plan, tell=tell, stop=stop)
        assert starts < 50
    assert starts > 3 and made == COUNT * 10, "no part was made twice"
    assert Records(store).ended(plan) == set(range(COUNT))
    # again: nothing is left to do, and a new start of the same command finds it so
    told = []
    assert work(store, plan, tell=lambda event, **facts: told.append(event)) and told == []


def test_a_damaged_part_is_made_again(family, alone, tmp_path):
    store, plan = store_in(tmp_path / "out"), planned(family, tmp_path / "out")
    plan = begin_run(store, plan, OpenModels(plan)).plan
    first = Worker(store, plan, OpenModels(plan))
    first.look()
    for unit in first.units(0):
        first.do(unit)
    names = store.names(".batch/parts/")
    assert len(names) == COUNT * 10
    raw = store.read(names[0])
    store.write(names[0], raw[:-9])
    store.write(names[1], store.read(names[1])[:-2] + b"xx")
    store.write(names[2], store.read(names[3]))
    assert work(store, plan) and written(tmp_path / "out") == alone


def test_a_plan_reads_back_as_it_was_written(family, tmp_path):
    plan = planned(family, tmp_path / "out", methods=("undo:0.5", "casa", "prolora"), rank=0.9, exclude=("ffn",))
    again = RunPlan.read(plan.text(), "there")
    assert again == plan and again.id == plan.id and again.text() == plan.text()
    assert RunPlan.read(planned(family, tmp_path / "out").text(), "there").id != plan.id
    with pytest.raises(FileFormatError, match="no plan of this version"):
        RunPlan.read(plan.text().replace('"plan": 1', '"plan": 99', 1), "there")
