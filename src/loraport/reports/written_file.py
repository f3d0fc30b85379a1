"""What a page says of the file that a transfer has written: whose it is, its hashes, how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraport.errors import InputError
from loraport.files.inspect import describe

_HASHES = {
    "lora_sha256": "LoRA, SHA-256",
    "source_hash": "Source, hash",
    "target_hash": "Target, hash",
}


def written_facts(output: str) -> Mapping[str, Any] | None:
    """Return what `inspect` says of an output; None where it is not there any more."""
    if not Path(output).exists():
        return None
    try:
        facts = describe(output)
    except InputError:  # replaced by something else since it was written
        return None
    return facts if "loaders" in facts else None


def words_and_hashes(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the trainer's words, the hashes, and how the file is loaded, by their labels."""
    words = {label[0].upper() + label[1:]: text for label, text in facts["words"].items()}
    hashes = {label: facts["made"][name] for name, label in _HASHES.items() if name in facts["made"]}
    load = {"Load it": facts["load"]} if facts["load"] else {}
    return {**words, **load, **hashes, "Output, SHA-256": facts["sha256"]}


def loading_rows(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (loader, how, what is lost there) for each loader that takes the file."""
    return [
        (row["loader"], row["how"] or "", "; ".join(row["reasons"])) for row in facts["loaders"] if row["takes"] != "no"
    ]
