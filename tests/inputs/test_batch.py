"""Several LoRAs and methods in one pass: the bytes of single runs, weights read once, refused whole or done whole."""

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.errors import FileFormatError, InputError, OutputError, SettingsError
from loraport.files.lora.read import read_lora
from loraport.files.models.checkpoint import Checkpoint
from loraport.inputs.batch import one_or_many, output_name
from loraport.inputs.open import prepare_many
from loraport.inputs.recipes import method_list
from loraport.methods import layer as method_layer
from loraport.methods.recipes import METHODS, find_recipe
from loraport.methods.settings import ProloraSettings
from loraport.store import basis_source
from loraport.transfers import run as running
from loraport.transfers.run import transfer, transfer_many
from tests import tiny
from tests.transfers.models import make_family


@pytest.fixture
def family(tmp_path):
    """A family with LoRAs of few layers, the second of another rank: `other.safetensors`."""
    family = make_family(tmp_path, blocks=1)
    tiny.write_lora(tmp_path / "other.safetensors", few(tiny.lora_factors(family.source_state, seed=7, rank=3)))
    family = replace(family, factors=few(family.factors))
    tiny.write_lora(Path(family.lora), family.factors)
    return family


def few(factors: dict) -> dict:
    """A square, a tall and a wide layer."""
    return {f"blocks.0.{layer}": factors[f"blocks.0.{layer}"] for layer in ("self_attn.q", "ffn.0", "ffn.2")}


def other(family) -> str:
    return str(family.folder / "other.safetensors")


def configs(family, methods, loras=None, folder="many", **changes):
    """What the command line makes of several LoRAs and methods."""
    owned = {"prolora": ProloraSettings("rank:9", phi_min=0.0)}
    recipes = [find_recipe(method, owned.get(method)) for method in methods]
    return one_or_many(family.config(folder, **changes), loras or [family.lora, other(family)], recipes)


def alone(config, folder: Path):
    """The bytes that a run of its own writes."""
    output = folder / "alone" / Path(config.output).name
    return Path(transfer(replace(config, output=str(output), cache=None)).output).read_bytes()


@pytest.mark.slow
def test_every_output_of_a_pass_has_the_bytes_of_its_own_run(family):
    many = configs(family, [*METHODS, "direct:1.15", "direct-matched:undo"])
    batch = transfer_many(many)
    assert len(batch.runs) == len(many) == 2 * (len(METHODS) + 2) and not batch.lost
    names = {Path(run.output).name for run in batch.runs}
    assert {"lora-casa.safetensors", "other-direct-1.15.safetensors", "lora-direct-matched-undo.safetensors"} <= names
    contents = [Path(config.output).read_bytes() for config in many]
    assert contents == [alone(config, family.folder) for config in many]
    assert len(set(contents)) == len(many), "and no two are alike"
    assert not list((family.folder / "many").glob("*.partial"))


@pytest.mark.parametrize("format", ["peft", "kohya"])
def test_formats_and_dense_differences_too(family, format):
    many = configs(family, ["casa", "direct"], format=format)
    transfer_many(many)
    for config in many:
        written = Path(config.output)
        assert written.is_dir() == (format == "peft") and written.name.endswith(".safetensors") == (format != "peft")
        where = written / "adapter_model.safetensors" if format == "peft" else written
        single = family.folder / "alone" / written.name
        transfer(replace(config, output=str(single)))
        assert where.read_bytes() == (single / where.name if format == "peft" else single).read_bytes()
    dense = configs(family, ["casa", "direct"], folder="dense", as_diff=True)
    transfer_many(dense)
    assert all(Path(config.output).read_bytes() == alone(config, family.folder) for config in dense)


def test_weights_bases_and_routing_are_made_once_a_layer(family, monkeypatch):
    """Counted on the real functions; alone, each run pays for itself."""
    counts: Counter = Counter()

    def counted(owner, name):
        real = getattr(owner, name)

        def call(*arguments, **named):
            counts[name] += 1
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, call)

    counted(Checkpoint, "load")
    counted(basis_source, "half_basis")
    counted(method_layer, "observe")
    layers = len(family.factors)
    methods = ["casa", "restore-only", "direct-matched", "prolora", "lora-x", "undo"]
    transfer_many(configs(family, methods, cache=None))
    assert counts == {"load": 2 * layers, "half_basis": 2 * layers, "observe": layers}
    counts.clear()
    for config in configs(family, methods, folder="singly", cache=None):
        transfer(config)
    assert counts == {"load": 2 * 12 * layers, "half_basis": (3 + 2 + 1) * 2 * layers, "observe": 3 * 2 * layers}
    counts.clear()
    transfer_many(configs(family, ["direct", "undo"], folder="cheap", cache=None))
    assert counts == {"load": 2 * layers}, "what no method looks at is not made"


