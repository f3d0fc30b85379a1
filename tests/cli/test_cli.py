"""The command line as users and scripts meet it: exit codes, one clear message, JSON alone on stdout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.evaluation.readings import ReadingStore
from loraport.sampling.samples import SampleStore
from tests import tiny
from tests.transfers.models import make_family


@pytest.fixture
def family(tmp_path):
    return make_family(tmp_path)


def arguments(family, output="out.safetensors", **changes):
    given = {"lora": family.lora, "source": family.source, "target": family.target, **changes}
    return ["transfer", given["lora"], "--source", given["source"], "--target", given["target"],
            "-o", family.folder / output, "--cache", family.folder / "cache", "--overwrite"]  # fmt: skip


def test_transfer_says_what_it_did_in_words(run, family):
    code, out, err = run(*arguments(family))
    assert code == 0 and (family.folder / "out.safetensors").is_file()
    words = ("20 transferred, 0 copied, 0 skipped", "40 in: 40 transferred", "casa, rank 8", "changed")
    for word in words:
        assert word in out
    assert err == ""


def test_a_rank_that_loses_most_of_the_correction_says_what_keeps_more(run, family):
    assert "a higher --rank, or --as diff, keeps more" in run(*arguments(family), "--rank", "1")[1]
    assert "keeps more" not in run(*arguments(family), "--rank", "full")[1]


def test_transfer_json_is_the_promised_object(run, family):
    code, out, _ = run(*arguments(family), "--json", "--report", family.folder / "page.html")
    result = json.loads(out)
    assert code == 0 and (family.folder / "page.html").is_file()
    assert {"output", "method", "settings", "layers", "keys", "seconds", "peak_rss_bytes"} <= set(result)
    assert result["keys"] == {"in": 40, "transferred": 40, "copied": 0, "dropped": []}
    promised = {"name", "status", "reason", "shape", "rank_in", "rank_out", "drift", "lora", "update", "kept_energy",
                "kept_correction", "k", "clusters", "largest_cluster", "arbitrated", "seconds"}  # fmt: skip
    assert promised <= set(result["layers"][0]) and len(result["layers"]) == 20
    assert result["peak_rss_bytes"] > 10_000_000 and result["seconds"]["total"] > 0
    assert set(result["seconds"]) == {"total", "layers", "read", "basis", "routing", "transfer", "write"}
    assert all(result["seconds"][stage] > 0 for stage in ("read", "basis", "routing", "transfer"))
    assert result["settings"]["tau"] == 1.0 and result["settings"]["rank"] == "auto"


def test_values_that_a_method_does_not_have_are_null(run, family):
    layer = json.loads(run(*arguments(family), "--method", "direct", "--json")[1])["layers"][0]
    assert layer["k"] is layer["clusters"] is layer["kept_correction"] is None and layer["drift"] is not None


def test_quiet_says_nothing_and_verbose_names_layers(run, family):
    assert run(*arguments(family), "-q")[1:] == ("", "")
    assert "blocks.0.ffn.0: " in run(*arguments(family), "-v")[2]


def test_every_command_takes_quiet_and_verbose(run, family, tmp_path):
    run(*arguments(family), "-q")
    cache = ["--cache", family.folder / "cache"]
    asked = {
        "20 lines of layers": ["inspect", family.lora],
        "69 lines of tensors": ["inspect", family.source],
        "20 lines converted": ["convert", family.lora, "--to", "kohya", "-o", tmp_path / "k.safetensors"],
        "69 lines merged": ["merge", family.source, family.lora, "-o", tmp_path / "m.safetensors"],
        "40 lines verified": ["cache", "verify", *cache],
        "40 lines cleared": ["cache", "clear", *cache],
    }
    rows = run("cache", "list", *cache, "-v")[1].splitlines()  # a table above the sums, in order
    assert rows[0].split() == ["kind", "key", "size"] and all(row.startswith("basis ") for row in rows[1:41])
    assert rows[41].startswith("folder ") and rows[-1].startswith("size ") and rows[-1].endswith("kB")
    for lines, words in asked.items():
        code, _, err = run(*words, "-v")
        assert (code, f"{len(err.splitlines())} lines") == (0, " ".join(lines.split()[:2])), lines
        (tmp_path / "k.safetensors").unlink(missing_ok=True)
        (tmp_path / "m.safetensors").unlink(missing_ok=True)
        assert run(*words, "-q")[::2] == (0, ""), lines


def test_dry_run_writes_nothing(run, family):
    before = sorted(family.folder.rglob("*"))
    code, out, _ = run(*arguments(family), "--dry-run", "--exclude", "ffn")
    assert code == 0 and "16 of 20 layers, by casa" in out and "4 layers: excluded" in out
    assert "nothing was downloaded or written" in out
    plan = json.loads(run(*arguments(family), "--dry-run", "--json")[1])
    assert len(plan["layers"]) == 20 and plan["layers"][0]["action"] == "transfer"
    assert sorted(family.folder.rglob("*")) == before


def test_flags_and_presets_reach_the_settings(run, family):
    words = ["--preset", "published-code", "--tau", "2", "--no-arbitrate", "--rank", "6", "--dtype", "fp16"]
    result = json.loads(run(*arguments(family), *words, "--json")[1])
    settings = result["settings"]
    assert (settings["densities"], settings["tau"], settings["arbitrate"], settings["rank"]) == (
        "block",
        2.0,
        False,
        "6",
    )
    assert {tensor.dtype for tensor in load_file(result["output"]).values()} == {torch.float16}


@pytest.mark.parametrize("format", ["same", "comfy", "diffusers", "kohya", "peft"])
def test_formats(run, family, format):
    output = "folder" if format == "peft" else "out.safetensors"
    code, out, _ = run(*arguments(family, output), "--format", format, "--json")
    written = family.folder / output
    assert code == 0 and json.loads(out)["keys"]["transferred"] == 40
    described = json.loads(run("inspect", written, "--json")[1])
    assert described["layers"] == 20 and described["dialect"].startswith({"same": "comfy"}.get(format, format))


def test_a_loss_that_nobody_asked_for_is_exit_3(run, family):
    tensors = load_file(family.lora)
    tensors["diffusion_model.blocks.9.ffn.0.lora_A.weight"] = torch.ones(4, 24)
    tensors["diffusion_model.blocks.9.ffn.0.lora_B.weight"] = torch.ones(40, 4)
    save_file(tensors, family.lora)
    code, _, err = run(*arguments(family))
    assert code == 3 and "dropped 2 keys (diffusion_model.blocks.9.ffn.0.lora_A.weight, diffusion_model" in err
    assert (family.folder / "out.safetensors").is_file()


def broken_inputs(family):
    """name -> (changed argument, its value, extra words, what the one message must say)."""
    folder = family.folder
    whole = Path(family.lora).read_bytes()

    def file(name, content):
        (folder / name).write_bytes(content)
        return str(folder / name)

    def lora(name, **changes):
        tensors = {**load_file(family.lora), **{k: v for k, v in changes.items() if v is not None}}
        save_file({k: v for k, v in tensors.items() if k not in changes or changes[k] is not None}, folder / name)
        return str(folder / name)

    key = "diffusion_model.blocks.0.self_attn.q.lora_"
    nan_state = {**family.source_state}
    nan_state["blocks.0.self_attn.q.weight"] = nan_state["blocks.0.self_attn.q.weight"] * float("nan")
    int8 = {name: (t.to(torch.int8) if t.dim() == 2 else t) for name, t in family.source_state.items()}
    torch.save({"generator": Unsafe()}, folder / "unsafe.pt")
    big = tiny.write_lora(folder / "big.safetensors", tiny.lora_factors(tiny.tiny_state(0, dim=48)))
    odd = tiny.write_lora(folder / "odd.safetensors", {"encoder.0": (torch.ones(4, 2), torch.ones(2, 4))})
    nan = lora("nan.safetensors", **{key + "A.weight": torch.full((4, 24), float("nan"))})
    zero = lora("zero.safetensors", **{key + "A.weight": torch.ones(0, 24), key + "B.weight": torch.ones(24, 0)})
    liar = file("long.safetensors", (1 << 40).to_bytes(8, "little") + b"{}")
    return {
        "missing": ("lora", str(folder / "none.safetensors"), [], "does not exist"),
        "not safetensors": ("lora", file("text.safetensors", b"hello world, this is text"), [], "text.safetensors"),
        "truncated": ("lora", file("cut.safetensors", whole[:-100]), [], "cut.safetensors"),
        "header longer than the file": ("lora", liar, [], "long.safetensors"),
        "another model": ("lora", str(big), [], "another model"),
        "no layer matches": ("lora", str(odd), [], "odd.safetensors is in"),
        "nan in the lora": ("lora", nan, [], "NaN"),
        "half a pair": ("lora", lora("half.safetensors", **{key + "A.weight": None}), [], "is missing"),
        "rank 0": ("lora", zero, [], "rank 0"),
        "nan in a weight": ("target", str(tiny.write_original(folder / "nanw.safetensors", nan_state)), [], "NaN"),
        "unsafe pickle": ("target", str(folder / "unsafe.pt"), [], "unsafe.pt"),
        "int8": ("target", str(tiny.write_original(folder / "int8.safetensors", int8)), [], "int8"),
        "gguf": ("target", file("model.gguf", b"GGUF" + bytes(60)), [], "GGUF"),
        "a model as lora": ("lora", family.source, [], "model checkpoint, not a LoRA"),
        "unknown method": (None, None, ["--method", "magic"], "known: casa, direct"),
        "unknown preset": (None, None, ["--preset", "magic"], "known: paper, published-code"),
        "unknown format": (None, None, ["--format", "magic"], "known: same, comfy"),
        "quantile": (None, None, ["--q-dom", "1.5"], "must lie in [0, 1]"),
        "rank": (None, None, ["--rank", "-1"], "is none of: auto"),
        "device": (None, None, ["--device", "cuda:99"], "is not there"),
        "contradiction": (None, None, ["--no-cache"], "contradict"),
        "hub id of nobody": ("source", "nobody/no-such-model", [], "nobody/no-such-model"),
    }  # fmt: skip


class Unsafe:
    """Something that only a full unpickling could bring back."""

    def __reduce__(self):
        return (print, ("the pickle ran code",))


BROKEN = [
    "missing",
    "not safetensors",
    "truncated",
    "header longer than the file",
    "another model",
    "no layer matches",
    "nan in the lora",
    "half a pair",
    "rank 0",
    "nan in a weight",
    "unsafe pickle",
    "int8",
    "gguf",
    "a model as lora",
    "unknown method",
    "unknown preset",
    "unknown format",
    "quantile",
    "rank",
    "device",
    "contradiction",
    "hub id of nobody",
]


@pytest.mark.parametrize("name", BROKEN)
def test_bad_input_is_one_clear_message_and_exit_2_and_nothing_written(run, family, name):
    cases = broken_inputs(family)
    assert set(cases) == set(BROKEN)
    which, value, words, message = cases[name]
    before = set(family.folder.iterdir())
    code, out, err = run(*arguments(family, **({which: value} if which else {})), *words)
    assert code == 2 and out == ""
    assert message in err and "Traceback" not in err and "ran code" not in err
    assert len([line for line in err.strip().splitlines() if line.startswith("loraport: ")]) == 1
    left = {path.name for path in set(family.folder.iterdir()) - before}
    assert not {name for name in left if "out.safetensors" in name and not name.endswith(".partial")}
    assert ("out.safetensors.partial" in left) is (name == "nan in a weight"), "the other layers are kept"


def test_a_full_disk_leaves_nothing_half_written(run, family, monkeypatch):
    from loraport.files.formats import safetensors_write as saving

    real = saving._write

    def full(file, tensors, metadata):
        if len(tensors) > 2:  # the result, not a layer
            file.write(b"half")
            raise OSError(28, "No space left on device")
        real(file, tensors, metadata)

    monkeypatch.setattr(saving, "_write", full)
    code, _, err = run(*arguments(family))
    assert code == 2 and "No space left on device" in err and "20 finished layers are kept in" in err
    assert not (family.folder / "out.safetensors").exists() and not list(family.folder.glob(".*.part"))


def test_a_report_that_could_not_be_written_is_refused_before_the_work(run, family):
    code, _, err = run(*arguments(family), "--report", family.folder / "nowhere" / "page.txt")
    assert code == 2 and "cannot be a page" in err and not (family.folder / "out.safetensors").exists()


def test_an_older_result_survives_a_failed_run(run, family):
    run(*arguments(family))
    old = (family.folder / "out.safetensors").read_bytes()
    assert run(*arguments(family, lora=str(family.folder / "gone.safetensors")))[0] == 2
    assert (family.folder / "out.safetensors").read_bytes() == old


def test_cache_list_verify_clear(run, family):
    run(*arguments(family), "-q")
    # 20 bases, and the routing of the four tall and wide layers
    at = ["--cache", family.folder / "cache", "--json"]
    listed = json.loads(run("cache", "list", *at)[1])
    assert len(listed["entries"]) == 40 and listed["bytes"] > 0
    assert json.loads(run("cache", "verify", *at)[1]) == {"folder": listed["folder"], "checked": 40, "broken": []}
    victim = next((family.folder / "cache").rglob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x01\x02")
    assert len(json.loads(run("cache", "verify", *at)[1])["broken"]) == 1
    assert json.loads(run("cache", "clear", *at)[1])["removed"] == 40
    assert json.loads(run("cache", "list", *at)[1])["entries"] == []


@pytest.mark.parametrize(("kind", "name"), [(SampleStore, "samples"), (ReadingStore, "readings")])
def test_other_entries_are_listed_verified_and_cleared_with_the_bases_and_nothing_else_is(run, tmp_path, kind, name):
    store = kind(tmp_path / "cache")
    store.recall("one", lambda: {"end": torch.ones(3)})
    store.recall("two", lambda: {"end": torch.zeros(3)})
    (first, size), (second, _) = ((file.path, file.bytes) for file in store.list())
    mine = first.with_name("notes.txt")
    mine.write_text("mine")
    at = ["--cache", tmp_path / "cache", "--json"]
    listed = json.loads(run("cache", "list", *at)[1])
    assert (listed[name], listed["entries"]) == (2, []) and listed["bytes"] == store.total_bytes() > size
    assert json.loads(run("cache", "verify", *at)[1])["broken"] == []
    second.write_bytes(first.read_bytes())  # whole, but not what its name says
    [broken] = json.loads(run("cache", "verify", *at)[1])["broken"]
    assert broken["path"] == str(second)
    assert json.loads(run("cache", "clear", *at)[1])["removed"] == 2
    assert store.list() == () and mine.is_file()


@pytest.mark.parametrize("place", ["lora", "source", "target"])
def test_inspect(run, family, place):
    code, out, _ = run("inspect", getattr(family, place), "--json")
    facts = json.loads(out)
    assert code == 0 and facts["kind"] == ("LoRA" if place == "lora" else "model") and facts["family"].startswith("wan")
    assert len(run("inspect", getattr(family, place))[1].splitlines()) <= 14


def test_convert(run, family):
    output = family.folder / "kohya.safetensors"
    code, out, err = run("convert", family.lora, "--to", "kohya", "-o", output)
    assert code == 0 and "40 in: 40 converted, 0 copied, 0 dropped" in out and err == ""
    result = json.loads(run("convert", family.lora, "--to", "diffusers", "-o", output, "--overwrite", "--json")[1])
    assert result["keys"] == {"in": 40, "transferred": 40, "copied": 0, "dropped": []} and result["dtype"] == "fp32"
    assert run("convert", family.lora, "--to", "comfy", "-o", output, "--overwrite", "-q")[1:] == ("", "")
    code, out, err = run("convert", family.lora, "--to", "magic", "-o", output, "--overwrite")
    assert code == 2 and out == "" and "known: comfy, diffusers, peft, kohya" in err


def test_merge(run, family):
    output = family.folder / "merged.safetensors"
    code, out, err = run("merge", family.source, f"{family.lora}*0.5", family.lora, "-o", output)
    assert code == 0 and "lora.safetensors at strength 0.5, lora.safetensors at strength 1" in out and err == ""
    result = json.loads(run("merge", family.source, family.lora, "-o", output, "--overwrite", "--json")[1])
    assert (result["changed"], result["keys"]) == (20, {"in": 40, "merged": 40, "dropped": []})
    code, out, err = run("merge", family.source, f"{family.lora}*much", "-o", output, "--overwrite")
    assert code == 2 and out == "" and "'much' is not a valid strength" in err and len(err.splitlines()) == 1
    code, out, err = run(*arguments(family, target=f"source+{family.lora}*0.5"))
    assert code == 0 and "note: load the result beside lora.safetensors at strength 0.5" in err


@pytest.mark.parametrize("words", [["convert", "--to", "diffusers"], ["merge"]], ids=lambda words: words[0])
def test_a_key_without_a_place_is_exit_3(run, family, words):
    tensors = load_file(family.lora) | {"diffusion_model.blocks.9.ffn.0.diff": torch.ones(40, 24)}
    save_file(tensors, family.lora)
    model = [family.source] if words[0] == "merge" else []
    output = family.folder / "out.safetensors"
    code, _, err = run(words[0], *model, family.lora, *words[1:], "-o", output)
    assert code == 3 and "loraport: dropped diffusion_model.blocks.9.ffn.0.diff: " in err and output.is_file()


def test_a_folder_is_not_written_under_a_files_name(run, family):
    pair = ["--source", family.source, "--target", family.target]
    folder, file = family.folder / "peft", family.folder / "out.safetensors"
    assert run("convert", family.lora, "--to", "peft", "-o", folder)[0] == 0
    for words in (["convert", folder, "--to", "peft"], ["transfer", folder, *pair]):
        code, _, err = run(*words, "-o", file)
        assert code == 2 and "is named like a file, but PEFT's format is a folder; name a folder" in err
        assert not file.exists()
    for format, place in (("comfy", file), ("same", family.folder / "again")):
        assert run("transfer", folder, *pair, "--format", format, "-o", place)[0] == 0


@pytest.mark.slow
def test_analyze_writes_a_folder_and_tells_what_it_found(run, family, monkeypatch):
    pair = ["--source", family.source, "--target", family.target, "-o", family.folder / "seen"]
    words = ["analyze", family.lora, *pair, "--sample", "2", "--detail", "0"]
    code, out, _ = run(*words, "--json")
    told = json.loads(out)
    assert code == 0 and len(told["layers"]) == 2 and Path(told["output"]).is_file()
    assert run(*words, "--sweep", "rank=3")[0] == run(*words, "--sample", "0")[0] == 2
    monkeypatch.setattr("loraport.cli.options.find_spec", lambda name: None)
    code, _, err = run(*words)
    assert code == 2 and "pip install 'loraport[report]'" in err


def test_probes_write_models(run, family):
    pair = ["--source", family.source, "--target", family.target]
    code, out, _ = run("probe", "keep-dominant", *pair, "--q", "0", "--directions", "all", "-o", family.folder / "kept")
    assert code == 0 and "0 changed, 27 looked at and left" in out
    code, out, _ = run("probe", "over-activate", *pair, "--layers", "ffn", "-o", family.folder / "disturbed", "--json")
    assert code == 0 and json.loads(out)["layers"] == 4 and (family.folder / "disturbed").is_dir()
    assert run("probe", "keep-dominant", *pair, "--q", "2", "-o", family.folder / "no")[0] == 2
    code, _, err = run("probe", "keep-dominant", *pair, "--target-part", "generator", "-o", family.folder / "no")
    assert code == 2 and "generator" in err


def test_inspect_tells_what_would_be_refused(run, tmp_path):
    save_file({"lora_unet_blocks_0_ffn_0.oft_blocks": torch.ones(2, 2)}, tmp_path / "oft.safetensors")
    code, out, _ = run("inspect", tmp_path / "oft.safetensors", "--json")
    assert code == 0 and "OFT" in json.loads(out)["refused"]


HELP = [
    [],
    ["transfer"],
    ["convert"],
    ["merge"],
    ["inspect"],
    ["demo"],
    ["analyze"],
    ["probe", "keep-dominant"],
    ["probe", "over-activate"],
    ["cache"],
    ["cache", "list"],
    ["cache", "verify"],
    ["cache", "clear"],
]


ASK_FOR_HELP = """
import contextlib, io, json, sys
from loraport.cli import main
told = {}
for words in json.loads(sys.argv[1]):
    sys.argv, out = ["loraport", *words, "--help"], io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(out):
        main()
    told[" ".join(words)] = (out.getvalue(), "torch" in sys.modules)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def helped():
    """What each command says of itself, and whether torch had been imported by then: one process for all."""
    command = [sys.executable, "-c", ASK_FOR_HELP, json.dumps(HELP)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_has_an_example_and_needs_no_torch(words, helped):
    text, heavy = helped[" ".join(words)]
    assert "--help" in text and not heavy
    if words not in ([], ["cache"]):
        assert f"Example: loraport {' '.join(words)}" in " ".join(text.split())


def test_usage_errors_are_exit_2(run):
    assert run("transfer", "x.safetensors")[0] == 2
    assert run("nonsense")[0] == 2
    assert run("--version")[0] == 0


def test_our_own_failure_is_exit_1_with_its_traceback(run, family, monkeypatch):
    from loraport.transfers import run as running

    monkeypatch.setattr(running, "key_account", lambda *_: 1 / 0)
    code, _, err = run(*arguments(family))
    assert code == 1 and "ZeroDivisionError" in err and "please report" in err
