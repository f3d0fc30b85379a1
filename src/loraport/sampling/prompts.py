"""Prompts for pipelines: from a file, or a short list of ordinary scenes."""

from __future__ import annotations

from loraport.errors import InputError
from loraport.files.disk.user_paths import expand_home

PROMPTS = (
    "a cat walks along a garden wall in the morning sun",
    "waves roll onto a rocky beach, slow camera pan",
    "a woman with an umbrella crosses a busy street in the rain",
    "a steam train passes over a stone bridge in the mountains",
    "close-up of hands kneading dough on a wooden table",
    "a small boat drifts on a lake surrounded by autumn trees",
    "children fly a red kite on a windy hill",
    "a dog shakes off water beside a swimming pool",
    "city traffic at night seen from above, lights streaming",
    "a potter shapes a bowl on a spinning wheel",
    "snow falls on a quiet village square with a lit lantern",
    "a dancer turns in an empty studio with tall windows",
    "a field of sunflowers sways in the wind under a cloudy sky",
    "a robot arm places parts on a conveyor belt",
    "an old man reads a newspaper on a park bench, pigeons around him",
    "a campfire burns in front of a tent under the stars",
)


def read_prompts(file: str | None) -> tuple[str, ...]:
    """Return the lines of a file that are not blank, or the built-in list. Raises InputError where there are none."""
    if file is None:
        return PROMPTS
    try:
        lines = expand_home(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as text: {error}; give prompts, one a line") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise InputError(f"{file} has no prompts; write one a line")
    return prompts
