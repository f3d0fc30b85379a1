"""Two hundred LoRAs of which twenty are broken, a restart, a change, and what is written about them."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.batches import checks
from loraport.cli.commands import many
from loraport.transfers.run import transfer
from tests import tiny
from tests.transfers.models import make_family

LAYER = "diffusion_model.blocks.0.self_attn.q"
COUNT, BROKEN = 200, 20


def one_layer(family, seed: int) -> dict:
    name = "blocks.0.self_attn.q"
    return {name: tiny.lora_factors({f"{name}.weight": family.source_state[f"{name}.weight"]}, seed=seed, rank=2)[name]}


WAYS = {
    "truncated": lambda path, tensors: path.write_bytes(path.read_bytes()[:-7]),
    "text": lambda path, tensors: path.write_text("<html>404</html>"),
    "empty": lambda path, tensors: path.write_bytes(b""),
    "NaN": lambda path, tensors: save_file(
        {**tensors, f"{LAYER}.lora_A.weight": torch.full((2, tiny.DIM), float("nan"))}, path
    ),
    "half a pair": lambda path, tensors: save_file({f"{LAYER}.lora_A.weight": tensors[f"{LAYER}.lora_A.weight"]}, path),
    "ranks disagree": lambda path, tensors: save_file(
        {**tensors, f"{LAYER}.lora_A.weight": torch.ones(3, tiny.DIM)}, path
    ),
    "another size": lambda path, tensors: tiny.write_lora(
        path, {"blocks.0.self_attn.q": (torch.ones(48, 2), torch.ones(2, 48))}
    ),
    "another model": lambda path, tensors: tiny.write_lora(path, {"encoder.0": (torch.ones(4, 2), torch.ones(2, 4))}),
    "a checkpoint": lambda path, tensors: tiny.write_original(path, {"blocks.0.self_attn.q.weight": torch.ones(4, 4)}),
    "a pickle that runs code": lambda path, tensors: write_trap(path),
}


class Trap:
    def __reduce__(self):
        return os.system, ("touch /tmp/it-ran",)


def write_trap(path: Path) -> None:
    path.unlink()
    torch.save({"lora": Trap()}, path.with_suffix(".pt"))


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """A family, and a folder of 200 LoRAs in folders of ten; of every tenth folder's files all are broken."""
    family = make_family(tmp_path_factory.mktemp("uploads"), blocks=1)
    broken = {}
    for number in range(COUNT):
        path = family.folder / "loras" / f"user{number // 10:02}" / f"style{number % 10}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny.write_lora(path, one_layer(family, number))
        if number % 10 == 3:
            way = list(WAYS)[number // 10 % len(WAYS)]
            WAYS[way](path, load_file(path))
            broken[path if path.exists() else path.with_suffix(".pt")] = way
    (family.folder / "loras" / "README.txt").write_text("not a LoRA")
    assert len(broken) == BROKEN and {*broken.values()} == {*WAYS}
    return family, broken


def words(family, *more):
    return ["transfer", family.folder / "loras", "--source", family.source, "--target", family.target,
            "-o", family.folder / "moved", "--method", "direct", "--no-cache", *more]  # fmt: skip


def test_without_keep_going_all_reasons_are_told_and_nothing_is_written(uploads, run):
    family, broken = uploads
    code, out, err = run(*words(family))
    first, *lines = err.splitlines()
    assert code == 2 and out == "" and not (family.folder / "moved").exists()
    assert first == "loraport: 20 of 200 transfers are refused, and none was begun (--keep-going does the others):"
    assert [str(path) in line for path, line in zip(sorted(broken), lines, strict=True)] == [True] * BROKEN


@pytest.mark.slow
def test_with_it_all_others_are_made_and_a_restart_does_nothing(uploads, run, monkeypatch):
    family, broken = uploads
    moved, events = family.folder / "moved", family.folder / "events.jsonl"
    table, page = family.folder / "table.csv", family.folder / "page.html"
    more = ("--keep-going", "--events", events, "--table", table, "--report", page)
    monkeypatch.setattr(many, "SECTIONS", 2)
    code, out, err = run(*words(family, *more))
    made = sorted(moved.rglob("*"))
    assert code == 3 and sum(path.is_file() for path in made) == COUNT - BROKEN
    assert (moved / "user07" / "style9-direct.safetensors") in made, "folders are kept"
    assert "180 files took" in out and "20 failed" in out
    said = [line for line in err.splitlines() if "was not written" in line]
    assert len(said) == BROKEN and all(any(str(path) in line for line in said) for path in broken)
    assert not [path for path in made if path.name.startswith(".") or path.suffix == ".partial"]
    assert not Path("/tmp/it-ran").exists()
    # the bytes are those of a run alone
    alone = family.config("alone.safetensors", lora=str(family.folder / "loras/user19/style0.safetensors"),
                          method="direct", dtype="bf16", cache=None)  # fmt: skip
    transfer(alone)
    assert Path(alone.output).read_bytes() == (moved / "user19" / "style0-direct.safetensors").read_bytes()
    # events, table and page
    told = [json.loads(line) for line in events.read_text().splitlines()]
    kinds = [one["event"] for one in told]
    assert (kinds[0], kinds[-1]) == ("planned", "ended") and kinds.count("started") == kinds.count("finished") == 180
    assert kinds.count("failed") == 20 and all(one["reason"] for one in told if one["event"] == "failed")
    assert all(one["seconds"] >= 0 for one in told if one["event"] == "finished")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 200 and {row["lora"] for row in rows if row["status"] == "failed"} == {*map(str, broken)}
    html = page.read_text()
    assert all(str(path) in html for path in broken) and "user07/style9-direct.safetensors" in html
    assert "180 made, 0 there already, 20 failed" in html and html.count('<details class="run">') == 2
    # what would be done is nothing
    code, out, _ = run(*words(family, "--keep-going", "--dry-run", "--json"))
    told = json.loads(out)
    assert code == 0 and told["runs"] == [] and len(told["already"]) == 180 and len(told["failures"]) == 20
    # again: nothing is done, and the same is said of the broken ones
    before = {path: path.stat().st_mtime_ns for path in made}
    monkeypatch.setattr("loraport.batches.run.transfer_prepared", lambda *_, **__: pytest.fail("work began"))
    code, out, err = run(*words(family, "--keep-going"))
    assert code == 3 and "nothing was left to do: 180 of 200 were there already; 20 failed" in out
    assert {path: path.stat().st_mtime_ns for path in sorted(moved.rglob("*"))} == before


@pytest.mark.slow
def test_only_what_has_changed_is_made_again(uploads, run, tmp_path, monkeypatch):
    """Another LoRA under the name, another setting, another weight in the target; and not a copy of the models."""
    family, _ = uploads
    monkeypatch.setattr(checks, "AT_ONCE", 4)
    few = [family.folder / "loras" / "user00" / f"style{number}.safetensors" for number in (0, 1, 2, 4, 5, 6)]
    target = tmp_path / "target.safetensors"
    state = dict(family.target_state)
    tiny.write_original(target, state)

    def done(*more, target=target) -> dict:
        code, out, _ = run("transfer", *few, "--source", family.source, "--target", target, "--method", "undo:0.5",
                             "-o", tmp_path / "moved", "--no-cache", "--json", *more)  # fmt: skip
        told = json.loads(out)
        assert code == 0 and len(told["runs"]) + len(told["already"]) == 6
        return told

    assert done()["already"] == []
    assert len(done()["already"]) == 6
    copy = tmp_path / "elsewhere" / "copy.safetensors"
    copy.parent.mkdir()
    shutil.copy(target, copy)
    assert len(done(target=copy)["already"]) == 6
    tiny.write_lora(few[0], one_layer(family, 1000))
    assert [Path(one["lora"]).name for one in done()["runs"]] == ["style0.safetensors"]
    assert len(done("--rank", "3")["runs"]) == 6 and len(done("--rank", "3")["already"]) == 6
    state["blocks.0.self_attn.q.weight"] = state["blocks.0.self_attn.q.weight"] + 0.01
    tiny.write_original(target, state)
    assert len(done("--rank", "3")["runs"]) == 6
    assert len(done("--rank", "3", "--overwrite")["runs"]) == 6
    few[0].unlink()
    tiny.write_lora(few[0], one_layer(family, 0))


def test_stopped_between_a_result_and_its_cleaning_nothing_is_left_behind(uploads, run, tmp_path, monkeypatch):
    from loraport.transfers.journal import Journal

    family, _ = uploads
    call = ["transfer", family.folder / "loras" / "user00" / "style0.safetensors", "--source", family.source,
            "--target", family.target, "--method", "direct", "-o", f"{tmp_path / 'out'}/", "--no-cache"]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda self: os._exit(9) if os.getppid() == parent else None)
        parent = os.getpid()
        if (child := os.fork()) == 0:  # pragma: no cover
            try:
                run(*call)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "style0-direct.safetensors" in names and "style0-direct.safetensors.partial" in names
    assert run(*call)[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["style0-direct.safetensors"]


def test_what_is_not_ours_is_never_replaced(uploads, run, tmp_path):
    family, _ = uploads
    lora = family.folder / "loras" / "user00" / "style0.safetensors"
    (tmp_path / "out").mkdir()
    theirs = tmp_path / "out" / "style0-direct.safetensors"
    theirs.write_bytes(b"precious")
    call = ["transfer", lora, "--source", family.source, "--target", family.target, "--method", "direct",
            "-o", tmp_path / "out", "--no-cache"]  # fmt: skip
    code, _, err = run(*call)
    assert code == 2 and "is there already and is no transfer" in err and theirs.read_bytes() == b"precious"
    assert run(*call, "--overwrite")[0] == 0 and theirs.read_bytes() != b"precious"


def test_a_second_process_with_the_same_jobs_says_so_and_leaves(uploads, run, tmp_path, monkeypatch):
    """Met in the middle: the second start comes while the first is at work."""
    family, _ = uploads
    call = ["transfer", family.folder / "loras" / "user01", "--source", family.source, "--target", family.target,
            "--method", "direct", "-o", tmp_path / "out", "--no-cache", "--keep-going"]  # fmt: skip
    from loraport.batches import run as running

    real, inner = running.check_plan, []

    def meanwhile(*given, **named):
        if not inner:
            inner.append(None)
            inner.append(run(*call))
        return real(*given, **named)

    monkeypatch.setattr(running, "check_plan", meanwhile)
    assert run(*call)[0] == 3
    code, _, err = inner[1]
    assert code == 2 and "is being made by another run" in err and "wait for its end" in err
    assert len(list((tmp_path / "out").iterdir())) == 9


def test_memory_holds_a_portion_and_not_all(uploads, monkeypatch, run, tmp_path):
    """Counted: opened LoRAs that are alive at once."""
    import gc
    import weakref

    from loraport.inputs import open as opening

    family, _ = uploads
    monkeypatch.setattr(checks, "AT_ONCE", 8)
    real, alive, most = opening.read_lora, [], []

    def counted(*given, **named):
        lora = real(*given, **named)
        alive.append(weakref.ref(lora))
        if len(alive) % 10 == 0:
            gc.collect()
            most.append(sum(one() is not None for one in alive))
        return lora

    monkeypatch.setattr(opening, "read_lora", counted)
    folders = [family.folder / "loras" / f"user{number:02}" for number in range(4, 8)]
    run("transfer", *folders, "--source", family.source, "--target", family.target, "--method", "direct",
        "-o", tmp_path / "out", "--no-cache", "--keep-going")  # fmt: skip
    assert len(alive) > 70 and max(most) <= 2 * 8, "each was read twice, and never more than two portions were held"
    assert len(list((tmp_path / "out").glob("user0*/*.safetensors"))) == 36, "of one name, told apart by their folders"


@pytest.mark.parametrize("where", ["reading", "a layer"])
@pytest.mark.parametrize("keep_going", [True, False])
def test_a_lora_that_the_program_fails_on_does_not_stop_the_others(
    uploads, run, tmp_path, monkeypatch, where, keep_going
):
    """A fault of ours, met by one upload of a night: it is told as such, and reported; alone it is a traceback."""
    from loraport.files.lora.read import read_lora
    from loraport.inputs import open as opening
    from loraport.transfers import run as running

    family, _ = uploads
    folder = family.folder / "loras" / "user02"
    bad = folder / "style7.safetensors"
    sha256 = read_lora(str(bad)).sha256
    real_read, real_layer = opening.read_lora, running.LayerTransfer.__call__

    def read(place, **named):
        if where == "reading" and place == str(bad):
            raise KeyError("odd")
        return real_read(place, **named)

    def layer(self, *given):
        if where == "a layer" and self.lora_sha256 == sha256:
            raise KeyError("odd")
        return real_layer(self, *given)

    monkeypatch.setattr(opening, "read_lora", read)
    monkeypatch.setattr(running.LayerTransfer, "__call__", layer)
    some = [folder / f"style{number}.safetensors" for number in (5, 6, 7, 8)]
    call = ["transfer", *some, "--source", family.source, "--target", family.target, "--method", "direct",
            "-o", tmp_path / "out", "--no-cache"]  # fmt: skip
    code, _, err = run(*call, *(["--keep-going"] if keep_going else []))
    made = list((tmp_path / "out").glob("*.safetensors"))
    if keep_going:
        assert code == 3 and len(made) == 3
        assert "a fault of the program, KeyError in test_many.py" in err and "please report it, with this LoRA" in err
    else:
        assert code == 1 and made == [] and "Traceback" in err
