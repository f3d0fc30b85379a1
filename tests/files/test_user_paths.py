"""Places as people type them: pipes, sockets and devices are refused at once, `~` means the same everywhere."""

import os
import socket

import pytest
from typer.testing import CliRunner

from loraport.cli import app
from loraport.errors import InputError, LoraportError, OutputError
from loraport.files.disk.user_paths import expand_home
from loraport.store.cache_folder import default_folder
from tests.transfers.models import make_family


def run(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def family(tmp_path):
    return make_family(tmp_path)


@pytest.fixture(params=["pipe", "socket", "device"])
def special(request, tmp_path):
    place = tmp_path / "special.safetensors"
    if request.param == "device":
        place.symlink_to(os.devnull)
        return place
    if request.param == "pipe":
        os.mkfifo(place)
        return place
    bound = socket.socket(socket.AF_UNIX)
    here = os.open(tmp_path, os.O_RDONLY)
    bound.bind(f"/proc/self/fd/{here}/{place.name}")  # the whole path may be too long for a socket
    os.close(here)
    bound.close()
    return place


def test_what_is_no_file_is_no_input(special, family):
    pair = ("--source", family.source, "--target", family.target, "--no-cache", "-o", family.folder / "o.safetensors")
    for words in (
        ("inspect", special),
        ("transfer", special, *pair),
        ("transfer", family.lora, "--source", special, *pair[2:]),
        ("transfer", family.lora, *pair[:2], "--target", f"source+{special}", *pair[4:]),
        ("convert", special, "--to", "comfy", "-o", family.folder / "o.safetensors"),
        ("merge", special, family.lora, "-o", family.folder / "o.safetensors"),
        ("merge", family.source, special, "-o", family.folder / "o.safetensors"),
        ("probe", "keep-dominant", "--source", special, *pair[2:]),
    ):
        with pytest.raises(InputError, match=r"special\.safetensors is a (pipe|socket|device), which cannot be read"):
            run(*words)


def test_what_is_no_file_is_no_output(special, family):
    pair = ("--source", family.source, "--target", family.target, "--no-cache")
    before = os.stat(special).st_mode
    for words in (
        ("transfer", family.lora, *pair),
        ("convert", family.lora, "--to", "comfy"),
        ("convert", family.lora, "--to", "peft"),
        ("merge", family.source, family.lora),
        ("probe", "keep-dominant", *pair),
        ("analyze", family.lora, *pair),
    ):
        for more in ((), ("--overwrite",)):
            with pytest.raises(OutputError, match=r"special\.safetensors is a (pipe|socket|device); give the result"):
                run(*words, "-o", special, *more)
    assert os.stat(special).st_mode == before


def test_a_pipe_inside_a_folder_is_not_waited_for(tmp_path):
    for name in ("model.safetensors", "model.gguf", "model.pt"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        os.mkfifo(folder / name)
        with pytest.raises(LoraportError, match="is a pipe"):
            run("inspect", folder)


@pytest.mark.slow
def test_a_tilde_is_home_in_inputs_and_outputs(family, monkeypatch):
    monkeypatch.setenv("HOME", str(family.folder))
    monkeypatch.chdir("/")
    lora, source, target = (f"~/{os.path.basename(place)}" for place in (family.lora, family.source, family.target))
    pair = ("--source", source, "--target", target, "--cache", "~/cache")
    run("transfer", lora, *pair, "-o", "~/moved.safetensors", "--report", "~/page.html")
    run("transfer", lora, *pair, "-o", "~/many", "--method", "direct,core")
    run("convert", lora, "--to", "peft", "-o", "~/peft")
    run("merge", target, lora, "-o", "~/merged")
    run("analyze", lora, *pair, "--sample", "1", "--detail", "0", "-o", "~/analysis")
    made = {path.name for path in family.folder.iterdir()}
    assert {"moved.safetensors", "page.html", "many", "peft", "merged", "analysis", "cache"} <= made
    with pytest.raises(OutputError, match="is there already; give --overwrite"):
        run("convert", lora, "--to", "peft", "-o", "~/peft")


def test_a_tilde_that_nobody_lives_behind_is_part_of_a_name(family, monkeypatch):
    monkeypatch.chdir(family.folder)
    for words in (("inspect", "~nobody-of-that-name/x.safetensors"), ("inspect", "~nobody-of-that-name")):
        with pytest.raises(InputError, match=r"~nobody-of-that-name\S* does not exist"):
            run(*words)
    run("convert", family.lora, "--to", "comfy", "-o", "~nobody-of-that-name/x.safetensors")
    assert (family.folder / "~nobody-of-that-name" / "x.safetensors").is_file()
    run("convert", family.lora, "--to", "comfy", "-o", "~nobody-of-that-name.safetensors")
    run("inspect", "~nobody-of-that-name.safetensors")


def test_without_a_home_the_cache_has_to_be_named(family, monkeypatch):
    import pwd

    def nobody(_):
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "LORAPORT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert str(expand_home("~/x")) == "~/x"
    with pytest.raises(InputError, match="no home folder for the cache; set HOME, or give --cache or --no-cache"):
        default_folder()
    words = ("transfer", family.lora, "--source", family.source, "--target", family.target,
             "-o", family.folder / "o.safetensors")  # fmt: skip
    with pytest.raises(InputError, match="no home folder"):
        run(*words)
    run(*words, "--no-cache")
