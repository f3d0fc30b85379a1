"""What goes wrong: LoRAs that break the work or kill it, stores that fail, clocks that differ, memory."""

import errno
import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

from loraport.errors import InputError, OutputError, SettingsError, UnreadableError
from loraport.inputs import open as opening
from loraport.objects.patience import Patience
from loraport.objects.store import ObjectStore
from loraport.workers import claims as leases
from loraport.workers import plan as plans
from loraport.workers import work as working
from loraport.workers.begin import begin_run
from loraport.workers.claims import Claims
from loraport.workers.local.process import Orders
from loraport.workers.models import OpenModels
from loraport.workers.records import Records
from loraport.workers.work import Worker
from tests.objects.unreliable import unreliable
from tests.workers.runs import COUNT, LAYERS, begun, planned, store_in, work, written


def breaking(monkeypatch, error, number, times=10**9):
    """Let the parts of a LoRA fail so often; return how often they have."""
    real, failed = working.run_part, []

    def run_part(plan, part, models):
        if part.job == number and len(failed) < times:
            failed.append(part)
            raise error
        return real(plan, part, models)

    monkeypatch.setattr(working, "run_part", run_part)
    return failed


@pytest.mark.parametrize(
    ("error", "tries", "reason"),
    [
        (RuntimeError("odd"), 3, "a fault of the program, RuntimeError in test_failures"),
        (MemoryError(), 3, "a fault of the program, MemoryError"),
        (UnreadableError("style.safetensors was replaced"), 3, "style.safetensors was replaced"),
        (InputError("the rank is infinite"), 1, "the rank is infinite"),
    ],
)
def test_a_lora_that_breaks_the_work_is_put_aside_and_the_others_go_on(
    family, alone, tmp_path, monkeypatch, error, tries, reason
):
    store, plan = begun(family, tmp_path / "out")
    failed, told = breaking(monkeypatch, error, 2), []
    assert work(store, plan, tell=lambda event, **facts: told.append((event, facts)))
    assert len(failed) == tries
    assert written(tmp_path / "out") == {name: raw for name, raw in alone.items() if "style2" not in name}
    end = Records(store).end(plan.jobs[2])
    assert not end.made and end.tries == tries and reason in end.row.reason and "layer blocks.0." in end.row.reason
    assert [facts["tries"] for event, facts in told if event == "failed"] == [tries]


def test_what_passes_by_itself_puts_nothing_aside(family, alone, tmp_path, monkeypatch):
    store, plan = begun(family, tmp_path / "out")
    failed = breaking(monkeypatch, OSError(errno.EIO, "Input/output error"), 1, times=2)
    assert work(store, plan) and len(failed) == 2 and written(tmp_path / "out") == alone


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers that die here are forks")
def test_a_lora_at_which_workers_die_is_put_aside_at_last(family, alone, tmp_path, monkeypatch):
    """As the system does where memory runs out: no exception, no goodbye."""
    store, plan = begun(family, tmp_path / "out")
    real = working.run_part

    def run_part(plan, part, models):
        if part.job == 3 and part.layer.endswith("ffn.0"):
            os._exit(9)
        return real(plan, part, models)

    monkeypatch.setattr(working, "run_part", run_part)
    deaths = 0
    while True:
        if (child := os.fork()) == 0:  # pragma: no cover
            try:
                os._exit(0 if work(store, plan) else 1)
            finally:
                os._exit(2)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            break
        deaths += 1
        assert code == 9 and deaths < 10
    assert deaths == 1 + working.TRIES, "the first death tells nothing of the part yet"
    assert written(tmp_path / "out") == {name: raw for name, raw in alone.items() if "style3" not in name}
    end = Records(store).end(plan.jobs[3])
    assert "3 workers died while they had it in work, at layer blocks.0.ffn.0" in end.row.reason


def test_a_store_that_fails_once_in_ten_changes_nothing(family, alone, tmp_path):
    store, plan = begun(family, tmp_path / "out")
    failing = unreliable(store, seed=5)
    assert work(failing, plan) and written(tmp_path / "out") == alone
    assert failing.backend.failed.total() > 10 and len(failing.backend.failed) > 3
    assert not [name for name in store.names(".batch/") if "/parts/" in name]


class Full:
    """A disk that has no room after so many writes."""

    def __init__(self, inside, left):
        self.inside, self.left = inside, left

    def __getattr__(self, name):
        ask = getattr(self.inside, name)

        def counted(*words):
            if name == "write" and ".batch/parts" in words[0]:
                self.left -= 1
                if self.left < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return ask(*words)

        return ask if name in ("url", "path") else counted


def test_a_full_disk_is_said_and_what_is_done_is_kept(family, alone, tmp_path):
    store, plan = begun(family, tmp_path / "out")
    full = ObjectStore(Full(store.backend, 7), Patience(0))
    with pytest.raises(OutputError, match=r"No space left on device.*make room, and start again; what is done is kept"):
        work(full, plan)
    assert len(store.names(".batch/parts/")) == 7 and store.names(".batch/leases/") == []
    made = []
    assert work(store, plan, tell=lambda event, **facts: made.append(event))
    assert made.count("part") == COUNT * len(LAYERS) - 7 and written(tmp_path / "out") == alone


