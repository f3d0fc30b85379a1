"""Say in a written file how it was made, and read from one the transfers that a LoRA went through.

A file's own transfer stands in `loraport.method`, `loraport.source` and so on; those before it in `loraport.earlier`, a
JSON list of the same fields, oldest first. Files may be made by anybody: what is not of this form is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loraport._version import __version__
from loraport.files.formats.safetensors_write import OWN_PREFIX
from loraport.plain_json import json_text

if TYPE_CHECKING:
    from loraport.files.lora.read import Lora

EARLIER = "earlier"
LEFT_OUT = "left_out"
"""In the oldest step that is kept: how many before it are not."""

FIELDS = (
    "version", "method", "settings", "part", "lora", "lora_sha256", "source", "source_hash", "target", "target_hash",
    "accelerator", "accelerator_sha256", "accelerator_strength", "converted", "converted_sha256", LEFT_OUT,
)  # fmt: skip
MOST_STEPS = 8
LONGEST = 1000
"""Characters; a longer field is left out, so that a chain of files never grows without end."""


def made_from(lora: Lora, method: str) -> dict[str, str]:
    """Return what a LoRA that a method made of another says of itself; names without folders, contents by hash."""
    own = {"version": __version__, "method": method, "lora": lora.path.name, "lora_sha256": lora.sha256}
    return own | earlier_field(lora.metadata)


def converted_from(lora: Lora) -> dict[str, str]:
    """Return the same for the same updates in another format: what an earlier run of ours wrote of them stays true."""
    own = {"version": __version__, "converted": lora.path.name, "converted_sha256": lora.sha256}
    return _own_fields(lora.metadata) | own


def own_header(**fields: Any) -> dict[str, str]:
    """Return fields of a model's header that this program writes, as JSON, with its version."""
    texts = {name: json_text(value, sort_keys=True) for name, value in fields.items()} | {"version": __version__}
    return {f"{OWN_PREFIX}{name}": text for name, text in texts.items()}


def _own_fields(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix(OWN_PREFIX): value for key, value in metadata.items() if key.startswith(OWN_PREFIX)}


def transfer_steps(metadata: Mapping[str, str]) -> list[dict[str, str]]:
    """Return all transfers behind a LoRA, oldest first, its own last; none for a LoRA that was trained as it is."""
    own = _own_fields(metadata)
    steps = _earlier(own.get(EARLIER, "[]"))
    if "method" in own:
        steps.append(_step(own))
    if len(steps) > MOST_STEPS:
        before = len(steps) - MOST_STEPS + sum(_count(step) for step in steps[:-MOST_STEPS])
        steps = steps[-MOST_STEPS:]
        steps[0] |= {LEFT_OUT: str(before + _count(steps[0]))}
    return steps


def earlier_field(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what a file made from this LoRA says of the transfers before its own; nothing where there were none."""
    steps = transfer_steps(metadata)
    return {EARLIER: json_text(steps, sort_keys=True)} if steps else {}


def accumulated_loss(name: str, metadata: Mapping[str, str]) -> list[str]:
    """Return the warning before a LoRA is transferred once more; none for one that was trained as it is."""
    steps = transfer_steps(metadata)
    if not steps:
        return []
    count = len(steps) + sum(_count(step) for step in steps)
    path = ", then ".join(step_words(step) for step in steps)
    return [
        f"{name} has been transferred {'before' if count == 1 else f'{count} times before'} ({path}): each transfer "
        "loses something and the losses add up (ProLoRA's Table 8 finds a chain worse than one step); start from "
        f"{steps[0].get('lora', 'the trained LoRA')} where you can"
    ]


def loading_hint(metadata: Mapping[str, str]) -> str | None:
    """Say how to load a LoRA that was made for a model with an accelerator; None for any other."""
    name, strength = (metadata.get(f"{OWN_PREFIX}{field}") for field in ("accelerator", "accelerator_strength"))
    if name is None or len(name) > LONGEST:
        return None
    return f"beside {name} at strength {_plain_number(strength)}: the accelerator is not in this file"


def _plain_number(text: str | None) -> str:
    try:
        return f"{float(text or 1):g}"
    except ValueError:
        return "?"


def step_words(step: Mapping[str, str]) -> str:
    """Return `casa from base to student`."""
    part = f", {step['part']} part" if "part" in step else ""
    return f"{step.get('method', '?')} from {step.get('source', '?')} to {step.get('target', '?')}{part}"


def _earlier(text: str) -> list[dict[str, str]]:
    try:
        steps: Any = json.loads(text)
    except (ValueError, RecursionError):
        return []
    transfers = [_step(step) for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    return [step for step in transfers if "method" in step]


def _step(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the known fields of one transfer, if they are texts of a sensible length."""
    known = ((name, fields.get(name)) for name in FIELDS)
    return {name: value for name, value in known if isinstance(value, str) and len(value) <= LONGEST}


def _count(step: Mapping[str, str]) -> int:
    text = step.get(LEFT_OUT, "0")
    return int(text) if text.isdecimal() and len(text) < 9 else 0
