"""Tell whether an unfinished run is the same work: what its settings, program and input files are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

import torch

from loraport._version import __version__
from loraport.digests import text_digest
from loraport.files.models.checkpoint import Checkpoint
from loraport.inputs.accelerator import AcceleratedModel, Target
from loraport.inputs.config import TransferConfig
from loraport.inputs.open import TransferInputs
from loraport.inputs.rank import common_rank


def work_digest(config: TransferConfig) -> str:
    """Return the same text for the same settings: with the contents of LoRA and models it says what a file is.

    It holds no paths and no device, so that a file is known again on another machine.
    """
    places = dict.fromkeys(("lora", "source", "target", "output", "cache", "device"))
    return text_digest(
        json.dumps({**asdict(config), "settings": asdict(config.recipe.settings), **places}, sort_keys=True)
    )


def run_identity(
    inputs: TransferInputs, device: torch.device, work: str, models: Iterable[Checkpoint | Target] = ()
) -> str:
    """Return what makes an unfinished run the same work: settings (`work`), program, inputs as they lie on the disk.

    Which layers are left out is no part of it: what is done of the others stays good. `models`: those that are read, if
    they are not the two that were opened for the LoRA.
    """
    paths = {path for model in tuple(models) or (inputs.source, inputs.target) for path in model.paths}
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)]
    target = inputs.target
    beside = [one.lora.sha256 for one in target.accelerators] if isinstance(target, AcceleratedModel) else None
    rank = common_rank(inputs.config, inputs.plan)
    return json.dumps([work, rank, __version__, torch.__version__, str(device), inputs.lora.sha256, beside, files])
