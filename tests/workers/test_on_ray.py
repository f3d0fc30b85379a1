"""Cards of a cluster make what one worker makes; a machine that is gone, a card that dies, a LoRA that kills it."""

import importlib.util
import itertools
import os
import shutil
import signal
from pathlib import Path

import pytest

from loraport.errors import InputError, MissingError, UnreadableError
from loraport.files.disk.ownership import HOST
from loraport.objects.open import open_objects
from loraport.workers.begin import begin_run
from loraport.workers.models import OpenModels
from loraport.workers.on_ray.card import Card, CardOrders, files_of_lora
from loraport.workers.on_ray.cluster import CardDiedError
from loraport.workers.on_ray.coordinator import ClusterRun
from loraport.workers.on_ray.owners import Owners
from loraport.workers.on_ray.run import run_on_ray
from loraport.workers.records import Records
from tests.workers.runs import COUNT, planned, store_in, written

RAY = importlib.util.find_spec("ray")


class Cards:
    """A cluster without Ray: calls are made when somebody waits for them, by cards in this process.

    `deadly`: LoRAs that kill the card that has them; `gone_after`: after so many calls the machine of a card is gone.
    """

    def __init__(self, count, machines=None, deadly=(), gone_after=None):
        self.machines = machines or [f"m{number}" for number in range(count)]
        self.deadly, self.gone_after, self.gone = deadly, gone_after, set()
        self.actors, self.queue, self.results, self.numbers = [], [], {}, itertools.count()
        self.made, self.opened = [], 0

    def cards(self, orders, threads):
        self.actors = [_Actor(self, orders, machine) for machine in self.machines]
        return self.actors

    def living(self):
        return set(self.machines) - self.gone

    def facts(self, actor):
        return self.put(lambda: actor.answer())

    def put(self, call):
        reference = next(self.numbers)
        self.queue.append((reference, call))
        return reference

    def share(self, files):
        return files

    def next_done(self, references, seconds):
        if not self.queue:
            return []
        reference, call = self.queue.pop(0)
        try:
            self.results[reference] = call()
        except Exception as error:
            self.results[reference] = error
        return [reference] if reference in references else []

    def result(self, reference):
        found = self.results.pop(reference)
        if isinstance(found, Exception):
            raise found
        return found

    def stop(self, actor):
        actor.stopped = True


class _Actor:
    def __init__(self, cluster, orders, machine):
        self.cluster, self.orders, self.machine, self.stopped = cluster, orders, machine, False
        self.card = Card(orders, lambda reference: reference, machine)
        self.make, self.gather = _Method(self, "make"), _Method(self, "gather")

    def answer(self):
        if self.machine in self.cluster.gone:
            raise CardDiedError("no answer")
        return self.card.facts_of_card


class _Method:
    def __init__(self, actor, name):
        self.actor, self.name = actor, name

    def remote(self, *words):
        return self.actor.cluster.put(lambda: self.call(*words))

    def call(self, *words):
        actor, cluster = self.actor, self.actor.cluster
        if self.name == "make":
            cluster.made.append((actor.machine, *words[:3]))
            if cluster.gone_after is not None and len(cluster.made) > cluster.gone_after:
                cluster.gone.add(cluster.machines[0])
            loras = [actor.card.place_of(job) for job in words[2]]
            if actor.machine in cluster.gone or any(deadly in lora for lora in loras for deadly in cluster.deadly):
                actor.card = Card(actor.orders, lambda reference: reference, actor.machine)
                raise CardDiedError("it died")
        return getattr(actor.card, self.name)(*words)


def begun(family, folder, url=None, **changes):
    store = open_objects(url) if url else store_in(folder)
    plan = planned(family, folder, **changes)
    return store, begin_run(store, plan, OpenModels(plan)).plan


def on_cards(store, plan, cards, **orders):
    told = []
    url = None if store.folder is not None else store.url
    run = ClusterRun(cards, store, plan, lambda event, facts: told.append((event, facts)), CardOrders(
        plan.text(), "the run", url, "cpu", **orders,
    ))  # fmt: skip
    try:
        run.start()
        return run.work(), told
    finally:
        run.end()


