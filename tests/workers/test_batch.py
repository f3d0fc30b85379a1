"""The commands, with processes: the same bytes, whatever dies, and what they say."""

import json
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file

from loraport.errors import InputError
from tests.workers.runs import COUNT, LAYERS, written

LAYER = "diffusion_model.blocks.0.self_attn.q"


def words(family, out, *more, loras=None):
    return ["batch", loras or family.folder / "loras", "--source", family.source, "--target", family.target,
            "-o", out, "--no-cache", "--device", "cpu", *more]  # fmt: skip


@pytest.fixture
def in_this_process(monkeypatch):
    """Workers as threads of the test, one after the other: as many orders, and no start of a process each."""
    from loraport.workers.local import batch, process

    class Told(process.Events):
        def __init__(self, number, hear):
            self.number, self.hear, self.over = number, hear, False

        def tell(self, event, **facts):
            self.over = self.over or (event == "left" and facts["over"])
            self.hear(event, json.loads(json.dumps({**facts, "worker": self.number})))

    def run_workers(orders, hear):
        told = [Told(one.number, hear) for one in orders]
        for one, events in zip(orders, told, strict=True):
            process.work(one, events, threading.Event())
        return any(events.over for events in told)

    monkeypatch.setattr(batch, "run_workers", run_workers)
    yield
    process._WORKERS.clear()


@pytest.mark.slow
def test_two_processes_write_what_transfer_writes(family, alone, run, tmp_path):
    events = tmp_path / "events.jsonl"
    code, out, err = run(*words(family, tmp_path / "out", "--workers", 2, "--events", events, "--json"))
    assert code == 0, err
    assert json.loads(out)["failures"] == [] and written(tmp_path / "out") == alone
    told = [json.loads(line) for line in events.read_text().splitlines()]
    kinds = [one["event"] for one in told]
    assert (kinds[0], kinds[-1]) == ("planned", "ended") and kinds.count("finished") == 4 == kinds.count("started")
    parts = [one for one in told if one["event"] == "part"]
    assert len(parts) >= COUNT * len(LAYERS) and all(one["seconds"] > 0 and one["bytes"] > 0 for one in parts)


def test_shards_status_and_gather(family, alone, run, tmp_path, in_this_process):
    out = tmp_path / "out"
    code, _, err = run("status", out)
    assert code == 2 and "has no run" in err
    for number in (1, 0, 2):
        if number == 2:
            told = json.loads(run("status", out, "--json")[1])
            assert told["state"] == "stopped" and told["made"] == 0 and told["parts"] > 0 and told["left"] == 4
            assert 0.3 < told["progress"] < 0.9
            code, said, err = run("gather", out)
            assert code == 3 and "0 of 4 results are there" in said and "not all of its parts are there" in err
        code, said, err = run(*words(family, out, "--shard", f"{number}/3"))
        assert code == 0, err
        assert ("this share is done, and others are not" in err) == (number != 2)
    assert written(out) == alone
    told = json.loads(run("status", out, "--json")[1])
    assert told["state"] == "over" and told["made"] == 4 and told["failed"] == told["left"] == told["parts"] == 0
    code, said, _ = run("gather", out, "-o", tmp_path / "copy")
    assert code == 0 and "4 of 4 results are there, 0 of them gathered now, 4 files copied" in said
    assert written(tmp_path / "copy") == alone
    # nothing is left to do; and what is not as it was is made again, and nothing else
    code, said, _ = run(*words(family, out, "--shard", "0/1"))
    assert code == 0 and "nothing was left to do: 4 of 4 were there already" in said
    (out / "style1-casa.safetensors").write_bytes(b"damaged")
    code, said, err = run(*words(family, out, "--shard", "0/1"))
    assert code == 2 and "style1-casa.safetensors is there already and is no transfer" in err
    (out / "style1-casa.safetensors").unlink()
    code, said, err = run(*words(family, out, "--shard", "0/1", "--json"))
    assert code == 0 and len(json.loads(said)["already"]) == 3 and written(out) == alone


