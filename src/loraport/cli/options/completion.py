"""What a shell offers to complete: names of presets and of methods. Files are the shell's own."""

from __future__ import annotations


def complete_model(incomplete: str) -> list[str]:
    """Return the presets that a word may become."""
    from loraport.files.presets.table import ACCELERATORS, PRESETS

    model, plus, beside = incomplete.rpartition("+")
    if plus:
        return [f"{model}+{name}" for name in ACCELERATORS if name.startswith(beside)]
    return [name for name in PRESETS if name.startswith(incomplete)] if incomplete else []


def complete_pair(incomplete: str) -> list[str]:
    """Return the published pairs that a word may become."""
    from loraport.files.presets.pairs import published_pairs

    return [name for name in published_pairs() if name.startswith(incomplete)]


def complete_method(incomplete: str) -> list[str]:
    """Return the methods that the last of some, divided by commas, may become."""
    from loraport.diagnosis.rule.advice import RECOMMEND
    from loraport.methods.recipes import METHODS

    before, comma, last = incomplete.rpartition(",")
    names = METHODS if comma else (*METHODS, RECOMMEND)  # that one stands alone
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]
