"""The word that a LoRA was trained to answer to: from its header, or from the card in its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from loraport.files.lora.header import shown_fields

_CARD = re.compile(r"^instance_prompt\s*:\s*(.+)$", re.MULTILINE)
_LONGEST_CARD = 20_000


def find_trigger(metadata: Mapping[str, str], place: Path) -> str | None:
    """Return the first of the trigger words that a file's header names, or the card beside it; None without any."""
    words = shown_fields(metadata).get("trigger words") or _of_card(place if place.is_dir() else place.parent)
    first = re.split(r"[,;|\n]", words or "")[0].strip().strip("\"'[]").strip()
    return first or None


def _of_card(folder: Path) -> str | None:
    """Return `instance_prompt` of the front matter of a README.md."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:_LONGEST_CARD]
    except OSError:
        return None
    parts = text.split("---", 2)
    found = _CARD.search(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    return None if found is None else found.group(1)


def with_trigger(prompt: str, word: str | None) -> str:
    """Return the prompt with the word before it; as it is where the word is in it already."""
    if not word or word.lower() in prompt.lower():
        return prompt
    return f"{word}, {prompt}"
