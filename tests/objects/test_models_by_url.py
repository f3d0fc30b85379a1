"""Models and LoRAs behind a URL give what the same files on the disk give, and only what is needed is read."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.errors import FileFormatError, InputError, UnreadableError
from loraport.files.models.checkpoint import open_checkpoint
from loraport.inputs.config import TransferConfig
from loraport.objects import url_path
from loraport.objects.network import FsspecFolder
from loraport.objects.open import open_objects
from loraport.transfers.run import transfer
from tests.transfers.models import make_family

by_url = pytest.mark.parametrize("place", ["memory", "s3"], indirect=True)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return make_family(tmp_path_factory.mktemp("pair"), blocks=1)


def put(place, path):
    """Put a file or a folder into a store under a place; return its URL."""
    store = open_objects(place)
    for file in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
        name = path.name if path.is_file() else f"{path.name}/{file.relative_to(path).as_posix()}"
        store.write(name, file.read_bytes())
    return f"{place}/{path.name}"


@pytest.fixture
def read_bytes(monkeypatch):
    """Counts bytes that are read of each object."""
    counts, read = Counter(), FsspecFolder.read

    def counted(self, name, start=None, stop=None):
        found = read(self, name, start, stop)
        counts[name] += len(found)
        return found

    monkeypatch.setattr(FsspecFolder, "read", counted)
    return counts


@by_url
def test_a_transfer_of_files_in_a_store_writes_what_one_of_files_on_the_disk_does(family, place, tmp_path):
    places = [put(place, Path(one)) for one in (family.lora, family.source, family.target)]
    transfer(TransferConfig(family.lora, family.source, family.target, str(tmp_path / "here.safetensors")))
    transfer(TransferConfig(*places, str(tmp_path / "there.safetensors")))
    assert (tmp_path / "here.safetensors").read_bytes() == (tmp_path / "there.safetensors").read_bytes()


@by_url
def test_only_the_header_and_the_tensors_that_are_asked_for_are_read(place, tmp_path, read_bytes):
    weights = {f"blocks.0.self_attn.{letter}.weight": torch.randn(300, 300) for letter in "qkvo"}
    path = tmp_path / "large.safetensors"
    save_file(weights, path)
    url = put(place, path)
    read_bytes.clear()
    model = open_checkpoint(url)
    header = read_bytes.total()
    assert set(model.names()) == set(weights) and 0 < header < path.stat().st_size / 10
    name = "blocks.0.self_attn.v.weight"
    assert model.tensor(name).equal(weights[name])
    assert read_bytes.total() - header == weights[name].nbytes


def test_a_large_tensor_comes_in_pieces_that_are_read_ahead(place_in_memory, tmp_path, monkeypatch, read_bytes):
    monkeypatch.setattr(url_path, "PIECE", 1000)
    weights = {"blocks.0.self_attn.q.weight": torch.randn(70, 90), "blocks.0.self_attn.k.weight": torch.randn(3, 5)}
    save_file(weights, tmp_path / "model.safetensors")
    model = open_checkpoint(put(place_in_memory, tmp_path / "model.safetensors"))
    read_bytes.clear()
    for name, weight in weights.items():
        assert model.tensor(name).equal(weight)
    assert read_bytes.total() == sum(one.nbytes for one in weights.values())


@pytest.fixture
def place_in_memory(tmp_path):
    return f"memory://{tmp_path.name}/models"


def test_shards_with_an_index_are_opened_as_a_folder(family, place_in_memory, tmp_path):
    state = load_file(
        next(Path(family.source).rglob("*.safetensors")) if Path(family.source).is_dir() else family.source
    )
    folder, names = tmp_path / "sharded", sorted(state)
    folder.mkdir()
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, own in halves.items():
        save_file({name: state[name].contiguous() for name in own}, folder / shard)
    index = {"weight_map": {name: shard for shard, own in halves.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    url = put(place_in_memory, folder)
    there, here = open_checkpoint(url), open_checkpoint(folder)
    assert set(there.names()) == set(here.names()) and there.digest == here.digest
    assert all(there.tensor(name).equal(here.tensor(name)) for name in there.names())


def test_a_model_that_was_replaced_meanwhile_is_not_mixed_with_the_new_one(place_in_memory, tmp_path):
    for number in range(2):
        path = tmp_path / f"{number}" / "model.safetensors"
        path.parent.mkdir()
        save_file({"blocks.0.self_attn.q.weight": torch.full((4, 4), float(number))}, path)
    model = open_checkpoint(put(place_in_memory, tmp_path / "0" / "model.safetensors"))
    put(place_in_memory, tmp_path / "1" / "model.safetensors")
    with pytest.raises(UnreadableError, match=r"memory://.*model.safetensors was replaced while it was read"):
        model.tensor("blocks.0.self_attn.q.weight")


def test_what_is_not_there_or_not_read_from_a_store_is_said_with_its_url(place_in_memory, tmp_path):
    with pytest.raises(InputError, match=r"memory://.*/nothing.safetensors is not there"):
        open_checkpoint(f"{place_in_memory}/nothing.safetensors")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(
        FileFormatError, match=r"memory://.*/model.gguf is read from a store as a safetensors file only"
    ):
        open_checkpoint(put(place_in_memory, tmp_path / "model.gguf"))
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(FileFormatError, match=r"memory://.*/broken.safetensors"):
        open_checkpoint(put(place_in_memory, tmp_path / "broken.safetensors"))


def test_a_file_url_is_the_file(family, tmp_path):
    copy = tmp_path / "a model.safetensors"
    source = Path(family.source)
    shutil.copy(next(source.rglob("*.safetensors")) if source.is_dir() else source, copy)
    assert open_checkpoint(copy.as_uri()).names() == open_checkpoint(copy).names()
