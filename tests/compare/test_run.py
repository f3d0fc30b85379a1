"""A comparison as a whole: on the embedded family, and on tiny Wan pipelines; stopped, continued, refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

pytest.importorskip("av")
pytest.importorskip("transformers")

from loraport.cli import app
from loraport.compare.grid.columns import plan_columns
from loraport.compare.grid.requests import Comparison, noise_seed
from loraport.compare.pipelines.pipeline_model import PipelineModel
from loraport.compare.run import compare
from loraport.compare.trigger import find_trigger, with_trigger
from loraport.errors import InputError, LoraportError, OutputError, SettingsError
from loraport.progress import NoProgress
from loraport.sampling.providers import known_place
from tests.compare.pipelines import write_pairs
from tests.compare.test_columns import FAMILIES, VIDEO, clips_of, write_lora

pytestmark = pytest.mark.slow

PAIR = ("--source", "toy:base", "--target", "toy:one-step")


def toy(folder, *others, **changes):
    asked = Comparison(known_place("toy:noir"), known_place("toy:base"), known_place("toy:one-step"), folder, others)
    return replace(asked, **{"first": 1, **changes})


def content(folder):
    """{name: bytes} of a whole grid, its manifest included; the page names nothing of the run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run on the embedded family."""
    folder = tmp_path_factory.mktemp("toy") / "grid"
    result = compare(toy(folder, "direct:1.15", seeds=2))
    assert (result.made, result.kept, result.lost) == (10, 0, ()) and result.columns[-1].name == "direct:1.15"
    return folder


def test_the_manifest_says_what_every_clip_is(whole):
    facts = json.loads((whole / "manifest.json").read_text())
    assert facts["format"] == 1 and facts["seeds"] == [0, 1] and [one["id"] for one in facts["prompts"]] == ["01"]
    assert [(one["name"], one["model"], one["lora"], one["method"]) for one in facts["columns"]] == [
        ("source", "source", None, None), ("source+lora", "source", "given", None), ("target", "target", None, None),
        ("direct", "target", "made", "direct"), ("direct:1.15", "target", "made", "direct:1.15"),
    ]  # fmt: skip
    assert facts["columns"][1]["file"] == facts["lora"]["sha256"] and facts["columns"][0]["file"] is None
    clips = clips_of(whole)
    assert len(clips) == 5 * 2
    for (column, prompt, seed), (row, frames) in clips.items():
        assert (
            row["measure"] == f"clips/{column.replace(':', '-')}/{prompt}-{seed}.mkv"
            and (whole / row["look"]).is_file()
        )
        assert frames.shape == (row["frames"], row["height"], row["width"], 3) == (8, 36, 36, 3)
        assert row["seconds"] == row["frames"] / row["fps"] == 1.0 and row["noise"] is None
    assert len({row["sha256"] for row, _ in clips.values()}) == len(clips)
    assert facts["lora"]["name"] == "noir" and facts["models"]["target"]["name"] == "one-step"
    assert not (whole / ".latents").exists() and not (whole / ".lock").exists()


def test_the_familys_clips_are_its_own_samplers(whole):
    """The base's as the family samples it, with the LoRA loaded by diffusers; the student's likewise."""
    from loraport.sampling.pair import Clips
    from loraport_lab.family.family import adapter_path, find_student
    from loraport_lab.family.model import attach, open_base, open_student
    from loraport_lab.family.pair import draw_words
    from loraport_lab.family.sample import as_frames, draw_noise, sample_base, sample_student

    clips, one = clips_of(whole), Clips("compare", 0, 1, 1, prompt_seed=0)
    noise = torch.cat([draw_noise(1, generator, 4) for generator in one.generators("noise")])
    words, student = draw_words(one), find_student("one-step")
    direct = whole / "loras/direct.safetensors"
    with torch.no_grad():
        wanted = {
            "source": sample_base(open_base(), words, noise),
            "source+lora": sample_base(attach(open_base(), adapter_path("noir")), words, noise),
            "target": sample_student(open_student("one-step"), student, words, noise),
            "direct": sample_student(attach(open_student("one-step"), direct), student, words, noise),
        }
    for column, latents in wanted.items():
        assert np.abs(clips[column, "01", 1][1].astype(int) - as_frames(latents)[0].numpy()).max() <= 1, column
    assert np.abs(clips["source", "01", 1][1].astype(int) - clips["source+lora", "01", 1][1]).mean() > 5
    assert not np.array_equal(clips["source", "01", 0][1], clips["source", "01", 1][1])


def test_a_run_that_was_killed_goes_on_and_writes_the_same_bytes(whole, tmp_path):
    folder = tmp_path / "grid"
    words = [
        "compare",
        "toy:noir",
        *PAIR,
        "--with",
        "direct:1.15",
        "--first",
        "1",
        "--seeds",
        "2",
        "-o",
        str(folder),
        "-q",
    ]
    command = [sys.executable, "-m", "loraport", *words]
    run = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while run.poll() is None and len(list(folder.glob("clips/*/*.mkv"))) < 5:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    made = len(json.loads((folder / "manifest.json").read_text())["clips"])
    assert 0 < made < 10
    result = compare(toy(folder, "direct:1.15", seeds=2))
    assert result.made + result.kept == 10 and result.kept >= made - 1
    assert content(folder) == content(whole)


def test_what_is_there_stays_and_what_is_damaged_is_made_again(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "grid")
    before = content(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mkv")}
    assert (compare(toy(folder, "direct:1.15", seeds=2)).made, content(folder)) == (0, before)
    (folder / "clips/direct-1.15/01-0.mkv").write_bytes(b"damaged")
    (folder / "clips/target/01-1.mp4").unlink()
    (folder / "loras/direct-1.15.safetensors").unlink()
    result = compare(toy(folder, "direct:1.15", seeds=2))
    assert (result.made, result.kept) == (2, 8) and content(folder) == before
    assert sum(path.stat().st_mtime_ns == then for path, then in times.items()) == 8


def test_a_grid_grows_by_columns_and_seeds_and_keeps_what_it_has(whole, tmp_path):
    folder = tmp_path / "grid"
    assert compare(toy(folder)).made == 4
    result = compare(toy(folder, "direct:1.15", seeds=2))
    assert (result.made, result.kept) == (6, 4) and content(folder) == content(whole)
    fewer = compare(toy(folder, without_lora=False))
    assert (fewer.made, fewer.kept) == (0, 2)
    kept = json.loads((folder / "manifest.json").read_text())
    assert {one["name"] for one in kept["columns"]} == {"source", "source+lora", "target", "direct", "direct:1.15"}
    assert len(kept["clips"]) == 10 and kept["seeds"] == [0, 1]


def test_another_comparison_is_not_mixed_in(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "grid")
    before = content(folder)
    with pytest.raises(OutputError, match="other models or another LoRA"):
        compare(toy(folder, lora=known_place("toy:retro")))
    with pytest.raises(OutputError, match="other models"):
        compare(toy(folder, target=known_place("toy:few-step")))
    assert {name: value for name, value in content(folder).items() if "loras/" not in name} == {
        name: value for name, value in before.items() if "loras/" not in name
    }
    other = compare(toy(folder, lora=known_place("toy:retro"), overwrite=True))
    assert other.made == 4 and len(json.loads((folder / "manifest.json").read_text())["clips"]) == 4
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'notes\.txt', which no comparison wrote"):
        compare(toy(tmp_path / "strange"))
    for text in ("{", '{"format": 1}', '{"format": 2, "columns": [], "clips": []}', "[]"):
        (tmp_path / "strange/manifest.json").write_text(text)
        with pytest.raises(InputError, match=r"manifest\.json is"):
            compare(toy(tmp_path / "strange"))


def run(*words):
    return CliRunner().invoke(app, ["compare", *words])


def test_the_command_says_what_it_did(tmp_path):
    words = ("toy:swing", *PAIR, "--first", "1", "-o", str(tmp_path / "grid"))
    planned = run(*words, "--dry-run", "--json")
    assert "source   base\ntarget   one-step\n" in run(*words, "--dry-run").stdout
    facts = json.loads(planned.stdout)
    assert facts["dry_run"] and facts["clips"] == {"made": 5, "kept": 0} and not (tmp_path / "grid").exists()
    done = run(*words, "--json", "--only-with-lora", "--with", "direct:1.3")
    facts = json.loads(done.stdout)
    assert done.exit_code == 0 and facts["columns"] == ["source+lora", "direct", "direct:1.3"]
    assert facts["clips"] == {"made": 3, "kept": 0} and (tmp_path / "grid/clips/direct-1.3/01-0.mkv").is_file()
    assert "3 were there" in run(*words, "--only-with-lora", "--with", "direct:1.3").stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--with", "casa,nonsense"), "unknown method or file 'nonsense'; known: casa"),
        (("--with", "core,core"), "two columns would be called 'core'"),
        (("--with", "core:2"), "core"),
        (("--prompts", "none.txt"), "the embedded family has prompts and ways of its own"),
        (("--frames", "17"), "the embedded family has prompts and ways of its own"),
        (("--offload", "everything"), "offload 'everything' is none of: none, model, group, disk"),
        (("--size", "big"), "not HEIGHTxWIDTH"),
        (("--cache", "a", "--no-cache"), "contradict"),
        (("--target", "toy:nobody"), "unknown member"),
        (("--device", "cuda:7"), "is not there"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_and_nothing_is_written(words, says, tmp_path):
    done = run("toy:noir", *PAIR, "-o", str(tmp_path / "grid"), "--first", "1", *words)
    assert isinstance(done.exception, InputError | SettingsError) and says in str(done.exception)
    assert "\n" not in str(done.exception) and not (tmp_path / "grid/clips").exists()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pipelines"), only=("wan", "hunyuan", "sdxl"))


@pytest.fixture(scope="module")
def lora(pairs, tmp_path_factory):
    return write_lora(tmp_path_factory.mktemp("lora") / "lora.safetensors", pairs["wan"][0], FAMILIES["wan"])


def asked(pairs, place, folder, *others, **changes):
    source, target = pairs["wan"]
    whole = Comparison(str(place), str(source), str(target), folder, others, False, first=1, course=VIDEO)
    return replace(whole, **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"course": replace(VIDEO, height=40)}, "size 40x32 is not a multiple of the 16 × 16 pixels"),
        ({"course": replace(VIDEO, frames=6)}, r"6 frames are not 4·n \+ 1, .* give 5 or 9"),
        ({"course": replace(VIDEO, target_timesteps=(1000, 500))}, "target timesteps are for targets that re-noise"),
        ({"target": "{hunyuan}"}, "of wan, .* one of hunyuanvideo-1.5; .*give two of one family"),
        ({"target": "{sdxl}"}, "images, which have one frame"),
        ({"target": "{wan}/transformer"}, "one part of a pipeline"),
        ({"target": "nowhere/at/all"}, "is not there"),
        ({"source": "source+{lora}"}, "only the target can be the source"),
        ({"target": "source+nothing.safetensors"}, "no accelerator .* is there"),
        ({"target": known_place("toy:one-step")}, "is of the embedded family"),
        ({"lora": "missing.safetensors"}, "does not exist"),
        ({"prompts": "missing.txt"}, "cannot be read as text"),
        ({"others": ("*0.5",)}, "not a valid strength"),
    ],
)
def test_pipelines_that_do_not_fit_are_one_sentence(pairs, lora, tmp_path, changes, says):
    places = {"wan": pairs["wan"][0], "hunyuan": pairs["hunyuan"][1], "sdxl": pairs["sdxl"][1], "lora": lora}
    texts = {key: value.format(**places) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(InputError, match=says) as caught:
        compare(asked(pairs, lora, tmp_path / "grid", **texts))
    assert "\n" not in str(caught.value) and not (tmp_path / "grid/clips").exists()


@pytest.mark.parametrize(("name", "says"), [("WanCausalDMDPipeline", "loraport merge"), ("FluxPipeline", "merge")])
def test_what_no_pipeline_runs_says_how_to_evaluate_it(pairs, lora, tmp_path, name, says):
    folder = shutil.copytree(pairs["wan"][1], tmp_path / "other")
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": name}))
    with pytest.raises(InputError, match=f"{name}.*{says}.*loraport evaluate"):
        compare(asked(pairs, lora, tmp_path / "grid", target=str(folder)))


@pytest.mark.parametrize("part", ["vae", "text_encoder", "scheduler", "transformer"])
def test_a_part_that_is_missing_is_said_before_anything_is_sampled(pairs, lora, tmp_path, part):
    folder = shutil.copytree(pairs["wan"][1], tmp_path / "other")
    shutil.rmtree(folder / part)
    with pytest.raises(InputError, match=part):
        compare(asked(pairs, lora, tmp_path / "grid", target=str(folder)))
    assert not (tmp_path / "grid").exists()


def test_an_adapter_that_does_not_fit_is_said_before_anything_is_sampled(pairs, lora, tmp_path):
    state = load_file(lora)
    other = tmp_path / "other.safetensors"
    for change, says in (
        ({key: torch.cat([value, value], 1 if "lora_A" in key else 0) for key, value in state.items()}, "made for"),
        ({key.replace("blocks.", "blocks.7"): value for key, value in state.items()}, "none of its 2 layers is in"),
    ):
        save_file(change, other)
        with pytest.raises(InputError, match=says):
            compare(asked(pairs, lora, tmp_path / "grid", str(other)))
        assert not (tmp_path / "grid/clips").exists() and not (tmp_path / "grid/.latents").exists()
    some = {key.replace("blocks.1.", "blocks.7."): value for key, value in state.items()}
    save_file(some, other)
    result = compare(asked(pairs, lora, tmp_path / "grid", str(other)))
    assert result.lost == (
        "other: 1 of its 2 layers are not in the transformer, blocks.7.self_attn.q, for one, and are not applied",
    )


def test_what_of_an_adapter_is_not_applied_is_said(pairs, lora, tmp_path):
    more = tmp_path / "more.safetensors"
    bias = {"transformer.blocks.0.attn1.to_k.lora_B.bias": torch.ones(24)}
    save_file({**load_file(lora), **bias}, more, metadata={"format": "pt"})
    result = compare(asked(pairs, more, tmp_path / "grid"))
    assert any("keys beside the factors are not applied" in note for note in result.lost)
    words = ("--source", str(pairs["wan"][0]), "--target", str(pairs["wan"][1]), "--frames", "5", "--size", "32x32")
    steps = ("--source-steps", "2", "--target-steps", "1", "--first", "1", "--only-with-lora", "--with", "")
    assert run(str(more), *words, *steps, "-o", str(tmp_path / "other")).exit_code == 3
    assert run(str(lora), *words, *steps, "-o", str(tmp_path / "third")).exit_code == 0


def test_memory_that_runs_out_means_smaller_batches_then_more_offload(pairs, lora, tmp_path, monkeypatch):
    """And the clips are those that so small a batch gives; where nothing helps, it is one sentence."""
    course = replace(VIDEO, batch=2)
    real, seen = PipelineModel._sample, []

    def failing(limit):
        def sample(self, pipe, group, texts):
            seen.append((len(group), self.offload))
            if len(seen) <= limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand more")
            return real(self, pipe, group, texts)

        return sample

    monkeypatch.setattr(PipelineModel, "_sample", failing(3))
    compare(asked(pairs, lora, tmp_path / "grid", seeds=2, course=course))
    assert seen[:4] == [(2, "none"), (1, "none"), (1, "model"), (1, "group")]
    compare(asked(pairs, lora, tmp_path / "plain", seeds=2, course=replace(course, batch=1)))
    found, wanted = (clips_of(tmp_path / name) for name in ("grid", "plain"))
    assert all(np.array_equal(found[key][1], wanted[key][1]) for key in wanted if key[0] == "source+lora")
    seen.clear()
    monkeypatch.setattr(PipelineModel, "_sample", failing(1000))
    with pytest.raises(SettingsError, match=r"does not fit into memory, .*2\.00 GiB\); ask for fewer"):
        compare(asked(pairs, lora, tmp_path / "none", seeds=2, course=course))
    assert [one for _, one in seen] == ["none", "none", "model", "group", "disk"]


def test_a_vae_that_does_not_fit_decodes_in_tiles(pairs, lora, tmp_path, monkeypatch):
    from loraport.compare.pipelines import pipeline_model

    real, calls = pipeline_model.decode, []

    def failing(*words):
        calls.append(1)
        if len(calls) in fails:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*words)

    notes = Notes()
    monkeypatch.setattr(pipeline_model, "decode", failing)
    fails: tuple[int, ...] = (1,)
    compare(asked(pairs, lora, tmp_path / "grid"), progress=notes)
    rows = [row for row, _ in clips_of(tmp_path / "grid").values()]
    assert [row["noise"] for row in rows] == [noise_seed(0, 0)] * 2
    assert any("in tiles" in note for note in notes.said) and len(rows) == 2
    assert [row.get("notes") for row in rows] == [["decoded in tiles"], None]  # the target's VAE is another one
    fails = tuple(range(100))
    with pytest.raises(SettingsError, match="does not fit into memory"):
        compare(asked(pairs, lora, tmp_path / "none"))


class Notes(NoProgress):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


def test_latents_that_are_made_are_not_made_again(pairs, lora, tmp_path, monkeypatch):
    """A run that stops before its clips are decoded goes on with what is on the disk; batches stay as they were."""
    course = replace(VIDEO, batch=2)
    real, sampled = PipelineModel._sample, []

    def sample(self, pipe, group, texts):
        sampled.append([request.name for request in group])
        if len(sampled) == stop:
            raise KeyboardInterrupt
        return real(self, pipe, group, texts)

    monkeypatch.setattr(PipelineModel, "_sample", sample)
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        compare(asked(pairs, lora, tmp_path / "grid", seeds=3, course=course))
    assert sampled == [["01-0", "01-1"], ["01-2"]] and not (tmp_path / "grid/clips").exists()
    stop = 0
    compare(asked(pairs, lora, tmp_path / "grid", seeds=3, course=course))
    assert sampled[2] == ["01-2"]
    compare(asked(pairs, lora, tmp_path / "whole", seeds=3, course=course))
    assert content(tmp_path / "grid") == content(tmp_path / "whole")
    (tmp_path / "grid/clips/direct/01-0.mkv").unlink()
    sampled.clear()
    compare(asked(pairs, lora, tmp_path / "grid", seeds=3, course=course))
    assert sampled == [["01-0", "01-1"]] and content(tmp_path / "grid") == content(tmp_path / "whole")


def test_noise_that_cannot_be_the_same_is_said(pairs, lora, tmp_path):
    folder = shutil.copytree(pairs["wan"][1], tmp_path / "finer")
    place = folder / "vae/config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "scale_factor_spatial": 4}))
    result = compare(asked(pairs, lora, tmp_path / "grid", target=str(folder)), dry_run=True)
    assert "do not start from the same noise" in result.notes[0]
    assert "same noise" not in " ".join(compare(asked(pairs, lora, tmp_path / "grid"), dry_run=True).notes)


def test_the_trigger_word_is_found_and_asked_for(pairs, lora, tmp_path):
    assert find_trigger({"modelspec.trigger_phrase": "ck-style, other"}, tmp_path) == "ck-style"
    assert find_trigger({"ss_output_name": "style"}, tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\ninstance_prompt: 'in ck style'\n---\n# A LoRA\n")
    assert find_trigger({}, tmp_path) == find_trigger({}, tmp_path / "lora.safetensors") == "in ck style"
    (tmp_path / "README.md").write_text("# A LoRA\ninstance_prompt: no\n")
    assert find_trigger({}, tmp_path) is None
    assert with_trigger("A cat", "ck") == "ck, A cat" and with_trigger("a CK cat", "ck") == "a CK cat"
    assert with_trigger("a cat", None) == with_trigger("a cat", "") == "a cat"
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(lora), bare)
    said = {
        word: compare(asked(pairs, bare, tmp_path / "grid", trigger=word), dry_run=True).notes
        for word in (None, "", "x")
    }
    assert "names no trigger word" in said[None][0] and said[""] == said["x"] == ()
    assert "prompts begin with 'style'" in compare(asked(pairs, lora, tmp_path / "g"), dry_run=True).notes[0]


def test_columns_have_names_that_are_folders():
    columns = plan_columns("lora", ["undo:0.25", "direct", "direct:1.15", "lightx2v/Some-LoRA:a/b.safetensors*0.5"])
    assert [column.folder for column in columns] == [
        "source", "source+lora", "target", "direct", "undo-0.25", "direct-1.15",
        "lightx2v-Some-LoRA-a-b.safetensors-0.5",
    ]  # fmt: skip
    assert columns[-1].strength == 0.5 and columns[-1].place == "lightx2v/Some-LoRA:a/b.safetensors"


def test_two_runs_do_not_share_a_folder(tmp_path):
    from loraport.files.disk.ownership import Lock

    lock = Lock(tmp_path / "grid/.lock")
    lock.take("a test")
    try:
        with pytest.raises(LoraportError, match="being made by another run"):
            compare(toy(tmp_path / "grid"))
    finally:
        lock.release()
