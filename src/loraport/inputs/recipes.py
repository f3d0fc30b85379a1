"""Recipes as a user asks for them: methods by name, a preset, and single settings that win over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loraport.errors import SettingsError, unknown_name
from loraport.files.disk.user_paths import expand_home
from loraport.files.models.hub import looks_like_hub_id
from loraport.files.models.shards import WEIGHTS
from loraport.files.strength import split_strength
from loraport.methods.recipes import METHODS, Recipe, find_recipe
from loraport.methods.settings import (
    CASA_PRESETS,
    KINDS,
    CasaSettings,
    Changes,
    Preset,
    changed,
    flagged_settings,
)

NO_CHANGES: Changes = {}


def method_list(text: str) -> tuple[str, ...]:
    """Return the methods in `casa,prolora,direct:1.15`. Raises SettingsError for an empty or repeated one."""
    names = tuple(name.strip() for name in text.split(","))
    for number, name in enumerate(names):
        if not name:
            raise SettingsError(f"methods {text!r}: one of them is empty; write for example casa,prolora,direct")
        if name in names[:number]:
            raise SettingsError(f"methods {text!r}: {name!r} is given twice; give each method once")
    return names


def check_method_or_file(text: str, others: Sequence[str] = ()) -> None:
    """Raise SettingsError for a word that is no method, none of the `others`, no file that is there, and no Hub id."""
    known = [*METHODS, *others]
    place = split_strength(text)[0]
    if text.partition(":")[0] not in known and not expand_home(place).exists() and not looks_like_hub_id(place):
        if "/" in place or place.lower().endswith(WEIGHTS):
            raise SettingsError(f"{place} does not exist; give a LoRA on the target, or one of: {', '.join(known)}")
        raise unknown_name("method or file", text, known)


def chosen_recipes(
    methods: Sequence[str], preset: str | None = None, changes: Changes = NO_CHANGES
) -> tuple[Recipe, ...]:
    """Return the recipes of one run, each with the preset and the changed settings that are its own.

    A setting is good if one of the methods has it, and means nothing to the others; a value in a method's name wins.
    Raises SettingsError for a preset or a setting that none of them has, and for values out of range.
    """
    recipes = [find_recipe(name) for name in methods]
    _check_meaning(recipes, preset, changes)
    return tuple(_configured(recipe, preset, changes) for recipe in recipes)


def casa_settings(preset: str | None = None, changes: Changes = NO_CHANGES) -> CasaSettings:
    """Return CASA's settings from a preset and what is changed of it. Raises SettingsError as `chosen_recipes`."""
    return changed(_preset(preset).settings, changes)


def _configured(recipe: Recipe, preset: str | None, changes: Changes) -> Recipe:
    own = {name: value for name, value in changes.items() if name in recipe.knobs}
    if not isinstance(recipe.settings, CasaSettings):
        return find_recipe(recipe.name, changed(recipe.settings, own))
    named = _preset(preset)
    rank = None if recipe.method.low_rank else named.rank
    return replace(find_recipe(recipe.name, changed(named.settings, own)), rank=rank)


def _preset(name: str | None) -> Preset:
    if name is not None and name not in CASA_PRESETS:
        raise unknown_name("preset", name, CASA_PRESETS)
    return CASA_PRESETS[name or "paper"]


def _check_meaning(recipes: Sequence[Recipe], preset: str | None, changes: Changes) -> None:
    """Raise SettingsError for a preset or settings that none of the recipes looks at."""
    means = " or ".join(repr(recipe.name) for recipe in recipes)
    _preset(preset)
    if preset is not None and not any(isinstance(recipe.settings, CasaSettings) for recipe in recipes):
        raise SettingsError(f"--preset is of CASA's settings and means nothing to {means}; leave it out")
    known = set().union(*(recipe.knobs for recipe in recipes))
    for kind in KINDS:
        rows = {row.name: row for row in flagged_settings(kind)}
        if alien := [rows[name].option for name in changes if name in rows and name not in known]:
            words = ", ".join(alien)
            raise SettingsError(f"{words} is a setting of {kind.title} and means nothing to {means}; leave it out")
        for row in rows.values():
            needs = row.flag.needs
            users = [recipe for recipe in recipes if row.name in recipe.knobs]
            off = needs is not None and changes.get(needs) is False and all(needs in one.knobs for one in users)
            if off and row.name in changes:
                raise SettingsError(f"{row.option} would do nothing beside --no-{needs}; leave one of them out")
