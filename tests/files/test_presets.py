"""Models by name: the table is sound, a name is never taken silently, and only what a LoRA touches is fetched."""

import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
import torch

from loraport.errors import FileFormatError, SettingsError
from loraport.files.models.checkpoint import open_checkpoint
from loraport.files.models.hub import looks_like_hub_id
from loraport.files.models.presets import PRESETS, location, open_model
from loraport.files.names.families import FAMILIES
from loraport.inputs.open import prepare
from loraport.transfers.run import transfer
from tests import tiny
from tests.files.hub_server import HubServer
from tests.transfers.models import make_family

SHARD = "transformer/diffusion_pytorch_model-{:05d}-of-00003.safetensors"
LAYER = "blocks.1.ffn.2"


def test_the_table_is_sound():
    assert len(PRESETS) > 30 and list(PRESETS) == [preset.name for preset in PRESETS.values()]
    for preset in PRESETS.values():
        assert looks_like_hub_id(preset.where), preset.where
        assert preset.name == preset.name.lower() and "/" not in preset.name and "+" not in preset.name
        assert preset.base is None or PRESETS[preset.base].base is None
        json.dumps(preset.as_json())
        assert "no commit is pinned" in preset.words() or len(preset.revision or "") == 40
    families = {preset.family for preset in PRESETS.values()}
    assert families == set(FAMILIES) - {"hunyuanvideo"}, (
        "HunyuanVideo 1.0 is read, and nobody distilled it under a name"
    )
    places = [preset.where for preset in PRESETS.values()]
    assert len(set(places)) == len(places)
    with pytest.raises(FrozenInstanceError):
        next(iter(PRESETS.values())).repo = "other/repo"


def test_a_name_that_also_lies_here_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert location("sdxl") == PRESETS["sdxl"].where and location("other") == "other"
    tiny.write_diffusers(tmp_path / "sdxl", tiny.tiny_state())
    with pytest.raises(SettingsError, match=r"'sdxl' is a preset and also lies here; write \./sdxl"):
        open_model("sdxl")
    assert len(open_model("./sdxl")) == len(tiny.tiny_state())


@pytest.fixture
def shards(tmp_path):
    """A pair in three shards each, and a LoRA of one layer."""
    family = make_family(tmp_path)
    pairs = {"source": family.source_state, "target": family.target_state}
    folders = {name: tmp_path / f"{name}-shards" for name in pairs}
    for name, state in pairs.items():
        tiny.write_shards(folders[name], tiny.in_diffusers_names(state))
    lora = tiny.write_lora(tmp_path / "one.safetensors", {LAYER: family.factors[LAYER]})
    return family, {name: str(folder) for name, folder in folders.items()} | {"lora": str(lora)}


def shard_of(folder: str, layer: str) -> str:
    return open_checkpoint(folder).path(f"{layer}.weight").name


def test_only_the_shards_that_a_lora_touches_are_opened(shards):
    family, places = shards
    ready = prepare(family.config(**places))
    mine = shard_of(places["source"], LAYER)
    assert [path.name for path in ready.source.paths] == [mine]
    whole = open_checkpoint(places["source"])
    assert {*ready.source, *ready.source.absent} == set(whole) and not {*ready.source} & ready.source.absent
    assert not any("lacks" in warning for warning in ready.plan.warnings)
    assert len(prepare(family.config(source=places["source"])).source.paths) == 3


def test_others_need_not_be_there_but_those_do(shards, tmp_path):
    family, places = shards
    whole = transfer(family.config("a.safetensors", **places))
    mine = shard_of(places["source"], LAYER)
    for name in ("source", "target"):
        for path in (tmp_path / f"{name}-shards").glob("*.safetensors"):
            if path.name != mine:
                path.unlink()
    again = transfer(family.config("b.safetensors", **places))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert whole.layers[0].source_hash == again.layers[0].source_hash
    with pytest.raises(FileFormatError, match="names shards that are not there"):
        open_checkpoint(places["source"])
    (tmp_path / "source-shards" / mine).unlink()
    with pytest.raises(FileFormatError, match=f"names shards that are not there: {mine}"):
        prepare(family.config(**places))


ONE_AFTER_THE_OTHER = """
import contextlib, io, json, sys
from loraport.cli import main
told = []
for words in json.loads(sys.argv[1]):
    sys.argv, out = ["loraport", *words], io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            main()
    except SystemExit as end:
        told.append([end.code, out.getvalue()])
print(json.dumps(told))
"""


def loraport(home, hub, commands, *, offline):
    """Commands in a process of their own, since the Hub's client reads its settings once; what each printed."""
    settings = {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    settings |= {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    program = [sys.executable, "-c", ONE_AFTER_THE_OTHER, json.dumps(commands)]
    done = subprocess.run(program, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert [code for code, _ in told] == [0] * len(commands), done.stderr
    return [json.loads(out) for _, out in told]


@pytest.mark.slow
def test_presets_from_the_hub(shards, tmp_path):
    """Online only the shard that is needed, offline the same bytes, and a broken connection is taken up again."""
    family, places = shards
    repos = tmp_path / "repos"
    tiny.write_diffusers(repos / PRESETS["wan2.1-t2v-1.3b"].repo, family.source_state, shards=3)
    gates = {name: tensor for name, tensor in tiny.tiny_state(5, gates=True).items() if "gate" in name}
    tiny.write_diffusers(repos / PRESETS["fastwan2.1-t2v-1.3b"].repo, family.target_state | gates)
    forced = repos / PRESETS["self-forcing"].repo / PRESETS["self-forcing"].inside
    forced.parent.mkdir(parents=True)
    big = {"head.head.weight": torch.ones(6_000_000)}  # the client keeps what it has in pieces of 10 MB
    tiny.write_pickle(forced, {"generator": family.target_state, "generator_ema": family.source_state, "critic": big})

    def moved(target, output, *words):
        pair = ["--source", "wan2.1-t2v-1.3b", "--target", target]
        return ["transfer", places["lora"], *pair, "-o", str(tmp_path / output), "--no-cache", "--json", *words]

    with HubServer(repos) as hub:
        hub.breaks[forced.name] = 15_000_000
        other = moved("self-forcing", "c.safetensors", "--target-part", "generator")
        commands = [moved("fastwan2.1-t2v-1.3b", "a.safetensors"), other]
        facts, part = loraport(tmp_path / "home", hub, commands, offline=False)
        got = [name for name in hub.downloaded() if name.endswith(".safetensors")]
        number = int(shard_of(places["source"], LAYER).split("-")[1])
        assert got == [SHARD.format(number), "transformer/diffusion_pytorch_model.safetensors"]
        assert facts["keys"]["transferred"] == 2
        lacking = [note for note in facts["warnings"] if "lacks" in note]
        assert len(lacking) == 1 and lacking[0].count("blocks.") == lacking[0].count("to_gate_compress") == 2
        assert part["settings"]["target_part"] == "generator" and part["layers"][0]["drift"] > 0.01
        assert hub.ranges and hub.ranges[0][0] == forced.name and hub.ranges[0][1].startswith("bytes=1048576")
        hub.requests.clear()
        commands = [moved("fastwan2.1-t2v-1.3b", "b.safetensors"), moved("self-forcing", "d.safetensors")]
        _, ema, listed = loraport(tmp_path / "home", hub, [*commands, ["presets", "--json"]], offline=True)
        assert not hub.requests and ema["layers"][0]["drift"] == 0
        assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
        assert [row["name"] for row in listed["presets"]] == list(PRESETS)
