"""What can go wrong, and who can mend it.

    LoraportError
    ├── InputError              the user's file, name or setting is at fault: exit 2, nothing written
    │   ├── FileFormatError     a file is not what its name says (truncated, unsafe, unknown)
    │   ├── UnreadableError     a file cannot be read any more, or was replaced while it was read
    │   ├── MismatchError       files that are fine alone do not belong together
    │   ├── MissingError        something that was asked for has to be fetched first: exit 4
    │   └── SettingsError       an unknown name or a value out of range
    └── OutputError             the result cannot be written (no room, no permission): exit 2, nothing half-written

Every message names what is wrong, with which file or layer, and what to do next. What a command does lose is not an
error: it is listed, and the command ends with LOST.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

TO_FETCH = 4
"""The exit code where something is missing that the user has to fetch first; it is named with the command for it."""
LOST = 3
"""The exit code of a command that is done, but lost something of the input without having been asked to."""


class LoraportError(Exception):
    """Base of every error that the program raises on purpose; its text is meant to be shown as it is."""


class InputError(LoraportError):
    """The user's input cannot be used."""


class FileFormatError(InputError):
    """A file is damaged, unsafe or of a kind that is not read."""


class UnreadableError(InputError):
    """A file cannot be read any more, or is another one than when the run began."""


class MismatchError(InputError):
    """Inputs that do not belong together: another model's LoRA, disagreeing shapes, no common layer."""


class MissingError(InputError):
    """Something that was asked for has to be fetched first; the message has the command."""


class SettingsError(InputError):
    """A setting has an unknown name or a value outside its range."""


class OutputError(LoraportError):
    """The output cannot be written."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> SettingsError:
    """Return the error for an unknown name; its message names the one that was probably meant, and lists the known."""
    known = [*known]
    near = near_miss(name, known)
    meant = f"; did you mean {near!r}?" if near else ""
    listed = "" if near and len(known) > MANY_NAMES else f"; known: {', '.join(known)}"
    return SettingsError(f"unknown {kind} {name!r}{listed}{meant}")


MANY_NAMES = 20
"""Names of which not all are listed beside the one that was probably meant."""


def near_miss(name: str, known: Iterable[str]) -> str:
    """Return the known name that a mistyped one is closest to; an empty text where none is close."""
    found = get_close_matches(name.lower(), [*known], 1, 0.75)
    return found[0] if found else ""
