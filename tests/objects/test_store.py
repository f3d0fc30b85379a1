"""Every store keeps the same promises: whole objects, one creator, names as they are, failures asked again or said."""

import errno
import subprocess
import sys
import threading

import pytest

from loraport.errors import InputError, MissingError, OutputError, SettingsError, UnreadableError
from loraport.objects.object_names import encoded
from loraport.objects.open import open_objects
from loraport.objects.patience import Patience
from loraport.objects.store import MissingObjectError, ObjectStore
from tests.objects.conftest import KINDS
from tests.objects.unreliable import FAILURES, AnswerError, unreliable

every_store = pytest.mark.parametrize("place", KINDS, indirect=True)
ODD = (
    *(
        "plain.txt",
        "with space",
        " leading",
        "trailing ",
        "dot.",
        "ünï/cødé 好.safetensors",
        "a%20b",
        "100%",
        "q?versionId=1",
    ),
    *(
        "a*b[c]",
        "back\\slash",
        "qu\"ote's",
        "line\nend",
        "tab\t",
        "\udcff raw byte",
        "con",
        "aux.txt",
        "NUL.x.y",
        "x#1",
        "a:b",
    ),
    *(
        "a::b",
        "~/home",
        "-o",
        "..x",
        ".hidden",
        ".loraport-x.part",
        "<x>|y",
        "x" * 255,
        "a/b/c/d/e",
        "s3://x".replace("//", "/"),
    ),
)


@every_store
def test_what_is_written_is_read_listed_measured_and_removed(store):
    assert store.names() == []
    store.write("a/one", b"1")
    store.write("a/one", b"first")
    store.write("b/two", b"")
    assert store.read("a/one") == b"first"
    assert [store.size(name) for name in store.names()] == [5, 0]
    assert store.names() == ["a/one", "b/two"] and store.names("a/") == ["a/one"] and store.names("a/ona") == []
    assert store.read_range("a/one", 1, 3) == b"ir" and store.read_range("a/one", 3, 99) == b"st"
    assert store.read_range("a/one", 5, 9) == store.read_range("a/one", 3, 3) == b""
    store.delete("a/one")
    store.delete("a/one")
    assert store.names() == ["b/two"]


@every_store
def test_what_is_not_there_is_said(store):
    store.write("a/one", b"1")
    for ask in (store.read, store.size, lambda name: store.read_range(name, 0, 4)):
        for name in ("nothing", "a", "a/one/deeper"):
            with pytest.raises(MissingObjectError, match=f"{name} is not there"):
                ask(name)


@every_store
def test_an_object_is_created_once(store):
    assert store.atomic_create is (not store.url.startswith("local:"))
    assert store.create("claims/1", b"mine")
    assert not store.create("claims/1", b"yours")
    assert not store.create("claims/1", b"mine")
    assert store.read("claims/1") == b"mine" and store.names() == ["claims/1"]
    with pytest.raises(InputError):
        store.create("claims//1", b"")


@every_store
def test_of_many_creators_one_succeeds(store, place):
    if not store.atomic_create:
        pytest.skip("this store says that it cannot")
    stores = [open_objects(place) for _ in range(4)]
    for number in range(3 if place.startswith("s3") else 10):
        done = []
        start = threading.Barrier(4)

        def create(which, number=number, done=done, start=start):
            start.wait()
            if stores[which].create(f"claim-{number}", b"%d" % which):
                done.append(which)

        threads = [threading.Thread(target=create, args=(which,)) for which in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(done) == 1 and store.read(f"claim-{number}") == b"%d" % done[0]


@every_store
def test_names_come_back_as_they_were_given(store):
    for name in ODD:
        store.write(f"odd/{name}", name.encode(errors="surrogateescape"))
    assert store.names("odd/") == sorted(f"odd/{name}" for name in ODD)
    for name in ODD:
        assert store.read(f"odd/{name}") == name.encode(errors="surrogateescape")


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "..", "a/../b", ".", "x" * 256, "\ud800", "%" * 100])
def test_names_that_are_none_are_refused(name, tmp_path):
    with pytest.raises(InputError, match="name"):
        open_objects(str(tmp_path)).write(name, b"")
    assert [*tmp_path.iterdir()] == []


def test_a_name_is_encoded_where_a_system_would_read_it_otherwise():
    assert encoded("Style v2 [ü].safetensors") == "Style v2 [ü].safetensors"
    assert encoded("a:b?/con.txt/x.") == "a%3Ab%3F/%63on.txt/x%2E"


@every_store
def test_only_a_folder_on_the_disk_has_a_path(store, place, tmp_path):
    assert store.folder == {"folder": tmp_path / "run", "file": tmp_path / "a run"}.get(place_kind(place))
    store.write("a/one", b"1")
    assert store.folder is None or (store.folder / "a" / "one").read_bytes() == b"1"


def place_kind(place):
    return place.partition("://")[0] if "://" in place else "folder"


@every_store
def test_a_long_listing_is_read_to_its_end(store):
    names = [f"parts/{number:02d}" for number in range(23)]  # five a page on the server
    for name in names:
        store.write(name, b"")
    assert store.names("parts/") == names and store.names("parts/1") == names[10:20]


@every_store
def test_one_failure_in_ten_changes_nothing(store, place):
    failing = unreliable(store, seed=7)
    count = 8 if place.startswith("s3") else 40  # a request to the server takes a hundredth of a second
    for number in range(count):
        failing.write(f"a/{number:02d}", b"%d" % number)
        assert failing.create(f"b/{number:02d}", b"mine %d" % number)
        assert not failing.create(f"b/{number:02d}", b"yours")
    for number in range(count):
        assert failing.read(f"a/{number:02d}") == b"%d" % number == failing.read_range(f"a/{number:02d}", 0, 9)
        assert failing.size(f"b/{number:02d}") == len(f"mine {number}")
    assert len(failing.names()) == 2 * count
    for name in failing.names():
        failing.delete(name)
    assert store.names() == []
    assert len(failing.backend.failed) > 2 and failing.backend.failed.total() > count / 3


