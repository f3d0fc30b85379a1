"""Every metric whose weights a user has to fetch: which files, under which licence, and how to read its number.

No library is imported here before an instrument is opened. Sizes are the Hub's, most of them rounded as it shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraport.errors import InputError
from loraport.evaluation.metrics.metric import (
    Instrument,
    Look,
    Metric,
    Need,
    Readings,
    WeightFile,
    Weights,
    mean_cosine,
)

if TYPE_CHECKING:
    from loraport.clips.clip import Clip
    from loraport.evaluation.networks.pictures import Frames

FEW = 8
"""Frames of a clip that networks made for pictures look at, evenly spread, first and last among them."""
_STILLS = f"Of a film, {FEW} frames evenly spread."


def _open_csd(frames: int | None) -> Callable[[Sequence[Path], str], Look]:
    def open_it(folders: Sequence[Path], device: str) -> Look:
        from loraport.compute import find_device
        from loraport.evaluation.networks.csd import load_csd

        network = load_csd(folders[0] / CSD.files[0].path, find_device(device))
        return lambda clip, reference, prompt: {"style": network.styles(clip.frames[:frames])}

    return open_it


def _open_videoalign(folders: Sequence[Path], device: str) -> Look:
    from loraport.compute import find_device
    from loraport.evaluation.networks.videoalign import load_videoalign

    settings, weights = (folders[0] / file.path for file in VIDEO_REWARD.files)
    network = load_videoalign(weights, settings, folders[1] / QWEN_WORDS.files[0].path, find_device(device))

    def look(clip: Clip, reference: Clip | None, prompt: str | None) -> Readings:
        scores = network.scores(clip.frames, clip.fps, prompt)
        return {"raw": scores, "normalized": network.normalized(scores)}

    return look


def _open_musiq(folders: Sequence[Path], device: str) -> Look:
    from loraport.compute import find_device
    from loraport.evaluation.networks.musiq import load_musiq

    network = load_musiq(folders[0] / MUSIQ.files[0].path, find_device(device))
    return lambda clip, reference, prompt: {"quality": network.qualities(clip.frames)}


def _open_hpsv2(folders: Sequence[Path], device: str) -> Look:
    from loraport.compute import find_device
    from loraport.evaluation.networks.hpsv2 import load_hpsv2, preferences
    from loraport.evaluation.networks.texts import clip_tokens, read_vocabulary

    network = load_hpsv2(folders[0] / HPSV2.files[0].path, find_device(device))
    words = read_vocabulary(folders[1] / CLIP_WORDS.files[0].path)
    return lambda clip, reference, prompt: {
        "preference": preferences(network, clip_tokens(words, prompt or ""), _few(clip))
    }


def _open_clip_pictures(folders: Sequence[Path], device: str) -> Look:
    from loraport.compute import find_device
    from loraport.evaluation.networks.clip import load_clip, picture_vectors

    network = load_clip(folders[0], find_device(device))
    return lambda clip, reference, prompt: {"picture": picture_vectors(network, _few(clip))}


def _open_clip_texts(folders: Sequence[Path], device: str) -> Look:
    from loraport.compute import find_device
    from loraport.evaluation.networks.clip import load_clip, picture_vectors, text_vector
    from loraport.evaluation.networks.texts import read_vocabulary

    network = load_clip(folders[0], find_device(device))
    words = read_vocabulary(folders[0] / "tokenizer.json")
    return lambda clip, reference, prompt: {
        "cosine": picture_vectors(network, _few(clip)) @ text_vector(network, words, prompt or "")
    }


def _open_dinov2(folders: Sequence[Path], device: str) -> Look:
    from loraport.compute import find_device
    from loraport.evaluation.networks.dinov2 import dinov2_vectors, load_dinov2

    network = load_dinov2(folders[0], find_device(device))
    return lambda clip, reference, prompt: {"picture": dinov2_vectors(network, _few(clip))}


def _open_lpips(folders: Sequence[Path], device: str) -> Look:
    import torch

    from loraport.compute import find_device
    from loraport.evaluation.metrics.fidelity import moments
    from loraport.evaluation.networks.lpips import LEAST_SIDE, load_lpips

    alexnet, heads = folders[0] / ALEXNET.files[0].path, folders[1] / LPIPS_HEADS.files[0].path
    network = load_lpips(alexnet, heads, find_device(device))

    def look(clip: Clip, reference: Clip | None, prompt: str | None) -> Readings:
        if reference is None:
            raise InputError("LPIPS compares a clip with another, and there is none")
        if clip.frames.shape[1:] != reference.frames.shape[1:] or min(clip.width, clip.height) < LEAST_SIDE:
            return {"distance": torch.full((1,), float("nan"))}
        own, other = map(list, zip(*moments(clip, reference), strict=True))
        return {"distance": network.distances(clip.frames[own], reference.frames[other])}

    return look


def _few(clip: Clip) -> Frames:
    from loraport.evaluation.networks.pictures import evenly

    return clip.frames[evenly(len(clip.frames), FEW)]


def _mean(name: str, times: float = 1.0) -> Callable[[Readings, Readings | None], float]:
    return lambda readings, _: times * float(readings[name].double().mean())


def _score_at(name: str, *places: int) -> Callable[[Readings, Readings | None], float]:
    return lambda readings, _: sum(float(readings[name][place]) for place in places) / len(places)


def _style_discrepancy(clips: Sequence[Readings], references: Sequence[Readings]) -> float:
    import torch

    from loraport.evaluation.networks.discrepancy import discrepancy

    return discrepancy(*(torch.cat([one["style"] for one in side]) for side in (clips, references)))


CSD = Weights(
    "tomg-group-umd/CSD-ViT-L",
    (WeightFile("pytorch_model.bin", 2_440_000_000),),
    licence="CC-BY-4.0 (its program: MIT)",
    note="its authors say that these weights do not give the numbers of their paper: compare within one run only",
)
VIDEO_REWARD = Weights(
    "KlingTeam/VideoReward",
    (WeightFile("model_config.json", 3_000), WeightFile("checkpoint-11352/model.pth", 5_031_072_529)),
    licence="Apache-2.0 (its program, with the question it asks: MIT)",
    revision="b8e421fe21aec3dde5f61fdd1dc44e1d603b9727",
)
QWEN_WORDS = Weights(
    "Qwen/Qwen2-VL-2B-Instruct",
    (WeightFile("tokenizer.json", 7_030_000),),
    licence="Apache-2.0",
    revision="895c3a49bc3fa70a340399125c650a463535e71c",
)
MUSIQ = Weights(
    "chaofengc/IQA-PyTorch-Weights",
    (WeightFile("musiq_spaq_ckpt-358bb6af.pth", 108_500_000),),
    licence="CC-BY-NC-SA-4.0, non-commercial, as this repository gives them; the numbers are Google's, Apache-2.0",
)
HPSV2 = Weights("xswu/HPSv2", (WeightFile("HPS_v2.1_compressed.pt", 1_970_000_000),), licence="Apache-2.0")
CLIP_WORDS = Weights("openai/clip-vit-base-patch32", (WeightFile("tokenizer.json", 2_220_000),), licence="MIT")
CLIP = Weights(
    "openai/clip-vit-base-patch32",
    (WeightFile("config.json", 4_190), WeightFile("pytorch_model.bin", 605_000_000), *CLIP_WORDS.files),
    licence="MIT",
)
DINOV2 = Weights(
    "facebook/dinov2-base", (WeightFile("config.json", 548), WeightFile("model.safetensors", 346_000_000)), "Apache-2.0"
)
ALEXNET = Weights(
    "pytorch/vision",
    (WeightFile("alexnet-owt-7be5be79.pth", 244_408_911),),
    licence="BSD-3-Clause",
    address="https://download.pytorch.org/models/",
)
LPIPS_HEADS = Weights(
    "richzhang/PerceptualSimilarity",
    (WeightFile("lpips/weights/v0.1/alex.pth", 6_009),),
    licence="BSD-2-Clause",
    address="https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/",
)

_FIRST_STYLE = Instrument("csd-first", 1, _open_csd(1), (CSD,), ("PIL",))
_ALL_STYLES = Instrument("csd-all", 1, _open_csd(None), (CSD,), ("PIL",))
_ALIGN = (VIDEO_REWARD, QWEN_WORDS)
_LOOKS_AND_MOTION = Instrument("videoalign", 1, _open_videoalign, _ALIGN, ("transformers",))
"""Asked for the first two scores only, which no prompt can change: the network reads it after them."""
_WITH_PROMPT = Instrument("videoalign-prompt", 1, _open_videoalign, _ALIGN, ("transformers",), reads_prompt=True)
_REFERENCE: frozenset[Need] = frozenset({"reference"})
_PROMPT: frozenset[Need] = frozenset({"prompt"})


def _videoalign_metrics(kind: str, ending: str, scale: str, papers: tuple[str, ...]) -> tuple[Metric, ...]:
    def metric(name: str, title: str, words: str, instrument: Instrument, *places: int) -> Metric:
        return Metric(
            f"videoalign{name}{ending}",
            title if kind == "raw" else f"{title}, normalised",
            f"{words} {scale}",
            instrument,
            _score_at(kind, *places),
            needs=_PROMPT if instrument.reads_prompt else frozenset(),
            papers=papers if name == "" else (),
            least_frames=2,
        )

    return (
        metric("", "VideoAlign", "Quality: the mean of how a clip looks and how it moves.", _LOOKS_AND_MOTION, 0, 1),
        metric("-vq", "VideoAlign VQ", "How a clip looks, as people would mark it.", _LOOKS_AND_MOTION, 0),
        metric("-mq", "VideoAlign MQ", "How a clip moves, as people would mark it.", _LOOKS_AND_MOTION, 1),
        metric("-ta", "VideoAlign TA", "How well a clip shows its prompt.", _WITH_PROMPT, 2),
    )


NETWORK_METRICS: tuple[Metric, ...] = (
    *_videoalign_metrics("raw", "", "The network's own scale, of two frames a second.", ("CASA",)),
    *_videoalign_metrics(
        "normalized", "-z", "Less the mean of its training and over the spread; mostly below zero.", ()
    ),
    Metric(
        "csd",
        "CSD",
        "How alike the style of the first frame is to the reference's: 100 for the same. It also rewards undoing the "
        "distillation, so the controls stand beside it.",
        _FIRST_STYLE,
        mean_cosine("style"),
        unit="%",
        needs=_REFERENCE,
        papers=("CASA",),
        style=True,
        vector="style",
    ),
    Metric(
        "csd-frames",
        "CSD, all frames",
        "How alike the style is to the reference's, the mean of all frames: 100 for the same.",
        _ALL_STYLES,
        mean_cosine("style"),
        unit="%",
        needs=_REFERENCE,
        style=True,
        vector="style",
    ),
    Metric(
        "csd-mmd",
        "CSD-MMD",
        "How far the styles of all first frames together are from the reference's: 0 for the same. CMMD's kernel of "
        "width 10, times 1000; ProLoRA does not say which scale its tables have.",
        _FIRST_STYLE,
        whole=_style_discrepancy,
        better="lower",
        digits=3,
        needs=_REFERENCE,
        papers=("ProLoRA",),
        style=True,
    ),
    Metric(
        "imaging-quality",
        "Imaging quality",
        "VBench's: noise, blur, exposure of every frame from 0 to 100, by MUSIQ.",
        Instrument("musiq", 1, _open_musiq, (MUSIQ,)),
        _mean("quality"),
        papers=("CASA",),
    ),
    Metric(
        "hpsv2",
        "HPSv2.1",
        f"Which picture of a prompt people prefer: about 0.2 to 0.35. {_STILLS}",
        Instrument("hpsv2", 1, _open_hpsv2, (HPSV2, CLIP_WORDS), ("tokenizers",), reads_prompt=True),
        _mean("preference"),
        digits=4,
        needs=_PROMPT,
        papers=("ProLoRA",),
    ),
    Metric(
        "lpips",
        "LPIPS",
        "How different frames look from the reference's of the same moment, by AlexNet: 0 for the same. ProLoRA's "
        "LPIPS is another number: how varied samples of one prompt are.",
        Instrument("lpips", 1, _open_lpips, (ALEXNET, LPIPS_HEADS), beside=True),
        _mean("distance"),
        better="lower",
        digits=3,
        needs=_REFERENCE,
    ),
    Metric(
        "dinov2",
        "DINOv2",
        f"How alike what is in the picture is to the reference's: 100 for the same. {_STILLS}",
        Instrument("dinov2", 1, _open_dinov2, (DINOV2,), ("transformers", "PIL")),
        mean_cosine("picture"),
        unit="%",
        needs=_REFERENCE,
        papers=("ProLoRA",),
    ),
    Metric(
        "clip-i",
        "CLIP-I",
        f"How alike pictures are to the reference's, as a network sees it that learnt from captions. {_STILLS}",
        Instrument("clip-pictures", 1, _open_clip_pictures, (CLIP,), ("transformers", "PIL")),
        mean_cosine("picture"),
        unit="%",
        needs=_REFERENCE,
        papers=("ProLoRA",),
    ),
    Metric(
        "clip-t",
        "CLIP-T",
        f"How near pictures are to their prompt: about 25 to 35. {_STILLS}",
        Instrument("clip-texts", 1, _open_clip_texts, (CLIP,), ("transformers", "PIL"), reads_prompt=True),
        _mean("cosine", 100.0),
        unit="%",
        needs=_PROMPT,
        papers=("ProLoRA",),
    ),
)
"""Those of the papers first."""
