"""Keep what a trainer's header says of a LoRA that stays true when its updates are moved, respelled or cut.

Title, author, licence, trigger words, tags, base model, how it was trained: all that is about the LoRA. What is about
the bytes of one file (hashes, dtypes), the sizes and scales of its factors, or the spelling of its keys is left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from loraport.files.formats.safetensors_write import OWN_PREFIX

_OF_THE_FILE = frozenset(
    "hash hashes sha1 sha256 sha512 md5 blake3 crc32 autov1 autov2 autov3 checksum "  # its bytes
    "format dtype quantization quantized "
    "dim dims rank ranks r alpha alphas loraalpha networkalpha scaling rslora "  # the sizes and scales of its factors
    "implementation keys shapes".split()
)
"""Words of a field's name that make it one about the file."""

_SIZES = frozenset(("r", "rank", "dim", "alpha", "lora_alpha", "network_alpha", "network_dim", "peft_type"))
"""Fields of an adapter's configuration, which may stand in the header as JSON."""

_LONGEST_CONFIGURATION = 100_000
_SHOWN = 200
"""Characters of one field that are shown to people."""

_KINDS: Mapping[str, re.Pattern[str]] = {
    "title": re.compile(r"(.*[._])?(title|output_name)|name"),
    "author": re.compile(r"(.*[._])?(author|creator|artist)s?"),
    "licence": re.compile(r"(.*[._])?licen[cs]e"),
    "trigger words": re.compile(
        r"(.*[._ ])?(trigger[._ ]?(word|phrase|term|token)s?|triggers?|(trained|activation)[._ ]?(word|text|tag)s?"
        r"|instance[._ ]?prompt)"
    ),
    "trained on": re.compile(r"(.*[._])?(base_model(_name_or_path|_version)?|sd_model_name|trained_on)"),
}
"""What people look for -> the names of its fields, in lower case."""
_TAGS, _FOLDERS = "ss_tag_frequency", "ss_dataset_dirs"
_TRIGGERS = "trigger words"
_IN_NEARLY_ALL = 0.95
"""Share of the captions that a tag must stand in to be taken for a trigger word."""
_GENERAL = frozenset(
    "1girl 1boy solo woman man girl boy person people photo video masterpiece best_quality high_quality highres "
    "absurdres simple_background white_background looking_at_viewer realistic".split()
)
"""Tags that stand in all captions of many training sets, and call no style."""


def lasting_fields(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the fields that stay true of the LoRA in another file; what this program wrote is not among them."""
    return {key: value for key, value in metadata.items() if not key.startswith(OWN_PREFIX) and _is_lasting(key, value)}


def _is_lasting(key: str, value: str) -> bool:
    parted = re.sub(r"([a-z])([A-Z])", r"\1_\2", key)
    words = set(re.split(r"[._\s-]+", f"{key} {parted}".lower()))
    if words & _OF_THE_FILE or key.startswith("ss_network_") or key == "lora_adapter_metadata":
        return False
    fields = _json_object(value)
    return not _SIZES & {str(name).rpartition(".")[2] for name in fields}


def _json_object(text: str) -> dict[str, Any]:
    if not text.lstrip().startswith("{") or len(text) > _LONGEST_CONFIGURATION:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def shown_fields(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return title, author, licence, trigger words, base model and the commonest tags, where the header has them.

    Where no field names trigger words, the tags that stand in nearly every caption of kohya's list are named as such.
    """
    shown = {}
    kept = lasting_fields(metadata)
    for kind, names in _KINDS.items():
        values = (_listed(value) for key, value in sorted(kept.items()) if names.fullmatch(key.lower()[:_SHOWN]))
        if texts := list(dict.fromkeys(value for values in values for value in values if value not in ("", "None"))):
            shown[kind] = ", ".join(_short(text) for text in texts)
    tags, captions = _tags(kept.get(_TAGS, "")), _captions(kept.get(_FOLDERS, ""))
    if _TRIGGERS not in shown and (guessed := _in_nearly_all(tags, captions)):
        shown[_TRIGGERS] = ", ".join(f"{_short(tag)} (in {tags[tag]} of {captions} captions)" for tag in guessed)
    if tags:
        shown["tags"] = ", ".join(f"{_short(tag)} ({count})" for tag, count in tags.most_common(5))
    return shown


def _listed(value: str) -> list[str]:
    """Return a text, or the texts of a JSON list."""
    if value.lstrip().startswith("[") and len(value) <= _LONGEST_CONFIGURATION:
        try:
            several = json.loads(value)
        except (ValueError, RecursionError):
            several = None
        if isinstance(several, list) and all(isinstance(one, str) for one in several):
            return [one.strip() for one in several]
    return [value.strip()]


def _captions(text: str) -> int:
    """Return how many pictures or clips were trained on, by kohya's list of folders; 0 where it does not say."""
    counts = [one.get("img_count") for one in _json_object(text).values() if isinstance(one, dict)]
    return sum(count for count in counts if isinstance(count, int))


def _in_nearly_all(tags: Counter[str], captions: int) -> list[str]:
    """Return the tags in nearly every caption, the commonest three; none for fewer than three captions."""
    least = max(3, _IN_NEARLY_ALL * captions)
    found = [tag for tag, count in tags.most_common() if count >= least and captions]
    return [tag for tag in found if tag.lower().replace(" ", "_") not in _GENERAL][:3]


def _tags(text: str) -> Counter[str]:
    """Count how often each tag was used, over all folders of the training set."""
    try:
        folders = json.loads(text)
    except (ValueError, RecursionError):
        return Counter()
    tags: Counter[str] = Counter()
    for folder in folders.values() if isinstance(folders, dict) else ():
        for tag, count in folder.items() if isinstance(folder, dict) else ():
            if isinstance(count, int):
                tags[str(tag).strip()] += count
    return tags


def _short(text: str) -> str:
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:_SHOWN])
    return plain if len(text) <= _SHOWN else f"{plain} …"
