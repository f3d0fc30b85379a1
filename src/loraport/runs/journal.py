"""Finished layers of an unfinished run, in a folder beside its output: a killed run starts again by subtraction."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from loraport.errors import FileFormatError, LoraportError, OutputError
from loraport.runs.results import LayerResult
from loraport.spectral.svd import LowRank
from loraport.weights.safetensors_files import read_safetensors
from loraport.weights.saving import Pending, save_safetensors

_OURS = re.compile(r"[0-9a-f]{16}\.safetensors|\..+\.part")


class Journal:
    """The folder `OUT.partial` of one run: a file a layer, each marked with the run that it belongs to."""

    def __init__(self, output: Path, run: str, dtype: torch.dtype) -> None:
        """`run` is a text that differs for different work.

        Raises OutputError where the folder cannot be made, or holds what no run wrote.
        """
        self.folder = output.with_name(f"{output.name}.partial")
        self.run = hashlib.sha256(run.encode()).hexdigest()
        self.dtype = dtype
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            foreign = [path.name for path in self.folder.iterdir() if not _OURS.fullmatch(path.name)]
        except OSError as error:
            raise OutputError(f"{output} cannot be written: {error.strerror or error}; choose another place") from error
        if foreign:
            raise OutputError(f"{self.folder} holds {foreign[0]!r}, which no transfer wrote; move it away")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """A kill or a fault of ours leaves the layers for the next start; an end, good or refused, leaves nothing."""
        if kind is None or issubclass(kind, LoraportError):
            shutil.rmtree(self.folder, ignore_errors=True)

    def keep(self, written: LowRank | Tensor, result: LayerResult) -> None:
        """Write a finished layer, whole or not at all, rounded to the output's dtype. Raises OutputError."""
        tensors = {"B": written.B, "A": written.A} if isinstance(written, LowRank) else {"D": written}
        lost = written.lost_energy if isinstance(written, LowRank) else 0.0
        pending = {name: Pending.of(tensor.to("cpu", self.dtype)) for name, tensor in tensors.items()}
        metadata = {"run": self.run, "result": json.dumps(asdict(result)), "lost_energy": repr(lost)}
        save_safetensors(self._place(result.name), pending, metadata)

    def recall(self, name: str) -> tuple[LowRank | Tensor, LayerResult] | None:
        """A layer that this run finished before, or None."""
        path = self._place(name)
        if not path.is_file():
            return None
        try:
            file = read_safetensors(path)
            if file.metadata.get("run") != self.run:
                return None
            tensors = {key: stored.read() for key, stored in file.tensors.items()}
            fields = json.loads(file.metadata["result"])
            result = LayerResult(**{**fields, "shape": tuple(fields["shape"])})
            if "D" in tensors:
                return tensors["D"], result
            return LowRank(tensors["B"], tensors["A"], float(file.metadata["lost_energy"])), result
        except (FileFormatError, KeyError, ValueError, TypeError):
            return None  # damaged: the layer is done again

    def _place(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"