@pytest.mark.parametrize("count", [1, 3])
def test_cards_make_what_transfer_writes(family, alone, tmp_path, count):
    store, plan = begun(family, tmp_path / "out")
    cards = Cards(count)
    over, told = on_cards(store, plan, cards)
    assert over and written(tmp_path / "out") == alone
    assert sum(event == "made" for event, _ in told) == COUNT
    layers = [layer for _, _, layer, _ in cards.made]
    assert len(layers) == len(set(layers)), "a layer has one card, and goes there once a wave"
    assert len({machine for machine, *_ in cards.made}) == count
    assert not [name for name in store.names(".batch/") if "/parts/" in name] and all(
        one.stopped for one in cards.actors
    )


def test_cards_that_reach_the_store_write_to_it_themselves(family, alone, tmp_path, monkeypatch):
    from loraport.workers.on_ray import card

    url = f"memory://on-cards-{tmp_path.name}/out"
    store, plan = begun(family, tmp_path / "out", url)
    monkeypatch.setattr(card, "_is_reachable", lambda place: "style1" in place)
    monkeypatch.setattr(card.tempfile, "gettempdir", lambda: str(tmp_path / "machine"))
    over, _ = on_cards(store, plan, Cards(2))
    assert over and {name: store.read(name) for name in store.names() if "/" not in name} == alone
    assert all(Records(store).end(job).job == job.id for job in plan.jobs), "a later start knows it again"


def test_loras_that_a_machine_does_not_have_come_by_reference(family, alone, tmp_path, monkeypatch):
    from loraport.workers.on_ray import card

    store, plan = begun(family, tmp_path / "out")
    monkeypatch.setattr(card, "_is_reachable", lambda place: "style1" in place)
    monkeypatch.setattr(card.tempfile, "gettempdir", lambda: str(tmp_path / "machine"))
    over, _ = on_cards(store, plan, Cards(2))
    assert over and written(tmp_path / "out") == alone
    assert len([*(tmp_path / "machine").rglob("*.safetensors")]) == COUNT - 1


@pytest.mark.parametrize("after", [0, 2])
def test_the_layers_of_a_machine_that_is_gone_go_to_the_others(family, alone, tmp_path, after, monkeypatch):
    from loraport.workers.on_ray import coordinator

    monkeypatch.setattr(coordinator, "LOOK", 0.0)
    store, plan = begun(family, tmp_path / "out")
    over, told = on_cards(store, plan, Cards(3, gone_after=after))
    assert over and written(tmp_path / "out") == alone
    assert [facts["reason"] for event, facts in told if event == "died"] == [
        f"the machine {HOST} is gone, and its layers go to the others"
    ]


def test_when_all_machines_are_gone_the_rest_is_made_by_a_later_start(family, alone, tmp_path):
    store, plan = begun(family, tmp_path / "out")
    first, second = Cards(1, gone_after=2), Cards(2)
    with pytest.raises(InputError, match=r"no card is left: .*; start again: what is done is kept"):
        on_cards(store, plan, first)
    over, _ = on_cards(store, plan, second)
    assert over and written(tmp_path / "out") == alone
    assert {layer for *_, layer, _ in first.made[:2]}.isdisjoint(layer for *_, layer, _ in second.made)


def test_a_lora_that_kills_its_card_is_put_aside_and_the_others_are_made(family, alone, tmp_path):
    store, plan = begun(family, tmp_path / "out")
    over, told = on_cards(store, plan, Cards(2, deadly=["style3"]))
    assert over
    made = {name: content for name, content in alone.items() if "style3" not in name}
    assert written(tmp_path / "out") == made
    end = Records(store).end(next(job for job in plan.jobs if "style3" in job.name))
    assert not end.made and "cards died 3 times while they had it in work, at layer" in end.row.reason
    assert [facts["job"] for event, facts in told if event == "failed"] == [3]


def test_a_lora_that_cannot_be_read_any_more_is_put_aside_and_no_card_is_lost(family, alone, tmp_path, monkeypatch):
    from loraport.workers.on_ray import card

    def run_part(plan, part, models, own=card.run_part):
        if "style2" in plan.jobs[part.job].config.lora:
            raise UnreadableError("style2.safetensors was replaced while it was read")
        return own(plan, part, models)

    monkeypatch.setattr(card, "run_part", run_part)
    store, plan = begun(family, tmp_path / "out")
    over, told = on_cards(store, plan, Cards(2))
    assert over and not [event for event, _ in told if event == "died"]
    assert written(tmp_path / "out") == {name: content for name, content in alone.items() if "style2" not in name}
    assert [facts["tries"] for event, facts in told if event == "failed"] == [3]


