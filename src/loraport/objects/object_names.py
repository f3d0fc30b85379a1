"""Names of objects that mean the same in every store: what a file system or a client would read otherwise is encoded.

A name is words joined by `/`. Characters that Windows has in no file name, that clients of stores take for a version or
a pattern, control characters and what is no valid text are written as `%XX`, as in URLs; so is the percent sign itself.
All else stays as it is, so that results keep names that people read. A run that was made in a store can be copied into
a folder on any system, and back. Names that differ in nothing but upper and lower case are one on some disks.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from loraport.errors import InputError

LONGEST = 255
"""Bytes of a word that every file system takes."""
_SPECIAL = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\%\ud800-\udfff]')
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?=$|[. ])", re.IGNORECASE)
OURS = ".loraport-"
"""How names of files begin that are no objects."""


def encoded(name: str) -> str:
    """Return an object's name as stores have it. Raises InputError for one that would mean a folder, or another."""
    try:
        name.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise InputError(f"{name!r} is no name of an object: it is not valid text") from error
    words = name.split("/")
    if any(word in ("", ".", "..") for word in words):
        raise InputError(f"{name!r} is no name of an object: its words, between `/`, must not be empty, `.` or `..`")
    coded = [_word(word) for word in words]
    if too_long := [word for word in coded if len(word.encode()) > LONGEST]:
        raise InputError(
            f"{too_long[0][:40]!r}… is a name of {len(too_long[0].encode())} bytes, and file systems take {LONGEST}; "
            "give it a shorter one"
        )
    return "/".join(coded)


def encoded_folder(prefix: str) -> str:
    """Return the whole words that names of this beginning begin with, as stores have them; empty where there are none.

    What follows the last `/` is left out: what a word is written as can depend on how it ends.
    """
    words = prefix.rpartition("/")[0]
    return f"{encoded(words)}/" if words else ""


def decoded(name: str) -> str:
    """Return the name that was encoded."""
    return unquote(name, errors="surrogateescape")


def _word(word: str) -> str:
    coded = _SPECIAL.sub(_percent, word)
    if coded[-1] in ". ":  # which Windows drops
        coded = coded[:-1] + _percent(coded[-1])
    if coded.startswith(OURS) or _DEVICE.match(coded):
        coded = _percent(coded[0]) + coded[1:]
    return coded


def _percent(found: re.Match[str] | str) -> str:
    character = found if isinstance(found, str) else found[0]
    return "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogateescape"))
