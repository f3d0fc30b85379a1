"""The cache of bases: what reads back is what was used, damage is noticed, nothing foreign is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from loraport.errors import InputError
from loraport.spectral.basis import SingularBasis, decompose
from loraport.store import packing
from loraport.store.bases import BasisCache, _seal, entry_key
from loraport.store.cache_folder import MARKER, default_folder
from tests.layers import generator, relative

KEY = entry_key("some fingerprint")
SHAPES = {"square": (96, 96), "tall": (240, 64), "wide": (64, 240), "one column": (5, 1)}


def weight(shape: tuple[int, int] = (40, 24), seed: int = 0, columns: float = 1.0) -> torch.Tensor:
    """Random; `columns` < 1 lets the columns decay to that size, so that singular vectors have tiny entries."""
    W = torch.randn(*shape, generator=generator(seed))
    return W * torch.logspace(0, torch.tensor(columns).log10().item(), shape[1])


def same_bits(a: SingularBasis, b: SingularBasis) -> bool:
    return torch.equal(a.U, b.U) and torch.equal(a.S, b.S) and torch.equal(a.Vh, b.Vh)


@pytest.fixture
def cache(tmp_path):
    return BasisCache(tmp_path / "cache")


def filled(cache: BasisCache) -> SingularBasis:
    return cache.get_or_compute(KEY, weight(), decompose).basis


def only_file(cache: BasisCache) -> Path:
    [entry] = cache.list()
    return entry.path


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("columns", [1.0, 1e-4])
def test_the_round_trip_is_as_accurate_as_stated(cache, shape, columns):
    W = weight(shape, columns=columns)
    exact = decompose(W.double())
    basis = cache.get_or_compute(KEY, W, decompose).basis
    n = min(shape)
    for X in (basis.U, basis.Vh.mT):
        assert X.dtype == torch.float32
        assert (X.double().mT @ X.double() - torch.eye(n)).abs().max() < 5e-4
    signs = (basis.U.double() * exact.U).sum(0).sign()
    assert relative(basis.U.double() * signs, exact.U) < 1.5e-4
    D = torch.randn(shape, generator=generator(1), dtype=torch.float64)
    C = basis.U.double().mT @ D @ basis.Vh.double().mT
    assert relative(C * signs[:, None] * signs, exact.U.mT @ D @ exact.Vh.mT) < 2e-4
    assert relative((basis.U * basis.S) @ basis.Vh, W) < 1e-4
    assert torch.equal(basis.S, decompose(W).S)


def test_cold_warm_and_no_cache_give_the_same_bits(cache):
    W = weight((64, 48))
    cold = cache.get_or_compute(KEY, W, decompose)
    warm = cache.get_or_compute(KEY, W, lambda _: pytest.fail("computed again"))
    without = BasisCache(None).get_or_compute(KEY, W, decompose)
    assert (cold.found, warm.found, without.found) == (False, True, False)
    assert same_bits(cold.basis, warm.basis)
    assert same_bits(cold.basis, without.basis)
    assert not torch.equal(cold.basis.U, decompose(W).U), "else this test would say nothing"


def test_keys_differ_where_anything_differs():
    keys = {entry_key("a"), entry_key("b"), entry_key("a", "thin svd on cuda")}
    assert len(keys) == 3
    assert all(len(key) == 64 for key in keys)


def test_put_and_get(cache):
    assert cache.get(KEY, weight()) is None
    cache.put(KEY, decompose(weight()))
    assert cache.notes == ()
    again = BasisCache(cache.folder)
    assert same_bits(again.get(KEY, weight()), filled(BasisCache(None)))
    assert again.get(entry_key("another"), weight()) is None


def test_no_folder_keeps_nothing():
    cache = BasisCache(None)
    cache.put(KEY, decompose(weight()))
    assert (cache.get(KEY, weight()), cache.list(), cache.total_bytes(), cache.clear()) == (None, (), 0, (0, 0))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a bit of the data": lambda path: flip(path, -9),
    "a bit of the header": lambda path: flip(path, 20),
    "a bit of the length": lambda path: flip(path, 0),
    "half of it missing": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "another's entry": lambda path: (
        BasisCache(path.parents[2]).put(entry_key("other"), decompose(weight(seed=5))),
        os.replace(next(p for p in path.parents[1].rglob("*.safetensors") if p != path), path),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_detected_and_mended(cache, damage):
    whole = filled(cache)
    DAMAGE[damage](only_file(cache))
    [(entry, reason)] = cache.verify()
    assert entry.key == KEY
    assert str(entry.path) in reason
    assert cache.get(KEY, weight()) is None
    assert cache.list() == (), "a broken entry is removed"
    again = cache.get_or_compute(KEY, weight(), decompose)
    assert not again.found
    assert same_bits(again.basis, whole)
    assert cache.verify() == ()


def test_any_single_flipped_byte_is_noticed(cache):
    filled(cache)
    path = only_file(cache)
    whole = path.read_bytes()
    for position in range(0, len(whole), 11):
        flip(path, position)
        assert len(cache.verify()) == 1, position
        path.write_bytes(whole)
    assert cache.verify() == ()


def test_list_size_and_clear(cache):
    for name in "abc":
        cache.put(entry_key(name), decompose(weight()))
    assert [entry.key for entry in cache.list()] == sorted(entry_key(name) for name in "abc")
    assert cache.total_bytes() == sum(entry.bytes for entry in cache.list()) > 0
    size = cache.total_bytes()
    assert cache.clear() == (3, size)
    assert (cache.list(), cache.total_bytes()) == ((), 0)
    assert cache.clear() == (0, 0)
    cache.put(KEY, decompose(weight()))
    assert len(cache.list()) == 1 and cache.notes == (), "a cleared cache can be used again"


def test_entries_of_earlier_versions_are_not_listed_and_are_cleared(cache):
    cache.put(KEY, decompose(weight()))
    old = cache.folder / "v1" / "ab" / f"{'ab' * 32}.safetensors"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"earlier")
    assert [entry.key for entry in cache.list()] == [KEY] and cache.verify() == ()
    assert cache.total_bytes() == cache.list()[0].bytes + len(b"earlier")
    assert cache.clear()[0] == 2 and not old.exists() and not old.parent.exists()


def test_clear_touches_its_own_files_only(cache, tmp_path):
    filled(cache)
    place = only_file(cache).parent
    precious = tmp_path / "precious.safetensors"
    precious.write_bytes(b"x")
    ours = "0" * 64 + ".safetensors"
    (place / ours).symlink_to(precious)
    for path in (place / "thesis.txt", cache.folder / "notes.txt", place.parent / ours):
        path.write_text("mine")
    (place / ".loraport-abc-1-2.tmp").write_bytes(b"left over")
    assert cache.clear()[0] == 2
    left = {path.name for path in cache.folder.rglob("*") if not path.is_dir()}
    assert left == {MARKER, "notes.txt", ours, "thesis.txt"}
    assert precious.exists()


@pytest.mark.parametrize("name", ["notes.txt", MARKER])
def test_a_folder_that_is_not_ours_is_refused(tmp_path, name):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / name).write_text("Signature: of something else")
    with pytest.raises(InputError, match=r"home is not a cache of loraport"):
        BasisCache(tmp_path / "home")
    with pytest.raises(InputError, match="is not a cache"):
        BasisCache(tmp_path / "home" / name)


def test_opening_a_cache_creates_nothing(tmp_path):
    cache = BasisCache(tmp_path / "new")
    assert (cache.list(), cache.verify(), cache.clear()) == ((), (), (0, 0))
    assert not (tmp_path / "new").exists()


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    computed = cache.get_or_compute(KEY, weight(), decompose)
    assert cache.notes == (f"bases were not kept in the cache: {cache.folder}: No space left on device",)
    assert same_bits(computed.basis, filled(BasisCache(None)))
    assert [path.name for path in cache.folder.rglob("*") if path.is_file()] == [], "nothing half-written is left"


def test_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LORAPORT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "own"
    monkeypatch.setenv("LORAPORT_CACHE", "")
    assert default_folder() == tmp_path / "xdg" / "loraport"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "loraport"


WRITER = """
import sys, torch
from loraport.spectral.basis import decompose
from loraport.store.bases import BasisCache, entry_key
torch.set_num_threads(1)
cache, n = BasisCache(sys.argv[1]), int(sys.argv[3])
g = torch.Generator().manual_seed(0)
W = torch.randn(n, n, generator=g)
basis = decompose(W)
print("ready", flush=True)
for number in range(int(sys.argv[2])):
    cache.put(entry_key("shared"), basis)
    assert cache.notes == ()
    assert cache.get(entry_key("shared"), W) is not None
