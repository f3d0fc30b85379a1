"""What cannot be read is refused by name, in one sentence, and nothing in a file is run or followed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from loraport.errors import InputError
from loraport.files.models.checkpoint import open_checkpoint
from tests import tiny
from tests.malformed.archives import ARCHIVES
from tests.malformed.checkpoints import MALFORMED, STATE

ALL = {**MALFORMED, **ARCHIVES}


@pytest.mark.parametrize("what", ALL)
def test_refused_by_name(what, tmp_path):
    write, message = ALL[what]
    place = write(tmp_path)
    with pytest.raises(InputError, match=message) as refusal:
        open_checkpoint(place)
    text = str(refusal.value)
    assert str(tmp_path) in text, "the message names the file"
    assert "\n" not in text
    assert not (tmp_path / "sprung").exists(), "a trap in a pickle went off"


def test_a_part_of_a_safetensors_file_is_refused(tmp_path):
    path = tiny.write_original(tmp_path / "m.safetensors", STATE)
    with pytest.raises(InputError, match="has no part 'generator'"):
        open_checkpoint(path, part="generator")


@pytest.mark.parametrize("kind", ["m.safetensors", "m.pt", "m.gguf"])
def test_random_damage_is_refused_or_harmless(kind, tmp_path):
    """Flipped bytes give an InputError or a model, never another exception."""
    path: Path = tmp_path / kind
    write = {
        "m.safetensors": tiny.write_original,
        "m.pt": lambda path, state: tiny.write_pickle(path, {"generator": state}),
        "m.gguf": lambda path, _: tiny.write_gguf(path, tiny.tiny_state(dim=32, ffn=64)),
    }[kind]
    whole = write(path, STATE).read_bytes()
    dice = random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 8)):
            damaged[dice.randrange(min(len(damaged), 12_000))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            open_checkpoint(path)
        except InputError:
            refused += 1
    assert refused > 5
