"""A whole evaluation: what is kept, what is said of clips that cannot be used, and what is written."""

import csv
import json
from dataclasses import replace

import av
import numpy as np
import pytest
import torch

from loraport.clips.write import write_for_viewing
from loraport.errors import InputError, MissingError
from loraport.evaluation import catalogue, collection
from loraport.evaluation.catalogue import METRICS, choose_metrics
from loraport.evaluation.metrics.metric import Instrument, Metric, WeightFile, Weights, reading
from loraport.evaluation.run import EvaluationRequest, evaluate
from tests.evaluation.clips import NOISES, clip, write_columns, write_folder, write_manifest

PIXELS = ["psnr", "ssim", "sharpness", "cuts", "sharpness-kept"]


def run(tmp_path, *folders, metrics=PIXELS, **more):
    output = tmp_path / "out"
    output.mkdir(exist_ok=True)
    cache = more.pop("cache", str(tmp_path / "cache"))
    request = EvaluationRequest(tuple(map(str, folders)), output, choose_metrics(metrics), cache=cache, **more)
    return evaluate(request)


def test_a_comparison_is_measured_and_written(tmp_path):
    result = run(tmp_path, write_manifest(tmp_path / "grid", NOISES))
    (grid,) = result.grids
    assert [metric.name for metric in grid.metrics] == PIXELS
    psnr = {name: grid.mean("psnr", name).interval.value for name in NOISES if name != "source+lora"}
    assert psnr["casa"] > psnr["direct"] > psnr["source"] > psnr["target"]
    assert grid.mean("psnr", "source+lora") is None and grid.mean("sharpness", "source+lora") is not None
    assert grid.difference("psnr", "casa").verdict == "better" and grid.difference("psnr", "target").verdict == "worse"
    assert grid.difference("psnr", "casa").interval.value == pytest.approx(psnr["casa"] - psnr["direct"])
    assert grid.difference("sharpness", "casa").verdict == ""  # sharper is not better
    assert grid.difference("sharpness-kept", "casa").verdict == "better"  # noise is too much of it
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 5 * 6 and rows[0]["column"] == "source+lora" and rows[0]["psnr"] is None
    assert rows[-1]["psnr"] == grid.scores.by_clip["psnr"]["casa"][("02", "1")] and rows[-1]["frames"] == 3
    table = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    assert [row["psnr"] for row in table] == ["" if row["psnr"] is None else str(row["psnr"]) for row in rows]
    summary = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert summary["grids"][0]["baseline"] == "direct" and summary["left_out"] == []


def test_a_second_run_decodes_nothing_and_gives_the_same(tmp_path, monkeypatch):
    root = write_manifest(tmp_path / "grid", NOISES)
    first = run(tmp_path, root)
    assert first.decoded == 5 * 6 * 2 + 4 * 6 and first.recalled == 0  # facts and pixels, and pairs of clips

    def refuse(path):
        raise AssertionError(f"{path} was decoded")

    monkeypatch.setattr(collection, "read_clip_or_frames", refuse)
    again = run(tmp_path, root)
    assert (again.decoded, again.recalled) == (0, first.decoded)
    for one, other in zip(first.grids[0].differences, again.grids[0].differences, strict=True):
        assert one == other
    # readings follow the content, not the place; and another version of an instrument is another reading
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    assert run(tmp_path, moved).decoded == 0
    changed = replace(METRICS["sharpness"], instrument=replace(METRICS["sharpness"].instrument, version=999))
    monkeypatch.setitem(METRICS, "sharpness", changed)
    with pytest.raises(AssertionError, match="was decoded"):
        run(tmp_path, moved, metrics=["sharpness"])


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    root, look = write_manifest(tmp_path / "grid", NOISES), collection.read_clip_or_frames
    count = 0

    def stop(path):
        nonlocal count
        count += 1
        if count > 7:
            raise KeyboardInterrupt
        return look(path)

    monkeypatch.setattr(collection, "read_clip_or_frames", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, root)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
    monkeypatch.setattr(collection, "read_clip_or_frames", look)
    resumed = run(tmp_path, root)
    assert resumed.recalled >= 7 and resumed.decoded + resumed.recalled == 5 * 6 * 2 + 4 * 6
    whole = run(tmp_path, root, cache=None)
    assert [one.as_json() for one in whole.grids[0].means] == [one.as_json() for one in resumed.grids[0].means]


