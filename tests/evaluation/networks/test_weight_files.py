"""Weights in the files that their authors publish, and files that are something else: one sentence each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.evaluation.networks.planted_weights import planted, shapes_of
from tests.evaluation.networks.test_against_originals import CPU, saved, small_csd, small_hpsv2, small_musiq

from loraport.errors import FileFormatError, InputError
from loraport.evaluation.networks import csd, hpsv2, lpips, musiq
from loraport.files.formats.pickled import read_pickle

LOADERS: dict[str, Callable[[Path], Any]] = {
    "csd": lambda path: csd.load_csd(path, CPU, small_csd),
    "hpsv2": lambda path: hpsv2.load_hpsv2(path, CPU, small_hpsv2),
    "musiq": lambda path: musiq.load_musiq(path, CPU, small_musiq),
    "lpips": lambda path: lpips.load_lpips(path, saved("lpips", path.with_suffix(".heads"), "heads"), CPU),
}
PARTS = {"csd": "model_state_dict", "hpsv2": "state_dict", "musiq": None, "lpips": None}
BUILDERS = {"csd": small_csd, "hpsv2": small_hpsv2, "musiq": small_musiq, "lpips": lpips.Alexnet}


def written(network: str, path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    weights = planted(shapes_of(BUILDERS[network]()))
    change(weights)
    part = PARTS[network]
    torch.save(weights if part is None else {part: weights}, path)
    return path


@pytest.mark.parametrize("network", LOADERS)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: weights.pop(next(iter(weights))), "it lacks '"),
        (lambda weights: [weights.pop(name) for name in list(weights)[:3]], "and 2 more; fetch the file"),
        (lambda weights: weights.update({"features.9.weight": torch.ones(2)}), "which has no 'features.9.weight'"),
        (lambda weights: weights.update({next(iter(weights)): torch.ones(3, 2)}), r"is of shape \[3, 2\], and"),
    ],
)
def test_another_network_is_refused(network: str, change: Callable[[Any], Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=says):
        LOADERS[network](written(network, tmp_path / "a.pt", change))
    LOADERS[network](written(network, tmp_path / "a.pt", lambda weights: None))


@pytest.mark.parametrize("network", LOADERS)
def test_a_file_that_is_no_weights_is_refused(network: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(InputError, match="is not there"):
        LOADERS[network](path)
    path.write_bytes(b"<html>")
    with pytest.raises(FileFormatError, match=r"a\.pt"):
        LOADERS[network](path)


def test_safetensors_and_half_precision_are_read_too(tmp_path: Path) -> None:
    weights = planted(shapes_of(small_musiq()))
    save_file({name: weight.half() for name, weight in weights.items()}, tmp_path / "a.safetensors")
    network = musiq.load_musiq(tmp_path / "a.safetensors", CPU, small_musiq)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert torch.equal(network.head.weight, weights["head.weight"].half().float())


class Trainer:
    """An object whose unpickling would run code."""

    ran = False

    def __reduce__(self) -> Any:
        return (run, ("x",))


def run(_: str) -> str:
    Trainer.ran = True
    return "ran"


def test_of_a_trainers_objects_nothing_is_read_and_no_code_runs(tmp_path: Path) -> None:
    path = saved("csd", tmp_path / "plain.bin", part="model_state_dict", prefix="module.")
    checkpoint = torch.load(path)
    beside = {"args": argparse.Namespace(lr=0.1), "best": np.float64(3), "at": Path("/x"), "trainer": Trainer()}
    torch.save(beside | {"epoch": 5, "optimizer": {"state": {0: {"step": torch.ones(())}}}} | checkpoint, path)
    with pytest.raises(FileFormatError, match="holds more than tensors"):
        read_pickle(path, "model_state_dict")
    network = csd.load_csd(path, CPU, small_csd)
    assert torch.equal(network.last_layer_style, checkpoint["model_state_dict"]["module.last_layer_style"])
    assert not Trainer.ran
    with pytest.raises(FileFormatError, match="holds more than tensors"):  # the next file is read as before
        read_pickle(path, "model_state_dict")


def test_the_published_sizes() -> None:
    """Weights counted: CLIP's ViT-L/14 eye of 303 millions and two matrices, ViT-H/14, MUSIQ's 27 millions, AlexNet."""
    makers = (csd.real_csd, hpsv2.real_hpsv2, musiq.real_musiq, lpips.Alexnet, lpips.Heads)
    with torch.device("meta"):
        counts = [sum(parameter.numel() for parameter in make().parameters()) for make in makers]
    assert counts == [303_179_776 + 2 * 1024 * 768, 986_109_441, 27_125_825, 2_469_696, 1_152]