class Clock:
    """A time that passes only while somebody waits."""

    def __init__(self):
        self.now, self.waits = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


class Failing:
    """A backend of which every request fails in the same way."""

    url = "s3://bucket/run"

    def __init__(self, error):
        self.error, self.asked = error, 0

    def __getattr__(self, name):
        def ask(*words):
            self.asked += 1
            raise self.error

        return ask


def test_the_wait_is_bounded_grows_and_ends_with_one_sentence():
    clock, told = Clock(), []
    patience = Patience(60, note=told.append, clock=clock, sleep=clock.sleep)
    failing = Failing(AnswerError(503, "SlowDown"))
    with pytest.raises(UnreadableError) as caught:
        ObjectStore(failing, patience).read("a")
    assert clock.now == pytest.approx(60) and max(clock.waits) <= 15 and clock.waits[0] <= 0.2 < clock.waits[4]
    assert failing.asked == len(clock.waits) + 1
    assert f"{caught.value}" == (
        f"s3://bucket/run/a cannot be read: HTTP 503 ({failing.asked} times in 60 seconds); start again when it "
        "answers; what is done is kept"
    )
    assert told == ["s3://bucket/run/a cannot be read: HTTP 503; it is asked again for 60 seconds"]


@pytest.mark.parametrize(
    ("error", "asked_again"),
    [
        *((failure(), True) for failure in FAILURES),
        *((AnswerError(status), True) for status in (408, 409, 425, 502, 504)),
        *((AnswerError(status), False) for status in (400, 401, 403, 404, 405, 501)),
        *((PermissionError(errno.EACCES, "Permission denied"), False), (OSError(errno.EROFS, "Read-only"), False)),
        *((ValueError("wrong"), False), (NotImplementedError(), False), (BrokenPipeError(), True)),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
    ],
)
def test_only_failures_that_pass_are_asked_again(error, asked_again):
    clock = Clock()
    failing = Failing(error)
    with pytest.raises(OutputError, match="s3://bucket/run/a cannot be written") as caught:
        ObjectStore(failing, Patience(1, clock=clock, sleep=clock.sleep)).write("a", b"")
    assert (failing.asked > 1) is asked_again and "\n" not in f"{caught.value}"
    assert ("make room" in f"{caught.value}") is (getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT))


def test_a_disk_that_is_full_for_a_while_is_waited_for(tmp_path, monkeypatch):
    clock, store = Clock(), open_objects(str(tmp_path))
    store = ObjectStore(store.backend, Patience(60, clock=clock, sleep=clock.sleep))
    import os

    fsync = os.fsync

    def full(handle):
        if clock.now < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    store.write("a", b"1")
    assert clock.now >= 20 and store.read("a") == b"1"
    assert not [*tmp_path.glob("**/*.part")]


def test_what_a_store_lasts_to_refuse_is_said_without_waiting(s3_server):
    with pytest.raises(OutputError, match=r"s3://no-such-bucket/run/a cannot be written: .*bucket"):
        open_objects("s3://no-such-bucket/run").write("a", b"")
    with pytest.raises(MissingObjectError):
        open_objects("s3://no-such-bucket/run").read("a")


def test_a_server_that_is_not_there_is_said(s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UnreadableError, match=r"s3://loras/run/a cannot be read: .* times in "):
        open_objects("s3://loras/run", patience=Patience(0.3)).read("a")


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("", SettingsError, "empty"),
        ("https://host/run", SettingsError, "https is no store"),
        ("nonsense://host/run", SettingsError, "nonsense is no kind of store"),
        ("s3://", SettingsError, "names no place"),
        ("file://otherhost/run", SettingsError, "names no folder"),
        ("gs://bucket/run", MissingError, "pip install gcsfs"),
    ],
)
def test_urls_that_name_no_store_are_refused(url, error, words, monkeypatch):
    if url.startswith("gs"):
        monkeypatch.setitem(sys.modules, "gcsfs", None)
    if url.startswith("s3"):
        pytest.importorskip("s3fs")
    with pytest.raises(error, match=words):
        open_objects(url)


def test_a_killed_writer_leaves_no_object_and_the_next_one_removes_the_rest(tmp_path):
    code = """
import os, sys
from loraport.objects.open import open_objects
os.fsync = lambda handle: os.kill(os.getpid(), 9)
open_objects(sys.argv[1]).write("a", b"1" * 100)
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    store = open_objects(str(tmp_path))
    assert store.names() == [] and len([*tmp_path.rglob("*.part")]) == 1
    store.write("b", b"2")
    assert store.names() == ["b"] and not [*tmp_path.rglob("*.part")]


def test_a_plain_folder_needs_neither_fsspec_nor_torch(tmp_path):
    code = """
import sys
sys.modules["fsspec"] = None
from loraport.objects.open import open_objects
store = open_objects(sys.argv[1])
assert store.create("a", b"1") and store.names() == ["a"]
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_disk_without_links_still_creates_once_and_says_what_it_can(tmp_path, monkeypatch):
    import os

    from loraport.files.disk import atomic

    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for moves, can in ((atomic._renamed, True), (lambda *_: False, False)):
        monkeypatch.setattr(atomic, "_renamed", moves)
        store = open_objects(str(tmp_path / f"{can}"))
        if not can or sys.platform == "linux":
            assert store.atomic_create is can
        assert store.create("a", b"1") and not store.create("a", b"2") and store.read("a") == b"1"
