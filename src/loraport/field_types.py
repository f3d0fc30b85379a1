"""Check that the fields of settings have the types that they are annotated with, when the settings are made."""

from __future__ import annotations

import math
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from loraport.errors import SettingsError, unknown_name

_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "True or False", NoneType: "None"}
_LONGEST = 60


def check_fields(settings: Any) -> None:
    """Make lists tuples, as the annotations have them, and raise SettingsError for a value of another type.

    It is called by frozen dataclasses when they are made.
    """
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        if isinstance(value, list) and get_origin(hint) is tuple:
            value = tuple(value)
            object.__setattr__(settings, field.name, value)
        if get_origin(hint) is Literal and not _fits(value, hint):
            raise unknown_name(field.name, value, map(str, get_args(hint)))
        if not _fits(value, hint):
            raise SettingsError(f"{field.name} is {_short(value)}, but it must be {_words(hint)}")


def _fits(value: object, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(one, inner[0]) for one in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inner))
    if origin is tuple:
        return f"a tuple, each of it {_words(inner[0])}"
    return _WORDS.get(hint) or f"of the class {hint.__name__}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"a {type(value).__name__}"
