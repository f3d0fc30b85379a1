"""PyTorch files whose zip archive or pickle lies about itself: how each is made, and what its refusal must say."""

from __future__ import annotations

import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from tests import tiny

STATE = tiny.tiny_state()


def _pickle(content: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(content, folder / "m.pt")
        return folder / "m.pt"

    return write


def _archive(
    squeezed: Callable[[str], bool] = lambda name: False,
    change: Callable[[str, bytes], bytes] = lambda name, content: content,
    repeat: str = "",
) -> Callable[[Path], Path]:
    """A .pt file whose zip archive was packed anew by another program, perhaps with members changed or repeated."""

    def write(folder: Path) -> Path:
        torch.save(STATE, folder / "first.pt")
        with zipfile.ZipFile(folder / "first.pt") as before, zipfile.ZipFile(folder / "m.pt", "w") as after:
            for name in [*before.namelist(), *([f"first/{repeat}"] if repeat else [])]:
                method = zipfile.ZIP_DEFLATED if squeezed(name) else zipfile.ZIP_STORED
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of a member that stands twice
                    after.writestr(zipfile.ZipInfo(name), change(name, before.read(name)), method)
        return folder / "m.pt"

    return write


def _moved_member(folder: Path) -> Path:
    """The directory of the archive points at the first member for the last one too."""
    path = _pickle(STATE)(folder)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rfind(b"PK\1\2") + 42, 0)
    path.write_bytes(content)
    return path


def _grown(ending: str, size: int) -> Callable[[str, bytes], bytes]:
    """A member made as long as given: by zeros at its end, or cut."""
    return lambda name, content: content[:size].ljust(size, b"\0") if name.endswith(ending) else content


ARCHIVES: dict[str, tuple[Callable[[Path], Path], str]] = {
    # what: (how it is made, a pattern that its refusal matches)
    "packed pickle": (_archive(squeezed=lambda name: True), "was compressed .*torch.save"),
    "one packed tensor": (_archive(squeezed=lambda name: name.endswith("/data/3")), "was compressed .first/data/3 is"),
    "a version that expands": (
        _archive(squeezed=lambda name: name.endswith("version"), change=_grown("version", 10**8)),
        "was compressed .*version is",
    ),
    "a long version": (
        _archive(change=_grown("/version", 100_000_001)),
        "'first/version' has 100000001 bytes, and at most 100000000 are read",
    ),
    "a short tensor": (_archive(change=_grown("/data/3", 8)), "sizes of its tensors are not those of the archive"),
    "a member twice": (_archive(repeat="data/3"), "'first/data/3' stands twice in its archive"),
    "a member elsewhere": (_moved_member, "the two headers of '.*' differ"),
    "endless view": (_pickle({**STATE, "e": torch.ones(1).expand(10**5, 10**5)}), "'e' announces 40000000000 bytes"),
    "a maker of memory": (_pickle({**STATE, "e": bytearray(8)}), r"more than tensors \(bytearray\)"),
}
