"""What visitors of the page may name, and what they may not, whatever way they spell it."""

import os

import pytest

from loraport.app.places import Places
from loraport.errors import InputError
from loraport.files.accelerator_names import files_of


@pytest.fixture
def shared(tmp_path):
    """A shared folder with a model, a link inside, links outside, and a secret beside it."""
    folder = tmp_path / "models"
    for name in ("wan/model.safetensors", "wan+lora/a.safetensors", "org/repo/x.safetensors", "acc.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"0")
    (tmp_path / "secret.safetensors").write_bytes(b"1")
    (folder / "own.safetensors").symlink_to(folder / "acc.safetensors")
    (folder / "out.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "bad").mkdir()
    (folder / "bad" / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "circle").symlink_to(folder / "circle")
    return folder


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("wan/model.safetensors", "wan/model.safetensors"),
        (" wan/model.safetensors ", "wan/model.safetensors"),
        ("wan/../acc.safetensors", "acc.safetensors"),
        ("own.safetensors", "acc.safetensors"),
        ("wan", "wan"),
        ("org/repo", "org/repo"),  # what is shared wins over a Hub id
        ("wan+lora/a.safetensors", "wan+lora/a.safetensors"),
    ],
)
def test_what_is_shared_is_found(shared, name, place):
    places = Places.at((str(shared),))
    assert places.find(name, "source") == str(shared / place) == places.target(name)
    assert places.find(str(shared / name.strip()), "source") == str(shared / place)


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.safetensors", "wan/../../secret.safetensors", "/etc/passwd", "~/.ssh/id_rsa", "file:///etc/x"),
        *("out.safetensors", "bad", "bad/model.safetensors", "circle", "", "  ", "a\0b", "a\nb", "x" * 5000, ".."),
        *("org/name:../../etc/passwd", "--help", "--report=x.html", "http://a.com/a.safetensors", "none", "toy:x"),
        *(r"..\secret.safetensors", "missing.safetensors", "//etc/passwd", "."),
    ],
)  # fmt: skip
def test_everything_else_is_refused_in_a_sentence(shared, name):
    places = Places.at((str(shared),))
    for find in (lambda: places.find(name, "source"), lambda: places.target(name)):
        with pytest.raises(InputError) as refused:
            find()
        assert "\n" not in str(refused.value)


def test_missing_and_outside_are_told_in_the_same_words(shared, tmp_path):
    places, told = Places.at((str(shared),)), []
    for name in (tmp_path / "secret.safetensors", tmp_path / "nothing.safetensors"):
        with pytest.raises(InputError) as refused:
            places.find(str(name), "source")
        told.append(str(refused.value).replace(name.name, "NAME"))
    assert told[0] == told[1]


def test_a_link_in_a_folder_is_followed_where_its_end_is_shared_too(shared, tmp_path):
    with pytest.raises(InputError, match="share that place, too"):
        Places.at((str(shared),)).find("bad", "source")
    assert Places.at((str(shared), str(tmp_path))).find("bad", "source") == str(shared / "bad")


@pytest.mark.parametrize("name", ["wan2.1-t2v-1.3b", "org/name@main:folder", "toy:base", "some/one"])
def test_names_need_no_folder(name):
    assert Places().find(name, "source") == name


def test_targets_with_accelerators_name_each_place_alike(shared):
    places = Places.at((str(shared),))
    acc = shared / "acc.safetensors"
    assert places.target("source+acc.safetensors*0.5") == f"source+{acc}*0.5"
    assert places.target("wan+acc.safetensors+own.safetensors*2") == f"{shared / 'wan'}+{acc}+{acc}*2"
    assert (
        places.target("source+lightx2v-lora-wan2.1-t2v-14b")
        == f"source+{'+'.join(files_of('lightx2v-lora-wan2.1-t2v-14b', 'source'))}"
    )
    for name in ("source+/etc/passwd", "source+../secret.safetensors*1", "source+acc.safetensors*much", "source+", "+"):
        with pytest.raises(InputError):
            places.target(name)


def test_only_what_is_shared_is_listed(shared):
    assert Places.at((str(shared),)).listed() == [
        "acc.safetensors", "org/repo/x.safetensors", "own.safetensors", "wan+lora/a.safetensors",
        "wan/model.safetensors",
    ]  # fmt: skip
    assert Places().listed() == []


def test_a_shared_folder_must_be_one(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        Places.at((os.fspath(tmp_path / "missing"),))
