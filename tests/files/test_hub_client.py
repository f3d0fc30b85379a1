"""The real Hub client against a stand-in on loopback: what is downloaded, and found again without a network."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from loraport.files.models.presets import PRESETS
from tests import tiny
from tests.files.hub_server import HubServer


def inspect(where, home, **environment):
    """`loraport inspect` in a process of its own, since the client reads its settings once."""
    settings = {**os.environ, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    settings = {**settings, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    command = [sys.executable, "-m", "loraport", "inspect", where, "--json"]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)


@pytest.fixture
def hub(tmp_path):
    state = tiny.tiny_state(0)
    root = tmp_path / "repos" / "someone" / "wan-tiny"
    tiny.write_diffusers(root, state, shards=2)
    (root / "vae").mkdir()
    tiny.write_original(
        root / "vae" / "diffusion_pytorch_model.safetensors", {"x.weight": state["blocks.0.ffn.0.weight"]}
    )
    with HubServer(tmp_path / "repos") as server:
        yield server


@pytest.mark.slow
def test_only_the_networks_files_are_downloaded_and_found_again_offline(hub, tmp_path):
    online = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
    done = inspect("someone/wan-tiny", tmp_path / "home", **online)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tensors"] == 69
    got = hub.downloaded()
    assert [name for name in got if name.endswith(".safetensors")] == [
        f"transformer/diffusion_pytorch_model-{number:05d}-of-00002.safetensors" for number in (1, 2)
    ]
    hub.requests.clear()
    offline = inspect("someone/wan-tiny", tmp_path / "home", HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0 and json.loads(offline.stdout)["tensors"] == 69 and not hub.requests
    stranger = inspect("someone/wan-tiny", tmp_path / "empty", HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="1")
    assert stranger.returncode == 2 and len(stranger.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_repository_that_is_not_there_is_one_message(hub, tmp_path):
    done = inspect("someone/else", tmp_path / "home", HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="0")
    assert done.returncode == 2 and "someone/else" in done.stderr and "AttributeError" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("loraport:")]) == 1


@pytest.mark.slow
def test_both_experts_of_a_repository_are_found_by_its_listing(tmp_path):
    """Nothing is downloaded for that; the message for one place that holds two says what works."""
    root = tmp_path / "repos" / "someone" / "two"
    for seed, inner in enumerate(("transformer", "transformer_2")):
        tiny.write_diffusers(root, tiny.tiny_state(seed, blocks=1), inner=inner)
    script = "from loraport.inputs.experts import both; print(both('someone/two'), both('someone/two:transformer_2'))"
    with HubServer(tmp_path / "repos") as server:
        settings = {
            **os.environ,
            "HF_HOME": str(tmp_path / "home"),
            "HF_ENDPOINT": server.address,
            "HF_HUB_OFFLINE": "0",
        }
        done = subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, text=True, timeout=120)
        refused = inspect("someone/two", tmp_path / "home", HF_ENDPOINT=server.address, HF_HUB_OFFLINE="0")
        assert server.downloaded() == []
    pair = ("someone/two:transformer", "someone/two:transformer_2")
    assert done.stdout.strip() == f"{pair} {pair}" and done.stderr == ""
    assert refused.returncode == 2 and "name one of: someone/two:transformer, " in refused.stderr


DRY_RUNS = """
import io, json, sys
from contextlib import redirect_stdout
from loraport.cli import app
told = []
for words in json.loads(sys.argv[1]):
    out = io.StringIO()
    try:
        with redirect_stdout(out):
            app(["transfer", *words, "--dry-run", "--no-cache"])
    except SystemExit as end:
        told.append([end.code, out.getvalue()])
print(json.dumps(told))
"""


@pytest.mark.slow
def test_a_dry_run_of_a_preset_plans_from_headers_alone(tmp_path):
    """Of 4 MB a model the header is sent; the plan is that of a run, and nothing is in the cache afterwards."""
    state = {**tiny.tiny_state(0), "head.head.weight": torch.ones(1_000_000)}
    repos = tmp_path / "repos"
    tiny.write_diffusers(repos / PRESETS["wan2.1-t2v-1.3b"].repo, state, shards=3)
    tiny.write_diffusers(repos / PRESETS["fastwan2.1-t2v-1.3b"].repo, tiny.drifted(state))
    forced = repos / PRESETS["self-forcing"].repo / PRESETS["self-forcing"].inside
    forced.parent.mkdir(parents=True)
    tiny.write_pickle(forced, {"generator": state})
    lora = tiny.write_lora(tmp_path / "l.safetensors", tiny.lora_factors(tiny.tiny_state(0)))
    out = str(tmp_path / "o.safetensors")
    common = [str(lora), "--source", "wan2.1-t2v-1.3b", "-o", out, "--target"]
    commands = [[*common, "fastwan2.1-t2v-1.3b", "--json"], [*common, "fastwan2.1-t2v-1.3b"], [*common, "self-forcing"]]
    with HubServer(repos) as hub:
        settings = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
        program = [sys.executable, "-c", DRY_RUNS, json.dumps(commands)]
        done = subprocess.run(program, env=settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (code, facts), (_, words), (last, unknown) = json.loads(done.stdout.splitlines()[-1])
    assert code in (0, None) and last in (0, None)
    plan = json.loads(facts)
    assert {row["action"] for row in plan["layers"]} == {"transfer"} and len(plan["layers"]) == 20
    weights = list(repos.rglob("*.safetensors"))
    sizes = {path.name: path.stat().st_size for path in weights}
    assert plan["bytes"] == plan["estimate"]["download_bytes"] >= sum(sizes.values())
    files = {one["name"].rpartition("/")[2]: one["bytes"] for row in plan["downloads"] for one in row["files"]}
    assert sizes.items() <= files.items()
    assert sum(sizes.values()) > 4_000_000 and 0 < sum(hub.sent.values()) < 3 * len(weights) * 100_001
    assert hub.sent.get(forced.name, 0) == 0 and not list((tmp_path / "home").rglob("*.safetensors"))
    assert "would move" in words and len(words.splitlines()) <= 10
    assert "none yet" in unknown and forced.name in unknown and "GB from" in unknown.replace("MB from", "GB from")


@pytest.mark.slow
def test_without_a_network_it_says_so_at_once(tmp_path):
    """The client would try six times, for 25 s; offline its text would be cut in the middle of a word."""
    began = time.monotonic()
    done = inspect("someone/wan-tiny", tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert time.monotonic() - began < 15
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "can be reached" in done.stderr
    done = inspect("someone/wan-tiny", tmp_path / "home", HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and "HF_HUB_OFFLINE forbids to fetch it" in done.stderr