def test_memory_does_not_hold_the_loras(family):
    """Of several LoRAs none is kept; the only one is."""
    several = prepare_many(configs(family, ["casa"]))
    (only,) = prepare_many(configs(family, ["casa"], [family.lora], str(family.folder / "x.safetensors")))
    name = next(iter(only.lora.layers))
    assert only.lora.updates[name] is only.lora.updates[name]
    kept, read = only.lora.updates[name], several[0].lora.updates[name]
    assert torch.equal(kept.B, read.B) and torch.equal(kept.A, read.A)
    seen = weakref.ref(read)
    del read
    for following in several[0].lora.layers:
        several[0].lora.updates[following]
    gc.collect()
    assert seen() is None


def test_a_lora_that_changes_on_the_way_is_noticed(family):
    lora = read_lora(other(family), keep=False)
    assert set(lora.layers) == set(family.factors) and "blocks.9" not in lora.layers and len(lora.layers) == 3
    tiny.write_lora(family.folder / "other.safetensors", tiny.lora_factors(family.source_state, seed=8, rank=5))
    with pytest.raises(InputError, match="was changed while it was in use"):
        lora.updates["blocks.0.ffn.0"]
    Path(other(family)).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        lora.updates["blocks.0.ffn.0"]


def test_stopped_anywhere_it_goes_on_to_the_same_bytes(family, monkeypatch):
    many = configs(family, ["casa", "core"])
    wanted = [alone(config, family.folder) for config in many]
    real, calls = running.LayerTransfer.__call__, []

    def dies(self, *rest):
        calls.append(rest[0].name)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return real(self, *rest)

    monkeypatch.setattr(running.LayerTransfer, "__call__", dies)
    done = 0
    for stop in (2, 4, 5):  # in the middle of a layer's runs, and later
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            transfer_many(many)
        done += stop - 1
        assert len(list((family.folder / "many").rglob("*.safetensors"))) == done
        assert not any(Path(config.output).is_file() for config in many)
    calls.clear()
    stop = 0
    assert len(transfer_many(many).runs) == 4 and len(calls) == 4 * len(family.factors) - done
    assert [Path(config.output).read_bytes() for config in many] == wanted


def test_a_run_alone_goes_on_from_a_pass_and_a_stop_between_files_loses_nothing(family, monkeypatch):
    many = configs(family, ["casa", "direct"])
    wanted = [alone(config, family.folder) for config in many]
    real, written = running.output_contents, []

    def dies(ready, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(ready.config.output)
        return real(ready, *rest)

    monkeypatch.setattr(running, "output_contents", dies)
    with pytest.raises(KeyboardInterrupt):
        transfer_many(many)
    monkeypatch.setattr(running, "output_contents", real)
    monkeypatch.setattr(running.LayerTransfer, "__call__", lambda *_: pytest.fail("done again"))
    transfer(many[2])
    assert Path(many[2].output).read_bytes() == wanted[2]
    monkeypatch.undo()
    transfer_many(many)
    assert [Path(config.output).read_bytes() for config in many] == wanted


@pytest.mark.slow
def test_killed_at_any_moment_a_pass_continues_to_the_same_bytes(family):
    """A real process, a real SIGKILL."""
    many = configs(family, ["casa", "prolora"], dtype="bf16")
    many = [replace(config, settings=None) for config in many]
    wanted = [alone(config, family.folder) for config in many]
    folder = family.folder / "many"
    command = [sys.executable, "-m", "loraport", "transfer", family.lora, other(family), "--source", family.source,
               "--target", family.target, "-o", str(folder), "--method", "casa,prolora", "-q",
               "--cache", str(family.folder / "cache2")]  # fmt: skip
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and len(list(folder.rglob("*.safetensors"))) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, env=dict(os.environ), check=True)
    assert [Path(config.output).read_bytes() for config in many] == wanted
    assert not list(folder.glob("*.partial")) and not list(folder.glob("*.part"))


