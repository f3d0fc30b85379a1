"""Each network with planted weights says what its authors' program says with the same.

`originals.json` holds the names and shapes of each original's weights and what it gave for planted weights and films
(planted_weights.py), in float32 on a processor under torch 2.13.0, torchvision 0.28.0, Pillow 13.0.0:

* CSD: class CSD_CLIP and transforms_branch0 of learn2phoenix/CSD (2024-10-03), around its own copy of CLIP's picture
  tower with patches of 32 pixels, width 64, two layers of two heads, 48 numbers of style; the first six of them.
* HPSv2: class CLIP and image_transform(224, resize_longest_max=True) of tgxs002/HPSv2 (2024-02-21), patches of 32
  pixels, widths 64 and 32, two layers of two heads, 100 words, 32 numbers in common.
* LPIPS: lpips.LPIPS(net="alex") of lpips 0.1.4 at its real size.
* MUSIQ: pyiqa 0.1.16, width 48 and 96, two layers of two heads, fed as vbench/imaging_quality.py of Vchitect/VBench
  (2026-03-23) feeds it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.networks.planted_weights import film, planted

from loraport.evaluation.networks import csd, hpsv2, lpips, musiq
from loraport.evaluation.networks.clip_towers import PictureSize, TextClip, TowerSize

ORIGINALS: dict[str, Any] = json.loads((Path(__file__).parent / "originals.json").read_text(encoding="utf-8"))
CPU = torch.device("cpu")


def small_csd() -> csd.Csd:
    return csd.Csd(TowerSize(64, layers=2, heads=2), patch=32, style=48)


def small_hpsv2() -> TextClip:
    eye, reader = TowerSize(64, layers=2, heads=2), TowerSize(32, layers=2, heads=2)
    return TextClip(PictureSize(224, patch=32), eye, reader, joint=32, words=100, length=77)


def small_musiq() -> musiq.Musiq:
    return musiq.Musiq(musiq.MusiqSize(width=48, inner=96, heads=2, layers=2))


def saved(network: str, path: Path, names: str = "names", part: str | None = None, prefix: str = "") -> Path:
    """Save planted weights under the original's names; `part` and `prefix` are where its checkpoint has them."""
    weights = planted({name: tuple(shape) for name, shape in ORIGINALS[network][names].items()})
    table = {prefix + name: weight for name, weight in weights.items()}
    torch.save(table if part is None else {part: table, "epoch": 3}, path)
    return path


def sizes(network: str) -> list[Any]:
    found = [name for name in ORIGINALS[network] if name not in ("names", "heads")]
    return [pytest.param(*map(int, name.split("x")), ORIGINALS[network][name], id=name) for name in found]


@pytest.mark.parametrize(("height", "width", "expected"), sizes("csd"))
def test_csd(height: int, width: int, expected: Any, tmp_path: Path) -> None:
    network = csd.load_csd(saved("csd", tmp_path / "a.bin", part="model_state_dict", prefix="module."), CPU, small_csd)
    styles = network.styles(film(2, height, width))
    torch.testing.assert_close(styles[:, :6], torch.tensor(expected), atol=2e-6, rtol=0)
    torch.testing.assert_close(styles.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(("height", "width", "expected"), sizes("hpsv2"))
def test_hpsv2(height: int, width: int, expected: Any, tmp_path: Path) -> None:
    network = hpsv2.load_hpsv2(saved("hpsv2", tmp_path / "a.pt", part="state_dict"), CPU, small_hpsv2)
    tokens = torch.tensor([[98, 3, 41, 59, 26, 5, 99]])  # the original pads them to 77 with zeros, which nothing sees
    scores = hpsv2.preferences(network, tokens, film(2, height, width))
    torch.testing.assert_close(scores, torch.tensor(expected), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("height", "width", "expected"), sizes("lpips"))
def test_lpips(height: int, width: int, expected: Any, tmp_path: Path) -> None:
    network = lpips.load_lpips(saved("lpips", tmp_path / "a.pth"), saved("lpips", tmp_path / "b.pth", "heads"), CPU)
    frames = film(3, height, width)
    distances = network.distances(frames, frames[[1, 2, 0]])
    torch.testing.assert_close(distances, torch.tensor(expected), atol=1e-7, rtol=1e-5)
    assert network.distances(frames, frames).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("height", "width", "expected"), sizes("musiq"))
def test_musiq(height: int, width: int, expected: Any, tmp_path: Path) -> None:
    network = musiq.load_musiq(saved("musiq", tmp_path / "a.pth"), CPU, small_musiq)
    torch.testing.assert_close(network.qualities(film(2, height, width)), torch.tensor(expected), atol=2e-6, rtol=0)
