"""What the bytes of a part depend on beside contents and settings: the program, PyTorch, the device, the threads.

Workers whose machines differ in one of these would write other bytes for the same part, if only in last digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from loraport._version import __version__
from loraport.compute import weights_device
from loraport.digests import text_digest
from loraport.errors import SettingsError


@dataclass(frozen=True)
class Machine:
    """The kind of machine that all workers of a run have to be."""

    version: str
    torch: str
    device: str
    """Of a card its name, of a processor its instructions: libraries choose their kernels by these."""
    threads: int
    """With which one layer is computed: sums that several threads share are added in another order."""

    @classmethod
    def here(cls, device: str, threads: int) -> Machine:
        """Return this machine, with a device of it. Raises SettingsError for one that is not there."""
        found = weights_device(device)
        if found.type == "cuda":
            name = f"cuda, {torch.cuda.get_device_name(found)}"
        else:
            name = f"cpu, {torch.backends.cpu.get_cpu_capability()}"
        return cls(__version__, torch.__version__, name, threads)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Machine:
        """Return the machine that a plan names."""
        return cls(str(value["version"]), str(value["torch"]), str(value["device"]), int(value["threads"]))

    def as_json(self) -> dict[str, Any]:
        """Return it for a plan."""
        return asdict(self)

    @property
    def key(self) -> str:
        """A text that differs for machines whose bytes may differ."""
        return text_digest(self.version, self.torch, self.device, str(self.threads))

    def check(self, other: Machine, where: str) -> None:
        """Raise SettingsError where another machine began a run that this one would go on with other bytes."""
        names = {"version": "loraport", "torch": "PyTorch", "device": "device", "threads": "threads a layer"}
        told = [
            f"{words} {getattr(other, name)} there, {getattr(self, name)} here"
            for name, words in names.items()
            if getattr(other, name) != getattr(self, name)
        ]
        if told:
            raise SettingsError(
                f"{where} was begun on another kind of machine, whose results differ in their last digits: "
                f"{'; '.join(told)}. Go on with the same, or begin anew with --fresh"
            )