@pytest.mark.parametrize("bad", ["text", "nan", "shape", "alien", "missing"])
def test_one_broken_lora_stops_all_before_the_work_and_is_named(family, monkeypatch, bad):
    path = family.folder / "broken.safetensors"
    if bad == "text":
        path.write_text("this is no safetensors file at all")
    elif bad == "shape":
        tiny.write_lora(path, tiny.lora_factors(tiny.tiny_state(0, dim=48)))
    elif bad == "alien":
        tiny.write_lora(path, {"encoder.0": (torch.ones(4, 2), torch.ones(2, 4))})
    elif bad == "nan":
        tensors = load_file(family.lora)
        tensors["diffusion_model.blocks.0.ffn.2.lora_A.weight"][0, 0] = float("nan")
        save_file(tensors, path)
    monkeypatch.setattr(running, "transfer_layers", lambda *_: pytest.fail("work began"))
    with pytest.raises(InputError, match=r"broken\.safetensors"):
        transfer_many(configs(family, ["casa", "direct"], [family.lora, str(path)]))
    assert not (family.folder / "many").exists()


def test_all_refused_loras_are_named_at_once(family):
    """With each reason, so that a folder of uploads is mended in one go."""
    text, alien = family.folder / "text.safetensors", family.folder / "alien.safetensors"
    text.write_text("this is no safetensors file at all")
    tiny.write_lora(alien, {"encoder.0": (torch.ones(4, 2), torch.ones(2, 4))})
    with pytest.raises(InputError) as refused:
        transfer_many(configs(family, ["casa", "direct"], [str(text), family.lora, str(alien)]))
    first, *lines = str(refused.value).splitlines()
    assert first == "4 of 6 transfers cannot be made, so none was begun:"
    assert [str(place) in line for place, line in zip((text, alien), lines, strict=True)] == [True, True]


@pytest.mark.parametrize("keep_going", [True, False])
def test_a_run_that_fails_on_the_way_takes_no_other_with_it_where_that_is_asked_for(family, monkeypatch, keep_going):
    """Its layers wait for the next start; without being asked for, all wait."""
    many = configs(family, ["casa"])
    real = running.LayerTransfer.__call__

    def refuses(self, job, *rest):
        if self.lora_sha256 == broken and job.name.endswith("ffn.2"):
            raise InputError(f"{job.name} is odd")
        return real(self, job, *rest)

    broken = read_lora(family.lora).sha256
    monkeypatch.setattr(running.LayerTransfer, "__call__", refuses)
    seen: list = []
    if not keep_going:
        with pytest.raises(InputError, match=r"ffn\.2 is odd"):
            running.transfer_prepared(prepare_many(many), each=seen.append)
        assert seen == [] and not any(Path(config.output).exists() for config in many)
        return
    batch = running.transfer_prepared(prepare_many(many), keep_going=True, each=seen.append)
    (lost,) = batch.not_written
    assert seen == [lost, *batch.runs] and batch.runs[0].output == many[1].output
    assert lost.lora == family.lora and "ffn.2 is odd" in lost.reason and "--exclude blocks.0.ffn.2" in lost.reason
    assert Path(many[1].output).read_bytes() == alone(many[1], family.folder)
    monkeypatch.setattr(running.LayerTransfer, "__call__", real)
    assert transfer(many[0]) and Path(many[0].output).read_bytes() == alone(many[0], family.folder)


def test_an_output_that_another_process_makes_is_that_ones(family):
    from loraport.transfers.journal import Journal

    many = configs(family, ["casa"])
    with Journal(Path(many[0].output), "another's", torch.float32):
        with pytest.raises(OutputError, match="is being made by another run"):
            transfer_many(many)
        batch = running.transfer_prepared(prepare_many(many), keep_going=True)
    assert "is being made by another run" in batch.not_written[0].reason and len(batch.runs) == 1
    assert not Path(many[0].output).exists() and Path(many[1].output).exists()


def test_what_cannot_be_one_pass_is_refused(family, monkeypatch):
    monkeypatch.setattr(running, "transfer_layers", lambda *_: pytest.fail("work began"))
    twin = family.folder / "deeper" / "LORA.safetensors"
    twin.parent.mkdir()
    twin.write_bytes(Path(family.lora).read_bytes())
    with pytest.raises(SettingsError, match=r"lora\.safetensors by casa and .*LORA\.safetensors by casa would both be"):
        transfer_many(configs(family, ["casa", "core"], [family.lora, str(twin)]))
    first, second = configs(family, ["casa"])
    elsewhere = replace(second, target=family.source)
    with pytest.raises(SettingsError, match="all transfers in one pass must have the same target"):
        transfer_many([first, elsewhere])
    with pytest.raises(SettingsError, match="nothing to transfer"):
        transfer_many([])
    with pytest.raises(OutputError, match="is a file, but several"):
        configs(family, ["casa", "core"], folder="lora.safetensors")
    with pytest.raises(OutputError, match="is the name of a file, but several"):
        configs(family, ["casa", "core"], folder="new.safetensors")
    # an output that is an input of another run of the same pass
    named = tiny.write_lora(family.folder / "lora-casa.safetensors", tiny.lora_factors(family.source_state, seed=9))
    with pytest.raises(OutputError, match=r"lora-casa\.safetensors is an input of this run"):
        transfer_many(configs(family, ["casa", "core"], [family.lora, str(named)], folder="."))
    with pytest.raises(FileFormatError, match="is a LoRA, where a model belongs"):
        transfer_many(configs(family, ["casa"], target=str(named)))


