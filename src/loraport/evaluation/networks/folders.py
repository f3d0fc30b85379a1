"""Networks that transformers itself reads from a folder of the Hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from loraport.errors import FileFormatError, InputError


def read_folder(kind: str, folder: Path, device: torch.device) -> Any:
    """Return the network of that class of transformers in float32; every weight of it has to be in the folder.

    Raises InputError where there is no config.json, FileFormatError, one sentence, for what is not such a network.
    """
    import transformers

    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; fetch the files that `loraport evaluate --list` names")
    network_class = getattr(transformers, kind)
    try:
        with quiet():
            network, report = network_class.from_pretrained(
                str(folder), local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
    except MemoryError:
        raise
    except Exception as error:  # damaged files and other networks raise whatever the libraries come upon
        raise FileFormatError(f"{folder} is not a {kind} ({_first_line(error)}); download it again") from error
    if lacking := sorted(report["missing_keys"]):
        raise FileFormatError(f"{folder} is not a {kind}: it lacks {lacking[0]!r}; download it again")
    return network.requires_grad_(False).eval().to(device)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's table of loaded keys and its progress bar from the terminal."""
    words: Any = import_module("transformers.utils.logging")

    level, bar = words.get_verbosity(), words.is_progress_bar_enabled()
    words.set_verbosity(logging.CRITICAL)
    words.disable_progress_bar()
    try:
        yield
    finally:
        words.set_verbosity(level)
        if bar:
            words.enable_progress_bar()
