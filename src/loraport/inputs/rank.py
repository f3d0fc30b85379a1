"""The one rank that all layers aim at: asked for, the LoRA's own, or `auto`'s (`RankRule` says what each means).

Under `energy` and `full` each layer has its own, which `transfers.layer.LayerTransfer` decides from its update.
"""

from __future__ import annotations

from loraport.files.adapters.updates import LARGEST_AUTO_RANK
from loraport.inputs.config import TransferConfig
from loraport.inputs.plan import Plan


def common_rank(config: TransferConfig, plan: Plan) -> int:
    """Return the rank that all layers aim at: the user's, or one that follows from the largest of the LoRA's own."""
    if config.rank.kind == "fixed":
        return int(config.rank.value)
    own = max((job.aim for job in plan.jobs if job.action != "drop"), default=0) or LARGEST_AUTO_RANK
    return own if config.rank.kind == "source" else auto_rank(own, low_rank=config.recipe.method.low_rank)


def auto_rank(own: int, *, low_rank: bool) -> int:
    """Return the rank that `auto` stands for (`RankRule`) for a method whose update is of the LoRA's rank, or dense."""
    return own if low_rank else 2 * own
