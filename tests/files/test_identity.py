"""A file that becomes another one while it is read: an error that says so, never its bytes at the old places."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loraport.errors import UnreadableError
from loraport.files.formats.gguf import read_gguf
from loraport.files.lora.read import read_lora
from loraport.files.models.checkpoint import open_checkpoint
from tests import tiny

STATE = tiny.tiny_state(0)


def safetensors(path, state, note="") -> None:
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, {"note": note})


def pickle(path, state, note="") -> None:
    torch.save({**state, "note": torch.zeros(1 + len(note))}, path)


def gguf(path, state, note="") -> None:
    import gguf as library

    writer = library.GGUFWriter(path, "wan")
    writer.add_string("general.note", note)
    for key, tensor in state.items():
        writer.add_tensor(key, tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


FORMS = {".safetensors": safetensors, ".pt": pickle, ".gguf": gguf}


def moved_in(path, write, state, note) -> None:
    """Another file takes the name, as downloads and trainers do."""
    other = path.with_name("new" + path.suffix)
    write(other, state, note)
    os.replace(other, path)


def written_over(path, write, state, note) -> None:
    """The same file with other content, as `cp` makes it."""
    other = path.with_name("new" + path.suffix)
    write(other, state, note)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("how", [moved_in, written_over])
@pytest.mark.parametrize("ending", FORMS)
def test_a_replaced_model_is_never_read_by_the_old_header(tmp_path, ending, how):
    path, write = tmp_path / f"model{ending}", FORMS[ending]
    write(path, STATE)
    model = open_checkpoint(path)
    name = "blocks.0.self_attn.q.weight"
    assert torch.equal(model.tensor(name), STATE[name])
    how(path, write, STATE, "a longer header")
    with pytest.raises(UnreadableError, match=rf"model\{ending} was replaced while it was read; start again"):
        model.tensor(name)
    assert torch.equal(open_checkpoint(path).tensor(name), STATE[name])


def test_a_shard_counts_too_and_the_others_are_still_read(tmp_path):
    half = len(STATE) // 2
    parts = [dict(list(STATE.items())[:half]), dict(list(STATE.items())[half:])]
    paths = [tmp_path / f"m-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for path, part in zip(paths, parts, strict=True):
        safetensors(path, part)
    model = open_checkpoint(tmp_path)
    moved_in(paths[0], safetensors, parts[0], "x" * 9)
    assert torch.equal(model.tensor(next(iter(parts[1]))), next(iter(parts[1].values())))
    with pytest.raises(UnreadableError, match="00001-of-00002"):
        model.tensor(next(iter(parts[0])))


@pytest.mark.parametrize("dense", [False, True])
def test_a_lora_that_is_replaced_on_the_way_is_told(tmp_path, monkeypatch, dense):
    from loraport.files.models import model_files

    path = tiny.write_lora(tmp_path / "lora.safetensors", tiny.lora_factors(STATE))
    real = model_files.read_safetensors

    def and_then_replaced(place):
        found = real(place)
        other = tiny.write_lora(tmp_path / "other.safetensors", tiny.lora_factors(STATE, rank=6))
        os.replace(other, place)
        return found

    monkeypatch.setattr(model_files, "read_safetensors", and_then_replaced)
    with pytest.raises(UnreadableError, match="was replaced while it was read"):
        read_lora(path, dense=dense)


def test_the_same_file_touched_by_nobody_is_read_again_and_again(tmp_path):
    gguf(tmp_path / "a.gguf", STATE)
    tensors, _ = read_gguf(tmp_path / "a.gguf")
    for _ in range(3):
        assert all(torch.equal(one.read(), STATE[name]) for name, one in tensors.items())