def test_parts_that_are_all_there_are_gathered_by_whoever_comes(
    family, alone, run, tmp_path, in_this_process, monkeypatch
):
    from loraport.workers.work import Worker

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_gather_claimed", lambda self, job: 0)
        assert run(*words(family, tmp_path / "out", "--shard", "0/1"))[0] == 0
    assert written(tmp_path / "out") == {}
    code, said, _ = run("gather", tmp_path / "out", "--json")
    assert code == 0 and len(json.loads(said)["gathered"]) == 4 and written(tmp_path / "out") == alone


def test_broken_loras_are_refused_or_left_out_and_later_mended(family, alone, run, tmp_path, in_this_process):
    loras = tmp_path / "loras"
    loras.mkdir()
    for number in range(4):
        (loras / f"style{number}.safetensors").write_bytes(
            (family.folder / f"loras/style{number}.safetensors").read_bytes()
        )
    good = (loras / "style2.safetensors").read_bytes()
    (loras / "style2.safetensors").write_bytes(good[:-7])
    call = words(family, tmp_path / "out", "--workers", 1, loras=loras)
    code, said, err = run(*call)
    assert code == 2 and "1 of 4 transfers are refused, and none was begun (--keep-going" in err and "truncated" in err
    assert not (tmp_path / "out").exists() or written(tmp_path / "out") == {}
    code, said, err = run(*call, "--keep-going", "--json")
    told = json.loads(said)
    assert code == 3 and [Path(one["lora"]).name for one in told["failures"]] == ["style2.safetensors"]
    assert "truncated" in told["failures"][0]["reason"] and "truncated" in run("status", tmp_path / "out")[2]
    assert written(tmp_path / "out") == {name: raw for name, raw in alone.items() if "style2" not in name}
    (loras / "style2.safetensors").write_bytes(good)
    code, said, err = run(*call, "--keep-going", "--json")
    assert code == 0 and len(json.loads(said)["already"]) == 3 and written(tmp_path / "out") == alone


def test_runs_that_do_not_go_together_are_told_apart(family, run, tmp_path, in_this_process):
    out = tmp_path / "out"
    assert run(*words(family, out, "--shard", "0/2"))[0] == 0
    code, _, err = run(*words(family, out, "--shard", "1/2", "--dtype", "fp16"))
    assert (
        code == 2
        and "makes the same outputs otherwise (style0-casa.safetensors: dtype is bf16 there, fp16 here)" in err
    )
    code, _, err = run(*words(family, out, "--shard", "1/2", "--threads", 2))
    assert code == 2 and "begun on another kind of machine" in err and "threads a layer 1 there, 2 here" in err
    code, _, err = run(*words(family, out, "--dtype", "fp16", "--workers", 1, "--fresh"))
    assert code == 0 and len(written(out)) == 4
    assert load_file(out / "style0-casa.safetensors")[f"{LAYER}.lora_A.weight"].dtype.itemsize == 2


@pytest.mark.parametrize(
    ("more", "message"),
    {
        ("--shard", "2/2"): "shards are numbered 0/2 to 1/2",
        ("--shard", "one"): "write i/N",
        ("--workers", "0"): "needs at least one",
        ("--name", "../{name}"): "outside the folder",
    }.items(),
)
def test_what_is_no_crew(family, run, tmp_path, more, message):
    code, _, err = run(*words(family, tmp_path / "out", *more))
    assert code == 2 and message in err and not (tmp_path / "out" / ".batch" / "parts").exists()


def test_parts_of_the_files_arrive_as_they_were_typed(family, run, tmp_path, monkeypatch):
    seen = []

    def plan_jobs(words, request, **_):
        seen.append(request.template)
        raise InputError("enough")

    monkeypatch.setattr("loraport.batches.jobs.plan_jobs", plan_jobs)
    parts = ("--source-part", "one", "--target-part", "two", "--lora-part", "three")
    code, _, err = run(*words(family, tmp_path / "out", *parts))
    assert code == 2 and "enough" in err
    assert [(one.source_part, one.target_part, one.lora_part) for one in seen] == [("one", "two", "three")]
    assert seen[0].source == family.source and seen[0].target == family.target
