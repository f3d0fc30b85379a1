"""The same transfer with one, two and four layers in work: the same bytes, each layer one thread's alone."""

import gc
import threading
import weakref
from pathlib import Path

import pytest
import torch

from loraport.errors import SettingsError
from loraport.parallel import at_once
from loraport.spectral.basis import half_basis
from loraport.store import basis_source
from loraport.transfers.layer import LayerTransfer
from loraport.transfers.layer_source import LayerWeights, StoredLayer
from loraport.transfers.run import transfer, transfer_many
from tests.transfers.models import make_family


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def layers_at_a_time(monkeypatch):
    """Sets how many layers are in work, and by how many threads they are read before: as on a card, if any."""
    before = torch.get_num_threads()

    def set_both(count, readers=None):
        torch.set_num_threads(count)
        monkeypatch.setitem(at_once.AT_MOST, "cpu", count)
        if readers is not None:
            monkeypatch.setattr(at_once, "readers_for", lambda device, at_a_time: readers)

    yield set_both
    torch.set_num_threads(before)


def test_the_same_bytes_however_many_layers_are_in_work(family, layers_at_a_time, tmp_path):
    written = set()
    for count, readers, cache in ((1, None, None), (2, None, "cold"), (4, None, None), (4, 4, "cold"), (2, 4, "new")):
        layers_at_a_time(count, readers)
        config = family.config("same.safetensors", method="casa", cache=cache and str(tmp_path / cache))
        transfer(config)
        written.add(Path(config.output).read_bytes())
    assert len(written) == 1


@pytest.mark.parametrize("count", [2, 4])
def test_a_layer_is_one_threads_alone_and_goes_when_it_is_done(family, layers_at_a_time, monkeypatch, count):
    """So what is made of it lies in one stream, and no more layers are in memory than are in work."""
    layers_at_a_time(count, 4)
    threads, alive, most, lock = [], weakref.WeakSet(), [], threading.Lock()
    begin = LayerWeights.__init__

    def counted(self, *given, **named):
        begin(self, *given, **named)
        with lock:
            alive.add(self)
            most.append(len(alive))

    def seen(self, name):
        of_layer = object.__getattribute__(self, "__dict__")
        if "_threads" not in of_layer:
            of_layer["_threads"] = set()
            threads.append(of_layer["_threads"])
        of_layer["_threads"].add(threading.get_ident())
        return object.__getattribute__(self, name)

    monkeypatch.setattr(LayerWeights, "__init__", counted)
    monkeypatch.setattr(LayerWeights, "__getattribute__", seen)
    gc.disable()  # memory of a card is free when nothing refers to it, and not when Python looks for circles
    try:
        transfer_many([family.config(f"{method}.safetensors", method=method) for method in ("casa", "prolora", "undo")])
    finally:
        gc.enable()
    assert len(threads) == 20 and all(len(of_layer) == 1 for of_layer in threads)
    assert len(set.union(*threads)) > 1 and max(most) <= count


@pytest.mark.parametrize("readers", [0, 4])
def test_what_was_read_goes_when_there_are_numbers_of_it(family, layers_at_a_time, monkeypatch, readers):
    """The files' bytes and the cache's entries: pinned memory of a card, where it is one."""
    layers_at_a_time(1, readers)
    on, call, seen = StoredLayer.on, LayerTransfer.__call__, []

    def noted(self, *given, **named):
        seen.append(weakref.ref(self))
        return on(self, *given, **named)

    def checked(self, *given):
        assert seen[-1]() is None
        return call(self, *given)

    monkeypatch.setattr(StoredLayer, "on", noted)
    monkeypatch.setattr(LayerTransfer, "__call__", checked)
    transfer(family.config("read.safetensors"))
    assert len(seen) == 20


def test_a_layer_that_finds_no_room_beside_others_is_begun_anew_and_the_bytes_are_the_same(
    family, layers_at_a_time, monkeypatch
):
    layers_at_a_time(4)
    config = family.config("crowded.safetensors", cache=None)
    transfer(config)
    undisturbed, failures, together = Path(config.output).read_bytes(), [], threading.Barrier(3, timeout=20)

    def hungry(W):
        if len(failures) < 3:
            failures.append(threading.get_ident())
            together.wait()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return half_basis(W)

    monkeypatch.setattr(basis_source, "half_basis", hungry)
    transfer(config)
    assert len(failures) == 3 and Path(config.output).read_bytes() == undisturbed


def test_a_layer_that_finds_no_room_even_alone_is_an_error_of_one_sentence(family, layers_at_a_time, monkeypatch):
    layers_at_a_time(2)

    def hungry(W):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")

    monkeypatch.setattr(basis_source, "half_basis", hungry)
    with pytest.raises(SettingsError, match=r"does not suffice for a layer; close .* \(CUDA out of memory\. Tried"):
        transfer(family.config("none.safetensors", cache=None))
