"""What a row of the presets says: a published model, or a published accelerator with its recommended strengths."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """One model under a short name."""

    name: str
    family: str
    repo: str
    inside: str
    """The folder or file to take; empty where the repository holds one network."""
    base: str | None = None
    """The preset that it was distilled from: what to give as `--source`."""
    notes: str = ""
    unverified: str = ""
    revision: str | None = None
    gigabytes: float | None = None
    """What is fetched of it, where that is known."""
    seen: str | None = None
    """The commit (shortened, as the Hub shows it) at which the repository's listing was seen."""
    short: str = ""
    """What `--for` also takes for it: of several models of one project, the one that is meant by its name alone."""

    @property
    def where(self) -> str:
        """The Hub id that `--source` and `--target` take."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}{f':{self.inside}' if self.inside else ''}"

    def as_json(self) -> dict[str, Any]:
        """Return the row of `presets --json`."""
        return {**asdict(self), "where": self.where}

    def words(self) -> str:
        """Return the row for people: the id, then the notes."""
        size = f", {self.gigabytes:g} GB" if self.gigabytes else ""
        from_base = f", distilled from {self.base}" if self.base else ""
        lines = [f"{self.where}  ({self.family}{from_base}{size})", self.notes]
        lines += [f"not verified: {self.unverified}"] if self.unverified else []
        if self.revision is None:
            seen = f"; its listing was seen at {self.seen}, a shortened id, which pins nothing" if self.seen else ""
            lines.append(f"no commit is pinned: the repository's newest is taken{seen}")
        return "\n".join(line for line in lines if line)


@dataclass(frozen=True)
class AcceleratorPreset:
    """One accelerator LoRA under a short name, or several that are loaded together."""

    name: str
    family: str
    models: tuple[str, ...]
    """The presets of models that it is for; the first is what `--for` takes as the source."""
    files: tuple[tuple[str, float], ...]
    """`org/repo:file` and the recommended strength of each LoRA; several are loaded together."""
    steps: int | None = None
    """Steps that it is made for."""
    guidance: float | None = None
    """Guidance that it is made for; 1 is none."""
    notes: str = ""
    unverified: str = ""
    seen: str | None = None
    """Where the file's name, and the strength, were read."""
    kind: str = ""
    """What it is called for short, behind the name of a model: `wan2.1-t2v-14b+lightx2v`."""

    def as_json(self) -> dict[str, Any]:
        """Return the row of `presets --json`."""
        files = [{"where": where, "strength": strength} for where, strength in self.files]
        return {**asdict(self), "files": files}

    @property
    def strengths(self) -> str:
        """The recommended strengths, in the order of the files."""
        return " and ".join(f"{strength:g}" for _, strength in self.files)

    def words(self) -> str:
        """Return the row for people: files with strengths, how it is sampled, notes."""
        steps = f", {self.steps} steps" if self.steps else ""
        guidance = "" if self.guidance is None else f", guidance {self.guidance:g}"
        lines = [f"{where} at strength {strength:g}" for where, strength in self.files]
        lines[-1] += f"  ({self.family}, beside {' or '.join(self.models)}{steps}{guidance})"
        lines += [self.notes, f"not verified: {self.unverified}" if self.unverified else ""]
        lines += [f"read in: {self.seen}" if self.seen else ""]
        return "\n".join(line for line in lines if line)
