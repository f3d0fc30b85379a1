"""A comparison on the embedded family, in the layout that `loraport compare` writes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from loraport.clips.clip import Clip
from loraport.clips.write import write_lossless
from loraport.inputs.config import TransferConfig
from loraport.transfers.run import transfer_many
from loraport_lab.demo import Column, run_demo
from loraport_lab.family.family import BASE, FAMILY, adapter_path, target_place

FPS = 8.0


def write_comparison(folder: Path, *, adapter="noir", student="one-step", methods=("casa",), clips=8, seed=0) -> Path:
    """Sample the columns of a comparison and write clips and manifest; two seeds of each prompt cannot be had here."""
    folder.mkdir(parents=True)
    files = {method: folder / f"{method.replace(':', '-')}.safetensors" for method in methods}
    inputs = str(adapter_path(adapter)), str(BASE), target_place(student)
    configs = [TransferConfig(*inputs, str(file), method=name, format="diffusers") for name, file in files.items()]
    transfer_many(configs)
    columns = {
        "source+lora": Column("source + LoRA", "reference", "base", adapter_path(adapter)),
        "source": Column("source", "student", "base", None),
        "target": Column("target", "student", student, None),
        "direct": Column("direct", "direct", student, adapter_path(adapter)),
        **{name: Column(name, "transfer", student, file) for name, file in files.items()},
    }
    demo = run_demo(list(columns.values()), adapter=adapter, clips=clips, seed=seed, family=FAMILY)
    rows = []
    for (name, _), made in zip(columns.items(), demo.columns, strict=True):
        place = folder / "clips" / name.replace(":", "-")
        place.mkdir(parents=True)
        for number, frames in enumerate(made.frames.numpy()):
            file = place / f"{number:02d}-0.mkv"
            write_lossless(file, Clip(frames, FPS))
            rows.append(
                {
                    "column": name, "prompt": f"{number:02d}", "seed": 0, "measure": str(file.relative_to(folder)),
                    "look": "", "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "frames": len(frames),
                    "fps": FPS, "width": frames.shape[2], "height": frames.shape[1], "seconds": len(frames) / FPS,
                }
            )  # fmt: skip
    manifest = {
        "format": 1, "loraport": "0", "models": {"source": {"name": "toy:base"}, "target": {"name": f"toy:{student}"}},
        "lora": {"name": f"toy:{adapter}", "sha256": "", "trigger": None},
        "columns": [{"name": name, "label": column.label, "model": "source" if column.model == "base" else "target",
                     "lora": None, "method": name if name in files else None, "file": None, "strength": 1.0}
                    for name, column in columns.items()],
        "prompts": [{"id": f"{number:02d}", "text": text} for number, text in enumerate(demo.prompts)],
        "seeds": [0], "clips": rows, "sampling": {}, "versions": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
