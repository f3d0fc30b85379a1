"""Small clips with a known answer, written as a comparison or as plain folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from loraport.clips.clip import Clip
from loraport.clips.write import write_lossless

FPS = 8.0


def clip(
    seed: int, *, frames: int = 3, height: int = 24, width: int = 32, noise: float = 0.0, fps: float = FPS
) -> Clip:
    """A moving pattern, the same for the same seed, with so much noise of another seed."""
    rng = np.random.default_rng(seed)
    wall = rng.random((height + frames, width, 3))
    wall = (wall + np.roll(wall, 1, 0) + np.roll(wall, 1, 1)) / 3
    views = np.stack([wall[t : t + height] for t in range(frames)])
    views = views + noise * np.random.default_rng(seed + 1000).standard_normal(views.shape)
    return Clip((views.clip(0, 1) * 255).astype(np.uint8), fps)


def write_folder(folder: Path, names: dict[str, Clip], ending: str = ".mkv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in names.items():
        write_lossless(folder / f"{name}{ending}", one)
    return folder


def write_columns(root: Path, noises: dict[str, float], *, prompts: int = 3, seeds: int = 2) -> dict[str, Path]:
    """A folder a column: the same clips with more or less noise."""
    made = {}
    for column, noise in noises.items():
        clips = {f"{p:02d}-{s}": clip(10 * p + s, noise=noise) for p in range(prompts) for s in range(seeds)}
        made[column] = write_folder(root / column, clips)
    return made


def write_manifest(root: Path, noises: dict[str, float], *, prompts: int = 3, seeds: int = 2) -> Path:
    """A comparison as `loraport compare` writes it."""
    folders = write_columns(root / "clips", noises, prompts=prompts, seeds=seeds)
    rows = []
    for column, folder in folders.items():
        for file in sorted(folder.iterdir()):
            prompt, seed = file.stem.split("-")
            rows.append(
                {
                    "column": column, "prompt": prompt, "seed": int(seed), "look": "", "frames": 3, "fps": FPS,
                    "measure": file.relative_to(root).as_posix(), "width": 32, "height": 24, "seconds": 0.4,
                    "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                }
            )  # fmt: skip
    manifest = {
        "format": 1, "loraport": "1", "models": {"source": {"name": "org/base"}, "target": {"name": "fast"}},
        "lora": {"name": "style.safetensors", "sha256": "", "trigger": None},
        "columns": [{"name": name, "label": name, "model": "target", "lora": None, "method": None, "file": None,
                     "strength": 1.0} for name in noises],
        "prompts": [{"id": f"{p:02d}", "text": f"scene {p}"} for p in range(prompts)], "seeds": list(range(seeds)),
        "clips": rows, "sampling": {}, "versions": {},
    }  # fmt: skip
    (root / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return root


NOISES = {"source+lora": 0.0, "source": 0.12, "target": 0.2, "direct": 0.1, "casa": 0.05}