def test_other_models_on_another_machine_are_refused(family, tmp_path, monkeypatch):
    store, plan = begun(family, tmp_path / "out")
    other = tmp_path / "other"
    shutil.copytree(family.folder, other)
    source = Path(plan.jobs[0].config.source)
    cards = Cards(1)
    text = plan.text().replace(str(source), str(other / source.relative_to(family.folder)))
    with (other / source.relative_to(family.folder)).open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    told = []
    run = ClusterRun(cards, store, plan, lambda *event: told.append(event), CardOrders(text, "the run", None, "cpu"))
    run.start()
    with pytest.raises(UnreadableError, match="are others than here: copy the same files to all machines"):
        run.work()


def test_layers_go_to_the_card_with_the_least_work_that_has_room():
    owners = Owners({0: 10.0, 1: 100.0})
    owners.give({"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, dict.fromkeys("abcd", 10.0))
    assert owners.cards[0].layers == {"a"} and owners.cards[1].layers == {"b", "c", "d"}
    assert set(owners.lose(1)) == {"b", "c", "d"}
    owners.give({"b": 3.0, "c": 2.0}, dict.fromkeys("bc", 10.0))  # nobody has room, so the work alone counts
    assert owners.of("b") == owners.of("c") == 0
    owners = Owners({0: 0.0, 1: 0.0, 2: 0.0})
    owners.give({f"{number}": 1.0 for number in range(9)}, {f"{number}": 1.0 for number in range(9)})
    assert sorted(len(card.layers) for card in owners.cards.values()) == [3, 3, 3]


def test_a_folder_comes_with_all_its_files(tmp_path):
    (tmp_path / "adapter_config.json").write_bytes(b"{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"1")
    assert files_of_lora(str(tmp_path)) == {"adapter_config.json": b"{}", "adapter_model.safetensors": b"1"}
    assert files_of_lora(str(tmp_path / "adapter_model.safetensors")) == {"": b"1"}


@pytest.mark.skipif(RAY is not None, reason="Ray is installed")
def test_without_ray_it_is_said_how_to_get_it(family, tmp_path, run):
    store, plan = begun(family, tmp_path / "out")
    with pytest.raises(MissingError, match=r"pip install 'loraport\[ray\]'"):
        run_on_ray(store, plan, address="local", hear=lambda *_: None)
    words = ("batch", family.folder / "loras", "--source", family.source, "--target", family.target)
    code, _, told = run(*words, "-o", tmp_path / "other", "--ray", "local")
    assert code == 4 and "pip install 'loraport[ray]'" in told
    code, _, told = run(*words, "-o", tmp_path / "other", "--ray", "local", "--workers", "2")
    assert code == 2 and "leave out --workers" in told


@pytest.mark.slow
@pytest.mark.skipif(RAY is None, reason="Ray is not installed: make test-ray")
def test_a_real_cluster_with_a_node_removed_and_a_process_killed(family, alone, tmp_path, monkeypatch):
    """Two machines with a card each that is none: what one worker writes, though a process and a machine are lost."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    system = {
        "worker_niceness": 0,  # else what other tests take is not left for it
        "health_check_initial_delay_ms": 1000,  # else a dead machine is noticed after half a minute
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 3,
    }
    head = {"num_cpus": 1, "num_gpus": 1, "_system_config": system}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1)]
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        store, plan = begun(family, tmp_path / "out")
        told, processes = [], {}

        def hear(event, facts):
            told.append(event)
            if event == "began":
                processes[facts["node"]] = facts["process"]
            if event == "opened":  # the layers are given out, and both cards get theirs now
                os.kill(processes[cluster.head_node.node_id], signal.SIGKILL)
                cluster.remove_node(nodes.pop(), allow_graceful=False)

        assert run_on_ray(store, plan, address=cluster.address, hear=hear, device="cpu")
        assert written(tmp_path / "out") == alone
        assert told.count("died") == 2 and told.count("made") == COUNT
    finally:
        ray.shutdown()
        cluster.shutdown()
