"""What a shell offers to complete: names of presets and of methods. Files are the shell's own."""

from __future__ import annotations


def complete_model(incomplete: str) -> list[str]:
    """Return the presets that a word may become."""
    from loraport.files.models.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)] if incomplete else []


def complete_method(incomplete: str) -> list[str]:
    """Return the methods that the last of some, divided by commas, may become."""
    from loraport.diagnosis.rule.advice import RECOMMEND
    from loraport.methods.recipes import METHODS

    before, comma, last = incomplete.rpartition(",")
    names = METHODS if comma else (*METHODS, RECOMMEND)  # that one stands alone
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]
