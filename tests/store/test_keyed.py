"""Entries under keys: whole or absent, checked when they are read; those of earlier versions are still found."""

import torch
from safetensors.torch import save_file

from loraport.digests import text_digest
from loraport.files.formats.safetensors_read import read_all
from loraport.sampling.samples import SampleStore
from loraport.store.keyed import Entry, KeyedStore, remove_files, store_files

KEY, OTHER = text_digest("one"), text_digest("another")
TENSORS = {"x": torch.arange(6.0).view(2, 3), "y": torch.tensor([True, False])}


def test_an_entry_comes_back_with_its_facts(tmp_path):
    for flat in (False, True):
        store = KeyedStore(tmp_path / str(flat), flat=flat)
        assert store.get(KEY) is None and not store.folder.exists()
        store.put(KEY, Entry(TENSORS, {"rows": [1, 2.5], "name": None}))
        entry = store.get(KEY)
        assert entry.facts == {"rows": [1, 2.5], "name": None}
        assert entry.tensors.keys() == TENSORS.keys()
        assert all(torch.equal(X, TENSORS[name]) for name, X in entry.tensors.items())
        assert store.path(KEY).relative_to(store.folder).parts[:-1] == (() if flat else (KEY[:2],))
        store.put(KEY, Entry({"x": TENSORS["y"]}))
        assert list(store.get(KEY).tensors) == ["x"] and store.get(KEY).facts == {}, "replaced as a whole"


def test_what_is_damaged_or_anothers_is_absent(tmp_path):
    store = KeyedStore(tmp_path)
    store.put(KEY, Entry(TENSORS, {"n": 1}))
    path, whole = store.path(KEY), store.path(KEY).read_bytes()
    path.write_bytes(whole[:-1])
    assert store.get(KEY) is None
    path.write_bytes(whole.replace(KEY.encode(), OTHER.encode()))
    assert store.get(KEY) is None, "renamed to another key"
    for facts in (b"[1, 2, 34,", b"[1]       "):
        path.write_bytes(whole.replace(rb"{\"n\": 1}", facts))
        assert path.read_bytes() != whole and store.get(KEY) is None
    path.write_bytes(whole.replace(rb"{\"n\": 1}", rb"{\"m\": 2}"))
    assert store.get(KEY).facts == {"m": 2}, "else the lines above would say nothing"
    path.write_bytes(whole)
    assert store.get(KEY).facts == {"n": 1}
    assert KeyedStore(tmp_path, lambda key, tensors: {"run": "another"}).get(KEY) is None


def test_left_overs_are_removed_with_the_entries_and_nothing_else(tmp_path):
    store = KeyedStore(tmp_path / "kind")
    store.put(KEY, Entry(TENSORS))
    left_over = store.path(KEY).with_name(f".{KEY}.safetensors.ab12.part")
    left_over.write_bytes(b"half")
    store.path(KEY).with_name("notes.txt").write_bytes(b"mine")
    files = store_files(tmp_path, "kind")
    assert {file.path: file.is_entry for file in files} == {left_over: False, store.path(KEY): True}
    assert remove_files(files) == (2, sum(file.bytes for file in files))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["notes.txt"]


def test_samples_of_earlier_versions_are_found(tmp_path):
    """The layout and the key are written here by hand: entries that users have stay theirs."""
    key = text_digest("loraport samples 2", "these clips")
    folder = tmp_path / "samples" / key[:2]
    folder.mkdir(parents=True)
    save_file({"latents": torch.ones(3)}, folder / f"{key}.safetensors", {"key": key})
    store = SampleStore(tmp_path)
    assert store.recall("these clips", dict)["latents"].tolist() == [1, 1, 1] and (store.found, store.made) == (1, 0)
    store.recall("others", lambda: {"latents": torch.zeros(2)})
    [path] = [file.path for file in store.list() if file.key != key]
    assert read_all(path)[1] == {"key": path.stem}
