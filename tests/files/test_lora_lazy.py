"""Updates read when they are asked for: each asker gets the layer it asked for, whoever else asks meanwhile."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from loraport.errors import InputError
from loraport.files.adapters.lora_layer import LazyUpdates, LoraLayer, Updates

NAMES = ("blocks.0.ffn.0", "blocks.1.ffn.0")


def lazy_updates(path, asked=lambda: None):
    """Updates that are their own names; `asked` is told of every reading."""

    def make(name):
        asked()
        return LoraLayer(lambda: name, (), 1.0, "")

    path.write_bytes(b"")
    lazy = LazyUpdates([path])
    return Updates({name: lazy.layer(lambda name=name: make(name)) for name in NAMES})


def test_whoever_asks_meanwhile_everybody_gets_the_layer_asked_for(tmp_path):
    """Also where the other asks while the layer is being read."""
    meanwhile = []

    def asked():
        if meanwhile:
            updates[meanwhile.pop()]

    updates = lazy_updates(tmp_path / "lora.safetensors", asked)
    meanwhile.append(NAMES[1])
    assert updates[NAMES[0]] == NAMES[0] and not meanwhile and updates[NAMES[0]] == NAMES[0]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda name: sum(updates[name] != name for _ in range(2000)), NAMES)) == [0, 0]


def test_each_is_read_once_at_first_and_the_last_is_kept(tmp_path):
    count = []
    updates = lazy_updates(tmp_path / "lora.safetensors", lambda: count.append(1))
    assert len(count) == 2
    assert [updates[name] for name in (*NAMES, NAMES[1], NAMES[1])] == [*NAMES, NAMES[1], NAMES[1]] and len(count) == 4


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    path = tmp_path / "lora.safetensors"
    updates = lazy_updates(path)
    assert [updates[name] for name in NAMES] == list(NAMES)
    path.write_bytes(b"other")
    with pytest.raises(InputError, match="was changed while it was in use"):
        updates[NAMES[0]]