"""


def writer(folder: Path, times: int, size: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(times), str(size)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_two_processes_write_the_same_entry(tmp_path):
    processes = [writer(tmp_path / "cache", 60, 128) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    cache = BasisCache(tmp_path / "cache")
    assert len(cache.list()) == 1
    assert cache.verify() == ()
    assert cache.total_bytes() == cache.list()[0].bytes, "no temporary file is left"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_writer_leaves_no_broken_entry(tmp_path):
    for delay in (0.02, 0.07):
        process = writer(tmp_path / "cache", 10_000, 512)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait(10)
        cache = BasisCache(tmp_path / "cache")
        assert cache.verify() == ()
        assert cache.get_or_compute(entry_key("shared"), weight((512, 512)), decompose) is not None
        cache.clear()
        assert cache.total_bytes() == 0


FOREIGN = {
    "scaled": lambda U, S, Vh: (U, 1.01 * S, Vh),
    "of another weight": lambda U, S, Vh: torch.linalg.svd(weight((64, 48), seed=9), full_matrices=False),
    "reversed": lambda U, S, Vh: (U.flip(1), S.flip(0), Vh.flip(0)),
    "permuted": lambda U, S, Vh: (U, S, Vh.roll(1, 0)),
    "without singular values": lambda U, S, Vh: (U, 0 * S, Vh),
    "not orthonormal": lambda U, S, Vh: (U, S, Vh * 1.001),
    "of another shape": lambda U, S, Vh: (U[:, :40], S[:40], Vh[:40, :40]),
}  # fmt: skip


@pytest.mark.parametrize("shape", [(64, 48), (48, 64)], ids=["tall", "wide"])
@pytest.mark.parametrize("change", FOREIGN)
def test_an_entry_that_is_not_of_its_weight_is_made_anew_and_said(cache, change, shape):
    """Its checksum is right: whoever wrote it knew how."""
    W = weight((64, 48)) if shape[0] > shape[1] else weight((64, 48)).mT.contiguous()
    honest = BasisCache(None).get_or_compute(KEY, W, decompose)
    basis = decompose(weight((64, 48)))
    planted = SingularBasis(*FOREIGN[change](basis.U, basis.S, basis.Vh))
    cache.put(KEY, planted if shape[0] > shape[1] else planted.transposed())
    fetched = cache.get_or_compute(KEY, W, decompose)
    assert not fetched.found and same_bits(fetched.basis, honest.basis)
    [note] = cache.notes
    assert note.startswith("1 entries of the cache were made anew: ")
    again = BasisCache(cache.folder)
    assert again.get_or_compute(KEY, W, decompose).found and again.notes == () and again.verify() == ()


@pytest.mark.parametrize("W", [torch.zeros(6, 4), torch.ones(6, 4), 1e-30 * weight(), 1e20 * weight()], ids=str)
def test_an_entry_of_an_odd_weight_is_its_own(cache, W):
    cache.get_or_compute(KEY, W, decompose)
    assert cache.get_or_compute(KEY, W, decompose).found and cache.notes == ()


def test_an_entry_that_lacks_parts_is_made_anew(cache):
    filled(cache)
    key, path = KEY, only_file(cache)
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    for missing in (*tensors, None):
        some = {name: X for name, X in tensors.items() if name != missing} if missing else {"S": tensors["small"]}
        save_file(some, path, _seal(key, some))
        path.chmod(0o600)
        assert len(cache.verify()) == 1, missing
        assert not cache.get_or_compute(KEY, weight(), decompose).found, missing
        assert cache.verify() == ()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners here")
def test_nobodys_files_are_trusted_but_the_users_own(cache, monkeypatch):
    whole = filled(cache)
    path = only_file(cache)
    assert path.stat().st_mode & 0o077 == 0 and cache.folder.stat().st_mode & 0o077 == 0
    path.chmod(0o666)
    fetched = cache.get_or_compute(KEY, weight(), decompose)
    assert not fetched.found and same_bits(fetched.basis, whole)
    assert "other users may write it" in cache.notes[0] and only_file(cache).stat().st_mode & 0o077 == 0
    for trouble in ("mode", "owner"):
        cache.folder.chmod(0o777 if trouble == "mode" else 0o700)
        if trouble == "owner":
            monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
        other = BasisCache(cache.folder)
        assert not other.get_or_compute(KEY, weight(), decompose).found
        [note] = other.notes
        assert note.startswith(f"the cache {cache.folder} was not used: ") and "chmod go-w" in note
        assert ("other users may write it" in note) == (trouble == "mode")


def test_clear_follows_no_links(cache, tmp_path):
    filled(cache)
    cache.finish()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "ab").mkdir(parents=True)
    precious = elsewhere / "ab" / f"{'ab' * 32}.safetensors"
    precious.write_bytes(b"x")
    (cache.folder / "v2").symlink_to(elsewhere)
    (cache.folder / "v3").mkdir()
    (cache.folder / "v3" / "ab").symlink_to(elsewhere / "ab")
    assert cache.clear()[0] == 1 and precious.exists()


def test_an_entry_that_is_there_is_unpacked_once(cache, monkeypatch):
    """What was checked is what is used."""
    filled(cache)
    counted = []
    unpack = packing.unpack
    monkeypatch.setattr(packing, "unpack", lambda *args: (counted.append(args[1]), unpack(*args))[1])
    assert cache.get_or_compute(KEY, weight(), decompose).found
    assert sorted(counted) == ["small", "weak"]
