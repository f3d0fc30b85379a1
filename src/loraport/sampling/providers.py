"""Pairs of models that other installed packages know how to sample: entry points of the group `loraport.pairs`.

The name of an entry point is a prefix on the command line: with the package `loraport-lab`, `toy:base` and
`toy:one-step` mean the base and a student of its embedded family.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from loraport.errors import MismatchError, SettingsError
from loraport.files.models.named_places import LAB as LAB
from loraport.files.models.named_places import known_place as known_place
from loraport.files.models.named_places import load as load
from loraport.files.models.named_places import named_entries

if TYPE_CHECKING:
    from loraport.sampling.pair import Pair
    from loraport.sampling.wan_pipelines import PipelineSettings


class PairProvider(Protocol):
    """What an entry point of `loraport.pairs` loads. It must import nothing heavy until it opens a pair."""

    def locate(self, name: str) -> str:
        """Return what PREFIX:name means as --source or --target take it. Raises InputError for an unknown name."""
        ...

    def owns(self, source: Path) -> bool:
        """Return whether a folder is one of its models."""
        ...

    def open(self, source: Path, target: Path) -> Pair:
        """Open a pair of two of its models. Raises MismatchError where they cannot be sampled together."""
        ...


def owner_of(source: Path) -> PairProvider | None:
    """Return the provider that a folder belongs to. One that cannot be loaded owns none: its prefix says why."""
    for entry in named_entries().values():
        try:
            provider: PairProvider = load(entry)
        except SettingsError:
            continue
        if provider.owns(source):
            return provider
    return None


def pair_at(source: str, target: str, settings: Callable[[], PipelineSettings]) -> Pair:
    """Return two models as they are sampled, each opened when it is first sampled; `settings` are those of pipelines.

    Raises InputError where the two cannot be sampled.
    """
    source, target = known_place(source), known_place(target)
    if (owner := owner_of(Path(source))) is not None:
        return owner.open(Path(source), Path(target.removeprefix("source+")))
    if owner_of(Path(target)) is not None:
        raise MismatchError(f"{target} is of the embedded family and {source} is not; give its base as the source")
    from loraport.sampling.wan_pipelines import PipelinePair

    return PipelinePair(source, target, settings())
