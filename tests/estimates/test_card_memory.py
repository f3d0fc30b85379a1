"""How many layers are in work at once on a card, by its memory; on a card that only says how much is free."""

import pytest
import torch

from loraport.estimates import estimate as estimates
from loraport.estimates.card_memory import ROOM, bytes_in_work, bytes_kept, fitting, layers_at_a_time, room_on_card
from loraport.estimates.estimate import estimate
from loraport.inputs.open import prepare
from loraport.parallel.at_once import AT_MOST, READERS
from loraport.transfers.dry_run import dry_run
from loraport.transfers.passes import Pass
from loraport.workers import work as working
from loraport.workers.local.batch import Crew
from loraport.workers.models import OpenModels
from tests.parallel.card import Card
from tests.transfers.models import make_family
from tests.workers.runs import begun, planned, written

BLOCK = {
    width: [(width, width)] * 8 + [(inner, width), (width, inner)] for width, inner in ((1536, 8960), (5120, 13824))
}


@pytest.fixture
def card(monkeypatch):
    one = Card(monkeypatch)
    yield one
    one.close()


@pytest.mark.parametrize(
    ("width", "gigabytes", "count"),
    [
        (5120, 140, 4),
        (5120, 24, 4),
        (5120, 12, 3),
        (5120, 8, 2),
        (5120, 4, 1),
        (5120, 1, 1),
        (1536, 8, 4),
        (1536, 2, 2),
    ],
)
def test_as_many_layers_are_in_work_as_the_card_has_room_for(card, width, gigabytes, count):
    card.free = gigabytes * 10**9
    shapes = BLOCK[width] * 40
    assert layers_at_a_time(torch.device("cuda"), shapes) == count
    largest = sorted(map(bytes_in_work, shapes), reverse=True)
    assert count == 1 or sum(largest[:count]) <= ROOM * card.free
    assert count == AT_MOST["cuda"] or sum(largest[: count + 1]) > ROOM * card.free
    assert layers_at_a_time(torch.device("cuda"), shapes, basis=False) >= count


def test_what_the_process_holds_unused_is_room_and_what_it_uses_is_not(card, monkeypatch):
    card.free = 4 * 10**9
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10**9)
    assert room_on_card(torch.device("cuda")) == int(ROOM * 6 * 10**9)


def test_no_more_layers_than_there_are_and_one_in_any_case():
    assert [fitting(1e12, BLOCK[1536][:count]) for count in (0, 1, 3, 10)] == [1, 1, 3, 4]
    assert fitting(0, BLOCK[1536]) == 1


def test_an_estimate_for_a_card_counts_all_layers_in_work_and_those_that_are_read_before(card, tmp_path, monkeypatch):
    family = make_family(tmp_path, blocks=3)
    inputs = prepare(family.config())
    monkeypatch.setattr(estimates, "slowness", lambda: 1.0)
    on_processor = estimate([inputs])
    assert on_processor.card_bytes == 0
    monkeypatch.setattr("loraport.compute.find_device", lambda name: torch.device("cuda"))
    found = {}
    for count in (1, 2, 4):
        monkeypatch.setitem(AT_MOST, "cuda", count)
        found[count] = estimate([inputs])
    largest = max(bytes_in_work(job.shape) for job in inputs.plan.of("transfer"))
    assert [found[count].card_bytes / largest for count in (1, 2, 4)] == pytest.approx([1, 2, 4])
    per_layer = [12 * max(job.shape) * min(job.shape) + 8 * min(job.shape) ** 2 for job in inputs.plan.of("transfer")]
    held = [sum(sorted(per_layer, reverse=True)[: count + READERS]) for count in (1, 4)]
    assert found[4].memory_bytes - found[1].memory_bytes == pytest.approx(held[1] - held[0], abs=10**6)
    assert found[4].as_json()["card_bytes"] == found[4].card_bytes
    words = dry_run([Pass((family.config(),))]).in_words()
    assert "of the card's" in str(words)


def test_workers_of_one_card_divide_it(monkeypatch):
    devices = ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.setattr(Crew, "devices", lambda self, threads: devices)

    class Store:
        url = "there"

    assert [orders.sharing for orders in Crew().orders(Store(), "run", 1)] == [2, 1, 2]


def test_layers_stay_for_the_next_lora_while_there_is_room_beside_the_one_in_work(tmp_path):
    family = make_family(tmp_path)
    (tmp_path / "loras").mkdir()
    (tmp_path / "lora.safetensors").rename(tmp_path / "loras" / "lora.safetensors")
    plan = planned(family, tmp_path / "out")
    layers = OpenModels(plan).wave(0).jobs[0].layers
    names = [name for name, one in layers.items() if one.shape[0] == one.shape[1]][:3]
    shape = layers[names[0]].shape
    for room, staying in ((0, 1), (bytes_in_work(shape) + bytes_kept(shape), 2), (10**12, 3)):
        models = OpenModels(plan, resident_bytes=room)
        job = models.wave(0).jobs[0]
        first = models.layer(job, names[0])
        for name in names[1:]:
            models.layer(job, name)
        assert [models.is_resident(job, name) for name in names] == [staying > 2, staying > 1, True]
        assert (models.layer(job, names[0]) is first) == (staying > 2)


def test_a_worker_that_runs_out_of_memory_lets_go_of_the_layers_that_stayed(tmp_path, monkeypatch):
    family = make_family(tmp_path, blocks=1)
    (tmp_path / "loras").mkdir()
    (tmp_path / "lora.safetensors").rename(tmp_path / "loras" / "lora.safetensors")
    store, plan = begun(family, tmp_path / "out")
    models, staying, real = OpenModels(plan, resident_bytes=10**12), [], working.run_part

    def hungry(plan, part, models):
        staying.append(len(models._resident))
        if len(staying) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if len(staying) == 8:
            raise ValueError("another error")
        return real(plan, part, models)

    monkeypatch.setattr(working, "run_part", hungry)
    assert working.Worker(store, plan, models).run()
    assert staying[:10] == [1, 2, 3, 4, 0, 2, 3, 4, 4, 5]
    assert len(written(tmp_path / "out")) == 1
