"""The authors' own pipeline, from a checkout that the user names, on the device under test.

    python -m benchmarks.published start|svd|cfft|transfer FOLDER --published PATH [--device cpu]

`transfer` runs their `run_lora_transfer.py` as it is; the only change is that `.cuda()` moves a tensor to the device
under test. Their two preparations are example scripts with fixed paths, so `svd` and `cfft` do here what those
describe: a full SVD of every Linear in float32, and Uᵀ·(W_t − U·S·Vh)·V from the rounded factors, both pickled in
bfloat16. `start` only imports what they import. Nothing of theirs is kept here: the repository has no licence.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pickle
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from loraport.files.names.lookup import canonical_layer


def linears(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every Linear of the blocks under its original name, as the file has it."""
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():
                if key.startswith("blocks.") and key.endswith(".weight") and len(file.get_slice(key).get_shape()) == 2:
                    layer = key.removesuffix(".weight")
                    yield f"{canonical_layer(layer, 'diffusers') or layer}.weight", file.get_tensor(key)


def svd(folder: Path, device: str) -> None:
    """Full bases of the source, in bfloat16, in one pickle."""
    found = {}
    for name, tensor in linears(folder / "source"):
        factors = torch.linalg.svd(tensor.float().to(device), full_matrices=True)
        found[name] = {part: X.to(torch.bfloat16) for part, X in zip(("U", "S", "Vh"), factors, strict=True)}
    with (folder / "published-svd.pkl").open("wb") as file:
        pickle.dump(found, file)


def cfft(folder: Path, device: str, published: Path) -> None:
    """The drift in those bases, against the source as their rounded factors give it back, in bfloat16, pickled."""
    sys.path.insert(0, str(published))
    from utils import load_results  # type: ignore[import-not-found]  # the checkout's

    bases = load_results(str(folder / "published-svd.pkl"), device="cpu")
    found = {}
    for name, tensor in linears(folder / "target"):
        U, S, Vh = (bases[name][part].to(device).float() for part in ("U", "S", "Vh"))
        rebuilt = U[:, : len(S)] @ torch.diag(S) @ Vh[: len(S)]
        found[name] = (U.T @ (tensor.to(device).float() - rebuilt) @ Vh.T).to(torch.bfloat16).cpu()
    with (folder / "published-cfft.pkl").open("wb") as file:
        pickle.dump(found, file)


def transfer(folder: Path, device: str, published: Path, lora: str, settings: dict[str, float]) -> None:
    """Their command line, its `.cuda()` mapped to the device."""
    if device == "cpu":
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    sys.path.insert(0, str(published))
    sys.argv = [
        "run_lora_transfer.py", "--lora-path", str(folder / lora),
        "--output-path", str(folder / "published.safetensors"),
        "--svd-src-path", str(folder / "published-svd.pkl"), "--cfft-path", str(folder / "published-cfft.pkl"),
        "--transfer-kwargs", json.dumps(settings),
    ]  # fmt: skip
    runpy.run_path(str(published / "run_lora_transfer.py"), run_name="__main__")


def main() -> None:
    """One stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["start", "svd", "cfft", "transfer"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--published", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lora", default="lora.safetensors")
    parser.add_argument("--settings", type=json.loads, default={})
    given = parser.parse_args()
    with torch.no_grad():
        if given.stage == "svd":
            svd(given.folder, given.device)
        elif given.stage == "cfft":
            cfft(given.folder, given.device, given.published)
        elif given.stage == "start":
            sys.path.insert(0, str(given.published))
            importlib.import_module("transfer")
        else:
            transfer(given.folder, given.device, given.published, given.lora, given.settings)


if __name__ == "__main__":
    main()