def test_foreign_files_in_one_journal_cost_no_other_journal_its_layers(family, monkeypatch):
    many = configs(family, ["casa", "core"])
    real = running.output_contents
    monkeypatch.setattr(running, "output_contents", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        transfer_many(many)
    monkeypatch.setattr(running, "output_contents", real)
    mine = Path(f"{many[2].output}.partial") / "mine.txt"
    mine.write_text("precious")
    with pytest.raises(OutputError, match="which no transfer wrote"):
        transfer_many(many)
    mine.unlink()
    monkeypatch.setattr(running.LayerTransfer, "__call__", lambda *_: pytest.fail("done again"))
    assert len(transfer_many(many).runs) == 4


def test_a_run_that_has_nothing_to_write_does_not_take_the_others_with_it(family):
    many = list(configs(family, ["casa", "prolora"], [family.lora]))
    many[1] = replace(many[1], settings=ProloraSettings("rank:3", phi_min=1.0))
    batch = transfer_many(many)
    assert batch.lost and [run.method for run in batch.runs] == ["casa"] and not Path(many[1].output).exists()
    assert batch.not_written[0][0] == many[1].output and "gives no layer an adapter" in batch.not_written[0][1]
    with pytest.raises(SettingsError, match="gives no layer an adapter"):
        transfer_many(many[1:])


def test_names_of_outputs(family, tmp_path):
    (tmp_path / "folder.of" / "peft").mkdir(parents=True)
    assert output_name(family.lora, "direct:1.15") == "lora-direct-1.15"
    assert output_name(str(tmp_path / "folder.of" / "peft") + "/", "casa") == "peft-casa"
    assert output_name("someone/style-lora", "casa") == "style-lora-casa"
    assert output_name("someone/loras:wan/noir.v2.safetensors", "direct-matched:undo:0.5") == (
        "noir.v2-direct-matched-undo-0.5"
    )
    assert method_list("casa, prolora,direct:1.15") == ("casa", "prolora", "direct:1.15")
    for text, message in {"casa,,core": "one of them is empty", "casa,casa": "given twice"}.items():
        with pytest.raises(SettingsError, match=message):
            method_list(text)


def test_what_is_wrong_with_one_ends_that_one_alone(family):
    """Broken inputs, outputs that cannot be: the others have the bytes of their own runs."""
    torn = family.folder / "torn.safetensors"
    torn.write_bytes(Path(family.lora).read_bytes()[:200])
    tensors = load_file(family.lora)
    good = family.config("good.safetensors", method="direct")
    wrong = {
        "torn.safetensors": replace(good, lora=str(torn), output=str(family.folder / "a.safetensors")),
        "has no .safetensors ending": replace(good, output=str(family.folder / "b")),
        "is an input of this run": replace(good, output=family.lora),
    }
    batch = transfer_many([*wrong.values(), good], keep_going=True)
    assert [run.output for run in batch.runs] == [good.output] and batch.lost and batch.several
    reasons = {one.output: one.reason for one in batch.not_written}
    assert all(message in reasons[config.output] for message, config in wrong.items())
    assert load_file(family.lora).keys() == tensors.keys()
    alone = transfer_many([replace(good, output=str(family.folder / "alone.safetensors"))])
    assert Path(good.output).read_bytes() == Path(alone.runs[0].output).read_bytes()
    with pytest.raises(InputError, match=r"torn.safetensors"):
        transfer_many([wrong["torn.safetensors"], good])
    none = transfer_many([wrong["torn.safetensors"]], keep_going=True)
    assert none.runs == () and none.lost and len(none.as_json()["not_written"]) == 1
    with pytest.raises(InputError, match="nowhere"):
        transfer_many([replace(good, source=str(family.folder / "nowhere"))], keep_going=True)
