"""What is taken from folders: columns, pairs, prompts; and what is said of the rest."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from loraport.errors import FileFormatError, InputError
from loraport.evaluation.catalogue import choose_metrics
from loraport.evaluation.compare_folder import read_compare_folder
from loraport.evaluation.grid import Key, choose_baseline
from loraport.evaluation.plain_folders import frame_files, read_clip_or_frames, read_plain_folders, read_prompts
from loraport.evaluation.run import EvaluationRequest, read_grids
from tests.evaluation.clips import NOISES, clip, write_columns, write_folder, write_manifest


def grids(*folders, **more):
    return read_grids(EvaluationRequest(tuple(map(str, folders)), folders[0] / "out", choose_metrics([]), **more))


def test_a_comparison_is_read_whole(tmp_path):
    (grid,) = grids(write_manifest(tmp_path / "grid", NOISES))
    assert [column.name for column in grid.columns] == list(NOISES)
    assert grid.name == "style.safetensors, base to fast"
    assert (grid.reference, choose_baseline(grid, None)) == ("source+lora", "direct")
    assert grid.prompts["01"] == "scene 1" and Key("01", "1") in grid.columns[0].clips and grid.left_out == ()
    assert choose_baseline(grid, "casa") == "casa"
    with pytest.raises(InputError, match="no column 'x' to compare with; its columns: source, target, direct, casa"):
        choose_baseline(grid, "x")


def changed(root, change):
    place = root / "manifest.json"
    manifest = json.loads(place.read_text())
    change(manifest)
    place.write_text(json.dumps(manifest))
    return root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "is not a manifest of format 1"),
        (lambda m: m.pop("prompts"), "lacks something that a manifest"),
        (lambda m: m.update(clips=[3]), "lacks something that a manifest"),
        (lambda m: m["clips"][0].update(column="other"), "lacks something that a manifest"),
        (lambda m: m["clips"][0].update(measure="../../etc/passwd"), "outside of its folder"),
        (lambda m: m["clips"][0].update(measure="/etc/passwd"), "outside of its folder"),
        (lambda m: m["clips"][0].update(measure="c:\\clips\\1.mkv"), "outside of its folder"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, change, message):
    root = changed(write_manifest(tmp_path / "grid", {"direct": 0.1, "casa": 0.1}, prompts=1, seeds=1), change)
    with pytest.raises(FileFormatError, match=message):
        read_compare_folder(root)


def test_a_manifest_that_is_no_json_is_refused(tmp_path):
    root = write_manifest(tmp_path / "grid", {"direct": 0.1}, prompts=1, seeds=1)
    (root / "manifest.json").write_text('{"format": 1, ')
    with pytest.raises(FileFormatError, match="it is not JSON"):
        read_compare_folder(root)


def test_an_unfinished_comparison_goes_as_far_as_it_has_clips(tmp_path):
    root = write_manifest(tmp_path / "grid", NOISES)
    changed(root, lambda m: m.update(clips=[c for c in m["clips"] if c["column"] != "target" and c["prompt"] != "02"]))
    (grid,) = grids(root)
    assert [column.name for column in grid.columns] == [name for name in NOISES if name != "target"]
    assert grid.left_out == (f"{root}: column 'target' has no clips yet; `loraport compare` makes them",)


def test_plain_folders_are_columns_and_pairs_are_found_by_name(tmp_path):
    folders = write_columns(tmp_path, {"mine": 0.1, "theirs": 0.2})
    (grid,) = grids(*folders.values())
    assert [column.name for column in grid.columns] == ["mine", "theirs"]
    assert grid.keys[1] == Key("00", "1") and grid.reference is None and choose_baseline(grid, None) == "mine"
    (same,) = grids(tmp_path)  # the folder of the columns
    assert same.columns == grid.columns


def test_a_missing_pair_is_said_and_left_out(tmp_path):
    folders = write_columns(tmp_path, {"mine": 0.1, "theirs": 0.2})
    (folders["theirs"] / "01-0.mkv").unlink()
    (grid,) = grids(*folders.values())
    assert grid.left_out == ("theirs lacks 1 clip that others have (01-0): left out where columns are compared",)


def test_columns_without_a_common_name_are_refused(tmp_path):
    one = write_folder(tmp_path / "one", {"cat-0": clip(1)})
    other = write_folder(tmp_path / "other", {"dog-0": clip(1)})
    with pytest.raises(InputError, match=r"paired by name \(one: cat-0; other: dog-0\); name files alike"):
        grids(one, other)


def test_a_reference_is_a_folder_or_a_column(tmp_path):
    folders = write_columns(tmp_path, {"mine": 0.1, "theirs": 0.2, "real": 0.0})
    (grid,) = grids(folders["mine"], folders["theirs"], reference=str(folders["real"]))
    assert grid.reference == "real" and [column.name for column in grid.measured] == ["mine", "theirs"]
    (other,) = grids(*folders.values(), reference="theirs")
    assert [column.name for column in other.measured] == ["mine", "real"]
    with pytest.raises(InputError, match="neither a folder nor a column of mine, theirs"):
        grids(folders["mine"], folders["theirs"], reference="nowhere")


def test_a_plain_folder_beside_a_comparison_is_another_column_of_it(tmp_path):
    root = write_manifest(tmp_path / "grid", NOISES)
    more = write_columns(tmp_path / "runner", {"elsewhere": 0.07})["elsewhere"]
    (grid,) = grids(root, more)
    assert [column.name for column in grid.columns] == [*NOISES, "elsewhere"] and grid.left_out == ()
    second = tmp_path / "second"
    shutil.copytree(root, second)
    with pytest.raises(InputError, match="has no manifest: beside several comparisons"):
        grids(root, second, more)
    assert len(grids(root, second)) == 2


def test_images_frames_and_twice_named_files(tmp_path):
    folder = write_folder(tmp_path / "pictures", {"a-0": clip(1, frames=1), "b-0": clip(2, frames=1)}, ".png")
    Image.fromarray(clip(1, frames=1).frames[0]).save(folder / "a-0.jpg")
    frames = folder / "c-0"
    frames.mkdir()
    for number, frame in enumerate(clip(3, frames=11).frames):
        Image.fromarray(frame).save(frames / f"frame{number}.png")
    grid = read_plain_folders([folder])
    assert grid.columns[0].clips[Key("a", "0")].suffix == ".png" and len(grid.columns[0].clips) == 3
    assert grid.notes == (f"{folder}: 1 file has another's name with another ending; the lossless ones are measured",)
    read = read_clip_or_frames(frames)
    assert np.array_equal(read.frames, clip(3, frames=11).frames)  # 10 comes after 9, not after 1
    assert read.notes == (f"{frames} is a folder of frames, which says no speed: taken as 8 frames a second",)
    assert len(frame_files(frames)) == 11
    Image.fromarray(clip(3, height=10).frames[0]).save(frames / "frame11.png")
    with pytest.raises(FileFormatError, match="its frame 11 is 32 × 10 pixels, others are 32 × 24"):
        read_clip_or_frames(frames)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nothing", "does not exist; give a folder of clips"),
        (lambda root: write_folder(root / "empty", {}), "holds no clips: none of .mkv"),
        (lambda root: [(root / "file").write_text("x"), root / "file"][1], "is a file; give the folder"),
    ],
)
def test_what_is_no_folder_of_clips_is_refused(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        grids(make(tmp_path))


def test_one_folder_twice_is_refused_and_equal_names_are_told_apart(tmp_path):
    one = write_columns(tmp_path / "a", {"clips": 0.1})["clips"]
    other = write_columns(tmp_path / "b", {"clips": 0.1})["clips"]
    assert [column.name for column in grids(one, other)[0].columns] == ["a/clips", "b/clips"]
    with pytest.raises(InputError, match="given twice"):
        grids(one, one)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", '{"00": "a cat", "01": "a dog"}'),
        ("p.jsonl", '{"id": "00", "text": "a cat"}\n{"id": "01", "text": "a dog"}\n'),
        ("p.txt", "00\ta cat\n\n01\ta dog\n"),
    ],
)
def test_prompts_are_read_in_three_forms(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_prompts(str(tmp_path / name)) == {"00": "a cat", "01": "a dog"}


@pytest.mark.parametrize(
    ("name", "text"),
    [("p.json", "[1]"), ("p.json", "{"), ("p.jsonl", '{"id": 1}'), ("p.txt", "a cat runs"), ("p.txt", b"\xff\xfe\xff")],
)
def test_prompts_that_say_not_whose_they_are_are_refused(tmp_path, name, text):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FileFormatError):
        read_prompts(str(tmp_path / name))


def test_a_name_with_spaces_is_its_prompt_as_vbench_names_clips(tmp_path):
    grid = read_plain_folders([write_folder(tmp_path / "x", {"a cat runs-0": clip(1), "a cat runs-1": clip(2)})])
    assert grid.prompts == {"a cat runs": "a cat runs"} and grid.keys[0] == Key("a cat runs", "0")
