"""Strengths as users write them behind a file: `LORA*0.8`."""

from __future__ import annotations

import math

from loraport.errors import SettingsError
from loraport.files.disk.user_paths import expand_home


def split_strength(text: str) -> tuple[str, float]:
    """Return (place, strength) of `LORA` or `LORA*STRENGTH`; a path that exists as it stands has strength 1.

    Raises SettingsError for a strength that is not a finite number.
    """
    place, star, number = text.rpartition("*")
    if not star or expand_home(text).exists():
        return text, 1.0
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not place or not math.isfinite(strength):
        raise SettingsError(f"{text!r}: {number!r} is not a valid strength; write LORA*0.8, or a path that exists")
    return place, strength
