"""The table of metrics with weights: readable without any of its libraries, and each instrument opens and looks."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluation.clips import write_manifest
from tests.evaluation.networks.planted_weights import film, planted, shapes_of
from tests.evaluation.networks.test_against_originals import saved, small_csd, small_musiq
from tests.evaluation.networks.test_pictures_and_sets import saved as saved_folder
from tests.evaluation.networks.test_pictures_and_sets import small_clip
from tests.evaluation.networks.test_videoalign import SETTINGS, small_configuration, small_weights
from tests.evaluation.networks.tiny_words import write_words

from loraport.clips.clip import Clip
from loraport.evaluation.catalogue import choose_metrics
from loraport.evaluation.metrics.metric import Metric, Weights
from loraport.evaluation.networks import csd, hpsv2, musiq, table, videoalign
from loraport.evaluation.networks.clip_towers import PictureSize, TextClip, TowerSize
from loraport.evaluation.networks.table import NETWORK_METRICS
from loraport.evaluation.results import EvaluationResult
from loraport.evaluation.run import EvaluationRequest, evaluate

BY_NAME = {metric.name: metric for metric in NETWORK_METRICS}


def test_the_table_needs_no_library() -> None:
    heavy = "{'torch', 'transformers', 'tokenizers', 'PIL', 'numpy'}"
    code = f"import sys; import loraport.evaluation.networks.table; print({heavy} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


def test_every_weight_says_its_licence_and_how_to_get_it() -> None:
    for weights in {one.repo: one for metric in NETWORK_METRICS for one in metric.instrument.weights}.values():
        assert weights.licence
        assert ("curl" if weights.address else "hf download") in weights.command
        assert all(file.path in weights.command for file in weights.files)
    assert table.ALEXNET.command.endswith(
        "-o pytorch/vision/alexnet-owt-7be5be79.pth https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
    )


def wordy_hpsv2() -> TextClip:
    """A small network that knows as many words as the small tokenizer has."""
    eye, reader = TowerSize(64, layers=2, heads=2), TowerSize(32, layers=2, heads=2)
    return TextClip(PictureSize(224, patch=32), eye, reader, joint=32, words=300, length=77)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder of weights, laid out as the table says, in which every network is a small one."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(csd, "load_csd", partial(csd.load_csd, make=small_csd))
    monkeypatch.setattr(hpsv2, "load_hpsv2", partial(hpsv2.load_hpsv2, make=wordy_hpsv2))
    monkeypatch.setattr(musiq, "load_musiq", partial(musiq.load_musiq, make=small_musiq))
    monkeypatch.setattr(videoalign, "real_configuration", small_configuration)
    for weights in (value for value in vars(table).values() if isinstance(value, Weights)):
        for file in weights.files:
            (tmp_path / weights.repo / file.path).parent.mkdir(parents=True, exist_ok=True)
    saved("csd", place(tmp_path, table.CSD), part="model_state_dict", prefix="module.")
    saved("musiq", place(tmp_path, table.MUSIQ))
    saved("lpips", place(tmp_path, table.ALEXNET))
    saved("lpips", place(tmp_path, table.LPIPS_HEADS), "heads")
    torch.save({"state_dict": planted(shapes_of(wordy_hpsv2()))}, place(tmp_path, table.HPSV2))
    torch.save(small_weights(), place(tmp_path, table.VIDEO_REWARD, 1))
    place(tmp_path, table.VIDEO_REWARD).write_text(json.dumps(SETTINGS), encoding="utf-8")
    write_words(place(tmp_path, table.QWEN_WORDS))
    saved_folder(small_clip(), tmp_path / table.CLIP.repo, safe=False)
    write_words(place(tmp_path, table.CLIP_WORDS))
    size = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    saved_folder(transformers.Dinov2Model(transformers.Dinov2Config(**size)), tmp_path / table.DINOV2.repo)
    return tmp_path


def place(folder: Path, weights: Weights, number: int = 0) -> Path:
    return folder / weights.repo / weights.files[number].path


def measured(metric: Metric, folder: Path, clip: Clip, reference: Clip, prompt: str = "a cat<|im_end|>") -> float:
    """Return the number of a clip as a run makes it: what is not asked for is not given."""
    instrument = metric.instrument
    look = instrument.open([folder / weights.repo for weights in instrument.weights], "cpu")
    asked = prompt if instrument.reads_prompt else None
    readings = look(clip, reference if instrument.beside else None, asked)
    assert all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in readings.values())
    of_reference = None if instrument.beside or "reference" not in metric.needs else look(reference, None, asked)
    if metric.whole is not None:
        assert of_reference is not None
        return metric.whole([readings], [of_reference])
    assert metric.score is not None
    return metric.score(readings, of_reference)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_metric_opens_and_looks(name: str, weights: Path) -> None:
    metric = BY_NAME[name]
    clip, other = Clip(film(4, 96, 128)), Clip(255 - film(4, 96, 128))
    value = measured(metric, weights, clip, other)
    assert math.isfinite(value)
    same = measured(metric, weights, clip, clip)
    assert math.isfinite(same)
    if "reference" in metric.needs:
        assert same == pytest.approx({"higher": 100, "lower": 0}[str(metric.better)], abs=1e-4)
        assert metric.gain(same, value) > 0
    elif not metric.instrument.reads_prompt:
        assert value == same
    else:
        assert measured(metric, weights, clip, other, "a dog on the moon<|im_end|>") != value


@pytest.mark.slow
def test_of_videoalign_quality_is_the_mean_of_looks_and_motion(weights: Path) -> None:
    clip = Clip(film(4, 96, 128))
    for ending in ("", "-z"):
        quality, looks, motion = (
            measured(BY_NAME[f"videoalign{part}{ending}"], weights, clip, clip) for part in ("", "-vq", "-mq")
        )
        assert quality == pytest.approx((looks + motion) / 2)
    raw, normalized = (measured(BY_NAME[f"videoalign-ta{ending}"], weights, clip, clip) for ending in ("", "-z"))
    assert normalized == pytest.approx((raw - 2.8105) / 2.5121, abs=1e-5)


def test_csd_of_the_first_frame_sees_no_other(weights: Path) -> None:
    frames = film(4, 96, 128)
    clip, same_start = Clip(frames), Clip(np.concatenate([frames[:1], 255 - frames[1:]]))
    assert measured(BY_NAME["csd"], weights, clip, same_start) == pytest.approx(100, abs=1e-4)
    assert measured(BY_NAME["csd-frames"], weights, clip, same_start) < 99.9


@pytest.mark.slow
def test_a_run_measures_them_all(weights: Path, tmp_path: Path) -> None:
    grid = write_manifest(tmp_path / "grid", {"source+lora": 0.0, "direct": 0.1}, prompts=2, seeds=1)
    output = tmp_path / "out"
    output.mkdir()
    names = [name for name in BY_NAME if name != "lpips"]  # these clips are smaller than it can look at

    def run() -> EvaluationResult:
        cache = str(tmp_path / "cache")
        return evaluate(
            EvaluationRequest((str(grid),), output, choose_metrics(names), cache=cache, weights=weights, device="cpu")
        )

    first = run()
    assert not first.missing and not first.skipped and not first.grids[0].left_out
    assert [metric.name for metric in first.grids[0].metrics] == names
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    alone = [name for name in names if "reference" not in BY_NAME[name].needs]
    assert all(math.isfinite(row[name]) for row in rows for name in alone)
    assert all(0 < row["csd"] < 100 for row in rows if row["column"] == "direct")
    again = run()
    assert (again.decoded, again.recalled) == (0, first.decoded)


def test_lpips_of_clips_that_cannot_be_compared_is_no_number(weights: Path) -> None:
    clip = Clip(film(2, 96, 128))
    assert math.isnan(measured(BY_NAME["lpips"], weights, clip, Clip(film(2, 96, 96))))
    assert math.isnan(measured(BY_NAME["lpips"], weights, Clip(film(2, 30, 96)), Clip(film(2, 30, 96))))
    assert measured(BY_NAME["lpips"], weights, clip, Clip(film(5, 96, 128))) == 0
    slow, fast = Clip(film(8, 96, 128)[::2], fps=4), Clip(film(8, 96, 128), fps=8)
    assert measured(BY_NAME["lpips"], weights, slow, fast) == 0
