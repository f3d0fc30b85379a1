"""What is published of a family and known of its files: the reference's page about it is made from this and its table.

A table says how layers are called; a record says what a reader of the page wants to know beside that. The rest of the
page comes from where it has its home: the loaders' rows, the presets, the formats that are written.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedSize:
    """One published size, as diffusers' class has it: the names of all its tensors are in the table."""

    name: str
    model_class: str
    """The class of diffusers; empty where it has none."""
    tensors: int
    parameters: int


@dataclass(frozen=True)
class TrainerKey:
    """How one trainer or project spells LoRAs of the family, by the example of one key."""

    writers: str
    key: str
    """A key of a pair of factors, as it stands in their files."""
    remark: str = ""
    """Where they keep the scale, and what else is peculiar."""


@dataclass(frozen=True)
class FamilyRecord:
    """What the reference says of a family. Sentences are Markdown."""

    title: str
    summary: str
    """Which models these are, and what they are distilled into."""
    sizes: tuple[PublishedSize, ...]
    trainers: tuple[TrainerKey, ...]
    """The spellings of LoRAs that are read, a test parses each."""
    sources: tuple[str, ...]
    """Where names, rows and shapes were read."""
    traps: tuple[str, ...] = ()
    """What differs between spellings beyond the names, and what else surprises: a paragraph each."""
    unverified: tuple[str, ...] = ()
    """What was never seen or tried, such as a published file."""