def test_a_lease_is_taken_over_when_it_stands_still_by_the_watchers_own_clock(tmp_path, monkeypatch):
    """The clocks of two machines may differ by years; what is written holds no time at all."""
    store, now = store_in(tmp_path), [1000.0]
    with monkeypatch.context() as patch:
        patch.setattr(leases, "HOST", "far")
        patch.setattr(time, "time", lambda: 1e10)
        far = Claims(store, beat=1e9)
        assert (lease := far.take("a")) is not None and not lease.after_death
    here = Claims(store, beat=1e9, patience=60, clock=lambda: now[0])
    assert here.take("a") is None
    now[0] += 59
    assert here.take("a") is None
    far._beats += 1
    store.write("a", far._content())  # its heart beats
    now[0] += 59
    assert here.take("a") is None and here.take("b") is not None
    now[0] += 61
    taken = here.take("a")
    assert taken is not None and taken.after_death
    far.close()
    here.close()
    assert store.names("a") == store.names("b") == []


def test_a_lease_of_a_dead_process_of_this_machine_is_taken_at_once(tmp_path):
    store = store_in(tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name, content in {"dead": {"host": leases.HOST, "process": dead.pid}, "torn": {}}.items():
        store.write(name, json.dumps(content).encode())
        claims = Claims(store)
        assert claims.take(name).after_death
        claims.close()
    alive = Claims(store)
    assert alive.take("mine") is not None and Claims(store).take("mine") is None
    alive.close()


def test_workers_whose_clocks_and_leases_are_of_no_use_make_the_same(family, alone, tmp_path, monkeypatch):
    """Every worker takes every lease, as if all others were dead: the work is done more often, and to the same end."""
    store, plan = begun(family, tmp_path / "out")
    turns = random.Random(3)
    monkeypatch.setattr(Claims, "take", lambda self, name: leases.Lease(name, turns.random() < 0.3))
    workers = [Worker(store, plan, OpenModels(plan)) for _ in range(3)]
    for worker in workers:
        worker.look()
    for unit in workers[0].units(0)[:3]:
        for worker in workers[:2]:
            worker._present = set()
            worker.do(unit, careful=turns.random() < 0.5)
    assert all(worker.run() for worker in workers) and written(tmp_path / "out") == alone


def test_another_version_and_other_weights_are_refused(family, tmp_path, monkeypatch):
    store, plan = begun(family, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("loraport.workers.machine.__version__", "9.9")
        other = planned(family, tmp_path / "out")
        with pytest.raises(SettingsError, match=r"loraport 0\.1\.0 there, 9\.9 here"):
            begin_run(store, other, OpenModels(other))
    monkeypatch.setattr("loraport.workers.fingerprint.FileSamples.of", lambda self, path: "the same")
    assert Worker(store, plan, OpenModels(plan)).do(first_unit(store, plan)) == COUNT
    store.write(store.names(".batch/layers/")[0], json.dumps({"source": "other", "target": "other"}).encode())
    for name in store.names(".batch/parts/"):
        store.delete(name)
    with pytest.raises(UnreadableError, match=r"the source's weights of .* are not those that another worker"):
        Worker(store, plan, OpenModels(plan)).do(first_unit(store, plan))
    assert Records(store).ended(plan) == set(), "no LoRA is to blame"


def first_unit(store, plan):
    worker = Worker(store, plan, OpenModels(plan))
    worker.look()
    return worker.units(0)[0]


def test_memory_holds_a_wave_and_not_all(family, alone, tmp_path, monkeypatch):
    """Counted: opened LoRAs that are alive at once."""
    monkeypatch.setattr(plans, "AT_ONCE", 2)
    store, plan = begun(family, tmp_path / "out")
    assert len(plan.waves) == 2
    real, alive, most = opening.read_lora, [], []

    def counted(*given, **named):
        lora = real(*given, **named)
        alive.append(weakref.ref(lora))
        gc.collect()
        most.append(sum(one() is not None for one in alive))
        return lora

    monkeypatch.setattr(opening, "read_lora", counted)
    assert work(store, plan) and written(tmp_path / "out") == alone
    assert max(most) <= 3, "a wave, and what is being read"


def test_a_worker_that_is_stopped_opens_no_further_wave(family, tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "AT_ONCE", 1)
    store, plan = begun(family, tmp_path / "out")
    stop, opened, real = threading.Event(), [], OpenModels.wave
    monkeypatch.setattr(
        OpenModels, "wave", lambda self, number, *more: opened.append(number) or real(self, number, *more)
    )
    assert not work(store, plan, stop=stop, tell=lambda event, **facts: stop.set() if event == "part" else None)
    assert set(opened) == {0} and len(store.names(".batch/parts/")) == 1


@pytest.mark.slow
def test_a_process_that_is_asked_to_end_does_so_at_once_and_keeps_what_it_has_made(family, alone, tmp_path):
    store, plan = begun(family, tmp_path / "out")
    process = start(store, plan)
    for line in process.stdout:
        if json.loads(line)["event"] == "part":
            break
    process.send_signal(signal.SIGTERM)
    begun_at = time.monotonic()
    assert process.wait(10) == 0 and time.monotonic() - begun_at < 10
    assert store.names(".batch/leases/") == [] and store.names(".batch/parts/")
    process.stdin.close(), process.stdout.close()
    assert work(store, plan) and written(tmp_path / "out") == alone


def start(store, plan):
    process = subprocess.Popen(
        [sys.executable, "-m", "loraport.workers.local.process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, sys.path)))},
    )  # fmt: skip
    process.stdin.write(Orders(store.url, plan.id, device="cpu").line())
    process.stdin.flush()
    return process
