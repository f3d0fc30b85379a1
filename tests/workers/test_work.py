"""One worker, several, in any order, interrupted: the same bytes as `transfer`, and nothing left behind."""

import json
import random
import shutil
import threading
from pathlib import Path

import pytest

from loraport.batches.run import RefusedJobsError
from loraport.errors import FileFormatError
from loraport.objects.open import open_objects
from loraport.workers import work as work_of
from loraport.workers.begin import begin_run
from loraport.workers.collect import collect
from loraport.workers.models import OpenModels
from loraport.workers.parts import StoredParts
from loraport.workers.plan import RunPlan
from loraport.workers.records import Records
from loraport.workers.share import Share
from loraport.workers.summary import close_run
from loraport.workers.work import Worker
from tests.workers.runs import COUNT, LAYERS, begun, planned, store_in, work, written


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
        begun = begin_run(store, planned(family, tmp_path / "out"), OpenModels(plan))
        assert begun.joined == (number != order[0])
        over = work(store, begun.plan, share=Share(number, of), wait=None)
        assert written(tmp_path / "out") == (alone if over else {})
        assert not over or number != order[0]
    assert over and written(tmp_path / "out") == alone


def test_several_workers_that_meet_at_every_part_make_the_same(family, alone, tmp_path):
    """Each worker in turn makes a part, in an order that changes; some of them twice, some for another's lease."""
    store, plan = store_in(tmp_path / "out"), planned(family, tmp_path / "out")
    plan = begin_run(store, plan, OpenModels(plan)).plan
    workers = [Worker(store, plan, OpenModels(plan), prefer=Share(number, 3)) for number in range(3)]
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
            if event == "part" and made % 4 == 3:
                stop.set()

        work(store, plan, tell=tell, stop=stop)
        assert starts < 50
    assert starts > 3 and made == COUNT * len(LAYERS), "no part was made twice"
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
    assert len(names) == COUNT * len(LAYERS)
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


def test_shares_are_even_in_every_kind_of_layer_and_leave_nothing_out():
    kinds = {"q": 4.0, "k": 4.0, "o": 4.0, "ffn": 17.0}
    seconds = {f"blocks.{number}.{kind}": cost for number in range(40) for kind, cost in kinds.items()}
    for of in (1, 3, 8, 64):
        shares = [Share(number, of).own(seconds) for number in range(of)]
        assert sorted(name for share in shares for name in share) == sorted(seconds)
        loads = [sum(seconds[name] for name in share) for share in shares]
        assert max(loads) - min(loads) <= max(kinds.values())
        if of <= 8:
            for kind in kinds:
                counts = [sum(name.endswith(f".{kind}") for name in share) for share in shares]
                assert max(counts) - min(counts) <= 5, (of, kind, counts)


def test_a_share_takes_what_the_dead_of_others_have_left_and_nothing_else(family, alone, tmp_path):
    store, plan = begun(family, tmp_path / "out")
    seconds = Worker(store, plan, OpenModels(plan))._seconds_of_layers(0)
    mine, theirs = (Share(number, 2).own(seconds) for number in range(2))
    worker = Worker(store, plan, OpenModels(plan), share=Share(0, 2))
    dead = next(name for name in sorted(theirs) if name.endswith(LAYERS))
    store.write(worker._lease_of_layer(0, dead), b"{}")
    told = []
    worker.tell = lambda event, **facts: told.append(facts.get("layer"))
    assert not worker.run(wait=None)
    assert {name for name in told if name} == {name for name in mine if name.endswith(LAYERS)} | {dead}
    assert work(store, plan) and written(tmp_path / "out") == alone


def test_the_same_lora_under_several_names_is_made_once(family, alone, tmp_path):
    """Uploads are full of copies; they have the same parts, which stay until the last of them is gathered."""
    copies = tmp_path / "copies"
    for number in range(3):
        for name in ("style0", "style1"):
            path = copies / f"{number}" / f"{name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(family.folder / f"loras/{name}.safetensors", path)
    store, told = store_in(tmp_path / "out"), []
    plan = begin_run(store, plan := planned(family, tmp_path / "out", loras=copies), OpenModels(plan)).plan
    assert work(store, plan, tell=lambda event, **facts: told.append(event))
    assert told.count("part") == 2 * len(LAYERS) and told.count("made") == 6
    made = written(tmp_path / "out")
    assert len(made) == 6 and all(raw == alone[Path(name).name] for name, raw in made.items())
    assert store.names(".batch/parts/") == []


def test_a_store_that_loses_parts_ends_with_a_sentence(family, tmp_path, monkeypatch):
    """Rather than with parts that are made for ever."""
    store, plan = begun(family, tmp_path / "out")
    monkeypatch.setattr(StoredParts, "_entry", lambda self, name: None)
    monkeypatch.setattr(work_of, "MOST_LOSSES", 2)
    assert work(store, plan)
    reasons = [Records(store).end(job).row.reason for job in plan.jobs]
    assert all("though it was made 2 times; is the store in order?" in reason for reason in reasons)


@pytest.mark.parametrize("format", ["same", "peft"])
def test_in_an_object_store_results_are_objects(family, alone, tmp_path, format):
    pytest.importorskip("fsspec")
    url = f"memory://{tmp_path.name}/run"
    store, plan = open_objects(url), planned(family, url, format=format, cache=str(tmp_path / "cache"))
    assert work(store, begin_run(store, plan, OpenModels(plan)).plan)
    made = {name: store.read(name) for name in store.names() if not name.startswith(".batch/")}
    if format == "same":
        assert made == alone
        assert collect(store, tmp_path / "here").made and written(tmp_path / "here") == alone
    else:
        assert sorted(made)[:2] == ["style0-casa/adapter_config.json", "style0-casa/adapter_model.safetensors"]
        assert len(made) == 2 * COUNT
    close_run(store, plan)
    again = planned(family, url, format=format)
    assert begin_run(store, again, OpenModels(again)).already == set(range(COUNT))
    close_run(store, again)
    store.write("style0-casa.safetensors" if format == "same" else "style0-casa/adapter_model.safetensors", b"theirs")
    with pytest.raises(RefusedJobsError, match="is there already and is no transfer"):
        begin_run(store, again, OpenModels(again))
