"""What a diagnosis gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loraport.diagnosis.look import LayerLook
from loraport.diagnosis.relation import Relation
from loraport.diagnosis.rule.advice import CHOOSE, NOT_THIS_PAIR, Advice
from loraport.diagnosis.rule.traits import Traits


@dataclass(frozen=True)
class Keys:
    """How much of the LoRA the models have a place for."""

    total: int
    """Keys of the LoRA's layers"""
    matched: int
    """Those of layers that a transfer would move"""
    layers: int
    matched_layers: int

    def as_json(self) -> dict[str, int]:
        """Return the object of the JSON output."""
        return {
            "in": self.total, "matched": self.matched, "layers_in": self.layers, "layers_matched": self.matched_layers,
        }  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """What the weights of a pair and a LoRA say: a verdict, why, how sure, and what to type next."""

    lora: str
    """As it was named; source and target likewise."""
    source: str
    target: str
    keys: Keys
    advice: Advice
    """A verdict of its own: where it is `not-this-pair`, the rule was not asked."""
    command: str
    """What to type next"""
    relation: Relation | None = None
    """None where the weights were not compared"""
    traits: Traits | None = None
    looks: tuple[LayerLook, ...] = ()
    exact: bool = False
    """Whether every layer was looked at"""
    rank: int | None = None
    """The rank that a transfer's file has unless another is asked for"""
    kept: Mapping[str, float | None] = field(default_factory=dict)
    """Method -> share of its correction that this rank keeps"""
    estimate: Mapping[str, float | int | None] | None = None
    """Of a transfer by the advised method: seconds, memory and sizes"""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """`direct`, `casa`, `undo:0.25`, `choose` or `not-this-pair`."""
        return self.advice.verdict

    @property
    def why(self) -> str:
        """The reason, in a sentence."""
        return self.advice.why

    @property
    def sure(self) -> float:
        """How sure the verdict is, 0 to 1."""
        return self.advice.sure

    @property
    def method(self) -> str | None:
        """The method to take where nothing can be sampled; None where no transfer makes sense."""
        return None if self.verdict == NOT_THIS_PAIR else self.advice.method

    def line(self) -> str:
        """Return the verdict in one line."""
        without = f"; without samples: {self.method}" if self.verdict == CHOOSE else ""
        return f"{self.advice.line()}{without}"

    def mean(self, name: str) -> float | None:
        """Return the mean of what was measured of the layers; None where it was of none."""
        values = [value for look in self.looks if (value := getattr(look, name)) is not None]
        return sum(values) / len(values) if values else None

    def as_json(self) -> dict[str, Any]:
        """Return the one object that `--json` prints."""
        traits = self.traits
        return {
            "lora_file": self.lora,
            "source": self.source,
            "target": self.target,
            "keys": self.keys.as_json(),
            "is_base": self.relation is not None and self.relation.is_base,
            "swapped": self.relation is not None and self.relation.swapped,
            "relation": None if self.relation is None else self.relation.words,
            "drift": None if traits is None else traits.raw_drift,
            "floor": None if traits is None else traits.floor,
            "rho2": None if traits is None else traits.rho2,
            "lora": None if traits is None else traits.lora,
            "head_drift": None if traits is None else traits.head_drift,
            "head_lora": self.mean("head_lora"),
            "cosine": None if traits is None else traits.cosine,
            "weights_cosine": self.mean("same"),
            "head_overlap": self.mean("overlap"),
            "head_overlap_chance": self.mean("overlap_chance"),
            "accelerator": traits is not None and traits.accelerated,
            "quantized": [] if traits is None else list(traits.quantized),
            "regime": self.advice.regime,
            "on_map": self.advice.on_map,
            "nearest": [cell.as_json() for cell in self.advice.nearest],
            "rank": self.rank,
            "kept": dict(self.kept),
            "verdict": self.verdict,
            "why": self.why,
            "sure": self.sure,
            "method": self.method,
            "command": self.command,
            "estimate": None if self.estimate is None else dict(self.estimate),
            "exact": self.exact,
            "layers": [look.as_json() for look in self.looks],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }
