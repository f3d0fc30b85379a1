"""Say in a written file how it was made, and read from one the transfers that a LoRA went through.

A file's own transfer stands in `loraport.method`, `loraport.source` and so on; those before it in `loraport.earlier`, a
JSON list of the same fields, oldest first. Files may be made by anybody: what is not of this form is left out.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from loraport._version import __version__
from loraport.errors import SettingsError
from loraport.files.formats.safetensors_write import OWN_PREFIX
from loraport.plain_json import json_text

if TYPE_CHECKING:
    from loraport.files.lora.read import Lora

EARLIER, DATE = "earlier", "date"
LEFT_OUT = "left_out"
"""In the oldest step that is kept: how many before it are not."""

FIELDS = (
    "version", "method", "settings", "part", "lora", "lora_sha256", "source", "source_hash", "target", "target_hash",
    "accelerator", "accelerator_sha256", "accelerator_strength", "accelerator_hub", "accelerators", "converted",
    "converted_sha256", LEFT_OUT,
)  # fmt: skip
MOST_STEPS = 8
LONGEST = 1000
"""Characters; a longer field is left out, so that a chain of files never grows without end."""


def made_from(lora: Lora, method: str) -> dict[str, str]:
    """Return what a LoRA that a method made of another says of itself; names without folders, contents by hash."""
    own = {"version": __version__, "method": method, "lora": lora.path.name, "lora_sha256": lora.sha256}
    own |= date_field()
    return own | earlier_field(lora.metadata)


def converted_from(lora: Lora) -> dict[str, str]:
    """Return the same for the same updates in another format: what an earlier run of ours wrote of them stays true."""
    own = {"version": __version__, "converted": lora.path.name, "converted_sha256": lora.sha256} | date_field()
    return _own_fields(lora.metadata) | own


def own_header(**fields: Any) -> dict[str, str]:
    """Return fields of a model's header that this program writes, as JSON, with its version."""
    texts = {name: json_text(value, sort_keys=True) for name, value in fields.items()}
    texts |= {"version": __version__, **date_field()}
    return {f"{OWN_PREFIX}{name}": text for name, text in texts.items()}


def merged_loras(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the LoRAs that `merge` has baked into a model, with `lora`, `strength` and the trainer's `words`."""
    try:
        steps = json.loads(metadata.get(f"{OWN_PREFIX}merged", "[]"))
    except (ValueError, RecursionError):
        return []
    loras = [one for step in _listed(steps) if isinstance(step, dict) for one in _listed(step.get("loras"))]
    return [
        {"lora": one["lora"], "strength": float(one["strength"]), "words": _texts(one.get("words"))}
        for one in loras
        if isinstance(one, dict) and isinstance(one.get("lora"), str) and isinstance(one.get("strength"), int | float)
    ]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(value: Any) -> dict[str, str]:
    return {str(name): text for name, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else {}


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
    """Say on which model, how strong, and beside what a LoRA is loaded that was moved; None for any other."""
    own = _own_fields(metadata)
    target, beside = own.get("target"), accelerators_of(metadata)
    if target is None or len(target) > LONGEST:
        return None
    model = target.removesuffix("".join(f"+{name}" for name, _ in beside))
    words = f"on {model} at strength 1"
    if beside:
        words += ", beside " + " and ".join(f"{name} at strength {strength:g}" for name, strength in beside)
        words += f": the accelerator{'s are' if len(beside) > 1 else ' is'} not in this file"
    if "part" in own:
        words += "; the other part of it, in a file of its own, is loaded beside it"
    return words


def accelerator_fields(beside: Iterable[tuple[str, str, float, str]]) -> dict[str, str]:
    """Return what a file says of the accelerators that it is loaded beside: (name, sha256, strength, Hub id) of each.

    The Hub id is "" where there is none.
    """
    found = list(beside)
    if len(found) == 1:
        name, digest, strength, hub = found[0]
        fields = {"accelerator": name, "accelerator_sha256": digest, "accelerator_strength": repr(strength)}
        fields |= {"accelerator_hub": hub} if hub else {}
        return {**fields, "load": "beside the accelerator, which is not in this file"}
    rows = [
        {"name": name, "sha256": digest, "strength": strength, **({"hub": hub} if hub else {})}
        for name, digest, strength, hub in found
    ]
    return {"accelerators": json_text(rows), "load": "beside the accelerators, which are not in this file"}


def accelerators_of(metadata: Mapping[str, str]) -> tuple[tuple[str, float], ...]:
    """Return (name, strength) of the accelerators that a LoRA is loaded beside; nothing for one that needs none.

    A file may say anything: what is no list of names with numbers is left out.
    """
    return tuple((name, strength) for name, strength, _ in _accelerators(metadata))


def accelerator_hub_ids(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the Hub id of each of these accelerators, "" where the file does not say it."""
    return tuple(hub for _, _, hub in _accelerators(metadata))


def _accelerators(metadata: Mapping[str, str]) -> list[tuple[str, float, str]]:
    own = _own_fields(metadata)
    if (name := own.get("accelerator")) is not None:
        one = {"name": name, "strength": own.get("accelerator_strength", "1"), "hub": own.get("accelerator_hub", "")}
        rows: Any = [one]
    else:
        try:
            rows = json.loads(own.get("accelerators", "[]"))
        except (ValueError, RecursionError):
            return []
    found = []
    for row in rows if isinstance(rows, list) else ():
        try:
            name, strength, hub = str(row["name"]), float(row["strength"]), str(row.get("hub", ""))
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
        if len(name) <= LONGEST:
            found.append((name, strength, hub if len(hub) <= LONGEST else ""))
    return found


def made_on(metadata: Mapping[str, str]) -> str | None:
    """Return the date that was written into the file, which is so only where SOURCE_DATE_EPOCH said it."""
    date = metadata.get(f"{OWN_PREFIX}{DATE}", "")
    return date if len(date) == 10 and date.replace("-", "").isdigit() else None


def date_field() -> dict[str, str]:
    """Return the date for a header where SOURCE_DATE_EPOCH names one; nothing else, since bytes must not depend on it.

    Raises SettingsError for a value that is no number of seconds since 1970.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return {}
    try:
        return {DATE: datetime.datetime.fromtimestamp(int(text), datetime.timezone.utc).strftime("%Y-%m-%d")}
    except (ValueError, OverflowError, OSError) as error:
        raise SettingsError(
            f"SOURCE_DATE_EPOCH is {text!r}, but it must be a number of seconds since 1970; unset it for no date"
        ) from error


def provenance_facts(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of a file's own transfer or conversion that are shown to people: names, hashes, version."""
    own = _own_fields(metadata)
    return {name: own[name] for name in FIELDS if name in own and len(own[name]) <= LONGEST}


def _plain_number(text: str | None) -> str:
    try:
        return f"{float(text or 1):g}"
    except ValueError:
        return "?"


def moved_words(step: Mapping[str, str]) -> str:
    """Return `moved from base to student by casa`."""
    part = f", {step['part']} part" if "part" in step else ""
    return f"moved from {step.get('source', '?')} to {step.get('target', '?')} by {step.get('method', '?')}{part}"


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