def test_damaged_and_changed_clips_are_left_out_and_the_rest_goes_on(tmp_path):
    root = write_manifest(tmp_path / "grid", NOISES)
    torn, other = root / "clips/casa/00-0.mkv", root / "clips/direct/01-1.mkv"
    folders = write_columns(tmp_path / "plain", {"mine": 0.1, "theirs": 0.2})
    other.write_bytes((root / "clips/casa/01-1.mkv").read_bytes())
    torn.unlink()
    result = run(tmp_path, root)
    assert len(result.left_out) == 2 and result.left_out[0].startswith(f"{other} is not the file that was made")
    assert result.left_out[1].startswith(f"{torn} cannot be read")
    assert result.grids[0].difference("psnr", "casa").clips == 4  # of 6, without the two
    (folders["mine"] / "00-0.mkv").write_bytes((folders["mine"] / "00-0.mkv").read_bytes()[:-400])
    (folders["theirs"] / "00-1.mkv").write_text("no clip")
    plain = run(tmp_path, *folders.values(), metrics=["sharpness"])
    assert sorted(sentence.split(" ")[0] for sentence in plain.left_out) == sorted(
        [str(folders["mine"] / "00-0.mkv"), str(folders["theirs"] / "00-1.mkv")]
    )
    assert plain.grids[0].difference("sharpness", "theirs").clips == 4


def test_nothing_that_can_be_read_is_an_error(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "a.mkv").write_text("no clip")
    with pytest.raises(InputError, match=r"no clip of x can be read: .*a\.mkv is damaged"):
        run(tmp_path, folder, metrics=["sharpness"])


def test_unequal_clips_are_compared_as_far_as_they_go_and_that_is_said(tmp_path):
    reference = write_folder(tmp_path / "ref", {f"{name}-0": clip(n) for n, name in enumerate("abcd")})
    other = write_folder(
        tmp_path / "other",
        {
            "a-0": clip(0, frames=5, noise=0.1), "b-0": clip(1, fps=16.0, noise=0.1),
            "c-0": clip(2, height=26, noise=0.1), "d-0": clip(3, noise=0.1),
        },
    )  # fmt: skip
    result = run(tmp_path, other, reference=str(reference))
    assert result.left_out == ()
    notes = "\n".join(result.grids[0].notes)
    assert "other: a-0 has 5 against 3 frames: as many as both have are compared pixel by pixel" in notes
    assert "other: b-0 runs at 16 against 8 frames a second: frames are paired by time" in notes
    assert "other: c-0 has 32 × 26 against 32 × 24 pixels: not compared pixel by pixel" in notes
    assert result.grids[0].mean("psnr", "other").clips == 3 and result.grids[0].mean("sharpness", "other").clips == 4


def test_sound_and_odd_sizes_are_taken(tmp_path):
    folder = write_folder(tmp_path / "x", {"a-0": clip(1, height=23, width=31)})
    with av.open(str(folder / "b-0.mkv"), "w") as container:
        video = container.add_stream("ffv1", rate=8)
        video.width, video.height, video.pix_fmt = 32, 24, "bgr0"
        sound = container.add_stream("aac", rate=48000)
        for number, frame in enumerate(clip(2).frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = number
            container.mux(video.encode(picture))
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 18000), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 48000
        container.mux([*video.encode(), *sound.encode(tone), *sound.encode()])
    write_for_viewing(folder / "c-0.mp4", clip(3))
    result = run(tmp_path, folder, metrics=["sharpness"])
    assert result.grids[0].mean("sharpness", "x").clips == 3 and result.left_out == ()
    note = f"{folder / 'b-0.mkv'} has a sound track, which is not looked at"
    assert result.grids[0].notes == (note,)
    assert run(tmp_path, folder, metrics=["sharpness"]).grids[0].notes == (note,)  # also from the cache


def test_a_still_picture_has_no_motion(tmp_path):
    folder = write_folder(tmp_path / "x", {"a-0": clip(1, frames=1), "b-0": clip(2, frames=1)}, ".png")
    grid = run(tmp_path, folder, metrics=["sharpness", "motion", "flicker", "cuts"]).grids[0]
    assert [metric.name for metric in grid.metrics] == ["sharpness"]


def failing(error):
    def look(one, reference, prompt):
        raise error

    return Instrument("weak", 1, lambda folders, device: look)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "weak is not measured: it does not fit into the device's memory",
        ),
        (InputError("too small for it"), "cannot be looked at by weak: too small for it"),
    ],
)
def test_an_instrument_that_fails_leaves_the_others(tmp_path, monkeypatch, error, said):
    monkeypatch.setitem(METRICS, "weak", Metric("weak", "Weak", "W.", failing(error), reading("x")))
    folder = write_folder(tmp_path / "x", {"a-0": clip(1), "b-0": clip(2)})
    result = run(tmp_path, folder, metrics=["sharpness", "weak"])
    assert [metric.name for metric in result.grids[0].metrics] == ["sharpness"]
    assert any(said in sentence for sentence in result.left_out)


