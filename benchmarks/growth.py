"""How time and memory grow with blocks and with LoRAs, on narrow layers, so that 30 blocks take minutes."""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from benchmarks.synthetic import prepared

BLOCKS = (1, 5, 15, 30)
LORAS = (1, 4, 16)


def growth(given: argparse.Namespace) -> dict[str, Any]:
    """Warm and cold runs at each number of blocks with one LoRA, and at each number of LoRAs with five blocks."""
    from benchmarks.suite import ours

    folder = given.folder / "growth"
    here = argparse.Namespace(**{**vars(given), "folder": folder})
    by_blocks, by_loras = {}, {}
    for blocks in BLOCKS:
        shutil.rmtree(folder, ignore_errors=True)
        prepared(folder, str(given.growth), blocks)
        by_blocks[blocks] = {name: ours(here, name, threads=given.threads) for name in ("cold", "warm")}
    shutil.rmtree(folder, ignore_errors=True)
    prepared(folder, str(given.growth), BLOCKS[1], loras=max(LORAS))
    ours(here, "cold", threads=given.threads)
    for loras in LORAS:
        by_loras[loras] = ours(here, f"{loras}-loras", threads=given.threads, loras=loras)
    shutil.rmtree(folder, ignore_errors=True)
    return {"width": given.growth, "by_blocks": by_blocks, "by_loras": by_loras, "blocks_of_loras": BLOCKS[1]}
