"""Updates read on demand: each asker gets the layer it asked for, whoever else asks meanwhile."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from loraport.errors import InputError
from loraport.files.adapters.lazy import OnDemand

NAMES = ("blocks.0.ffn.0", "blocks.1.ffn.0")


class Interrupted(str):
    """A name in whose comparison somebody else asks for another layer, as another thread may."""

    def __ne__(self, other):
        self.meanwhile()
        return str.__ne__(self, other)

    __hash__ = str.__hash__


def test_whoever_asks_meanwhile_everybody_gets_the_layer_asked_for(tmp_path):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"")
    updates = OnDemand([path], {name: lambda name=name: name for name in NAMES})
    asked = Interrupted(NAMES[0])
    asked.meanwhile = lambda: updates[NAMES[1]]
    assert updates[NAMES[0]] == NAMES[0] and updates[asked] == NAMES[0]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda name: sum(updates[name] != name for _ in range(2000)), NAMES)) == [0, 0]


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"")
    updates = OnDemand([path], {name: lambda name=name: name for name in NAMES})
    assert [updates[name] for name in NAMES] == list(NAMES)
    path.write_bytes(b"other")
    with pytest.raises(InputError, match="was changed while it was in use"):
        updates[NAMES[0]]