HEAVY = Weights("org/heavy", (WeightFile("sub/net.bin", 5),), "MIT")


def heavy(opened):
    def open_it(folders, device):
        opened.append((folders[0] / "sub/net.bin").read_text())
        return lambda one, reference, prompt: {"words": torch.tensor(float(len(prompt or "")))}

    instrument = Instrument("heavy", 1, open_it, weights=(HEAVY,), reads_prompt=True)
    return Metric("heavy", "Heavy", "H.", instrument, reading("words"), needs=frozenset({"prompt"}))


def test_missing_weights_are_named_with_the_command_and_the_others_run(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setitem(METRICS, "heavy", heavy(opened))
    root = write_manifest(tmp_path / "grid", NOISES)
    asked = run(tmp_path, root, metrics=["sharpness", "heavy"])
    (missing,) = asked.missing
    assert (
        str(missing)
        == "heavy not measured: the weights of org/heavy are missing; get it with: hf download org/heavy sub/net.bin"
    )
    assert [metric.name for metric in asked.grids[0].metrics] == ["sharpness"] and asked.left_out == ()
    few = {name: METRICS[name] for name in ("sharpness", "heavy")}  # the others would take seconds
    monkeypatch.setattr(catalogue, "METRICS", few)
    unasked = run(tmp_path, root, metrics=[])
    assert unasked.missing == () and unasked.skipped == (
        "not measured, since their weights are not here: heavy; `loraport evaluate --list` says how each is had",
    )
    with pytest.raises(MissingError, match="hf download org/heavy"):
        run(tmp_path, root, metrics=["heavy"])
    place = tmp_path / "weights" / "org/heavy/sub/net.bin"
    place.parent.mkdir(parents=True)
    place.write_text("net")
    found = run(tmp_path, root, metrics=["heavy"], weights=tmp_path / "weights")
    assert opened == ["net"] and found.grids[0].mean("heavy", "casa").interval.value == len("scene 1")
    run(tmp_path, root, metrics=["heavy"], weights=tmp_path / "weights")
    assert opened == ["net"]  # not opened where there is nothing to look at
    place.write_text("new")  # other weights under the same name
    run(tmp_path, root, metrics=["heavy"], weights=tmp_path / "weights")
    assert opened == ["net", "new"]
    with pytest.raises(InputError, match="is no folder"):
        run(tmp_path, root, metrics=["heavy"], weights=tmp_path / "nowhere")


def test_weights_in_the_hubs_cache_are_found_and_nothing_is_fetched_unasked(tmp_path, monkeypatch):
    import huggingface_hub

    opened = []
    monkeypatch.setitem(METRICS, "heavy", heavy(opened))
    cache = tmp_path / "hub"
    snapshot = cache / "models--org--heavy" / "snapshots" / ("a" * 40)
    (snapshot / "sub").mkdir(parents=True)
    (snapshot / "sub" / "net.bin").write_text("cached")
    (cache / "models--org--heavy" / "refs").mkdir()
    (cache / "models--org--heavy" / "refs" / "main").write_text("a" * 40)
    root = write_manifest(tmp_path / "grid", NOISES)
    with pytest.raises(MissingError):
        run(tmp_path, root, metrics=["heavy"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    run(tmp_path, root, metrics=["heavy"])
    assert opened == ["cached"]


def test_what_is_needed_and_not_there_is_said(tmp_path):
    folder = write_folder(tmp_path / "x", {"a-0": clip(1), "b-0": clip(2)})
    result = run(tmp_path, folder, metrics=["sharpness", "psnr"])
    assert result.skipped == ("without a reference not measured: psnr; give --reference FOLDER",)
    with pytest.raises(InputError, match="without a reference not measured: psnr"):
        run(tmp_path, folder, metrics=["psnr"])
    with pytest.raises(InputError, match=r"unknown metric 'sharp'; known: free, casa, prolora, all, style"):
        run(tmp_path, folder, metrics=["sharp"])


def test_a_clip_without_a_prompt_is_not_scored_on_an_empty_one(tmp_path, monkeypatch):
    place = tmp_path / "weights" / "org/heavy/sub/net.bin"
    place.parent.mkdir(parents=True)
    place.write_text("net")
    monkeypatch.setitem(METRICS, "heavy", heavy([]))
    folder = write_folder(tmp_path / "x", {"a-0": clip(1), "b-0": clip(2)})
    grid = run(tmp_path, folder, metrics=["heavy"], weights=tmp_path / "weights", prompts={"a": "four"}).grids[0]
    assert grid.mean("heavy", "x").clips == 1 and grid.mean("heavy", "x").interval.value == 4
    assert grid.notes == ("the prompt of b is not known: not looked at by heavy",)
