"""`loraport push`: the card, and one commit by the Hub's own client against a stand-in on loopback."""

import hashlib
import json

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import save_file

from loraport.publishing.card import MARK
from tests.evaluation.clips import NOISES, write_manifest
from tests.files.hub_server import COMMIT, HubServer

GIVEN = "c" * 64
HEADER = {
    "loraport.version": "0.1.0", "loraport.method": "casa", "loraport.settings": '{"tau": 1.0}',
    "loraport.lora": "noir", "loraport.lora_sha256": GIVEN, "loraport.source": "wan2.1-t2v-1.3b",
    "loraport.source_hash": "a" * 64, "loraport.target": "fastwan2.1-t2v-1.3b", "loraport.target_hash": "b" * 64,
    "license": "apache-2.0", "trigger_words": "n0ir",
}  # fmt: skip
BASE = ["FastVideo/FastWan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"]
REPO = "someone/noir-fast"


def write_lora(path, **changes):
    """A LoRA with the header that `transfer` writes; a field that is None is not there."""
    header = {key: value for key, value in {**HEADER, **changes}.items() if value is not None}
    name = "diffusion_model.blocks.0.self_attn.q"
    save_file({f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}, path, header)
    return path


@pytest.fixture
def lora(tmp_path):
    return write_lora(tmp_path / "noir-fast.safetensors")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "repos" / REPO).mkdir(parents=True)
    (tmp_path / "repos" / REPO / ".gitattributes").write_text("")
    with HubServer(tmp_path / "repos") as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", "hf_a_token")
        yield server


@pytest.fixture
def comparison(tmp_path):
    """A comparison whose clips of `casa` are of the same transfer, with what is looked at and not only measured."""
    folder = write_manifest(tmp_path / "grid", NOISES, prompts=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["lora"] = {"name": "noir", "sha256": GIVEN, "trigger": None}
    for column in manifest["columns"]:
        made = column["name"] == "casa"
        column |= {"model": "target", "lora": "made" if made else None, "method": "casa" if made else None}
    for row in manifest["clips"]:
        row["look"] = row["measure"].replace(".mkv", ".mp4")
        (folder / row["look"]).write_bytes(row["measure"].encode())
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_one_commit_has_the_file_how_it_was_made_and_the_card(run, hub, lora, tmp_path):
    code, out, err = run("push", lora, REPO, "--json")
    assert code == 0, err
    assert json.loads(out)["commit"].endswith(f"{REPO}/commit/{COMMIT}")
    [commit] = hub.commits
    assert commit["files"] == ["README.md", "loraport.json", lora.name] and commit["parentCommit"] == COMMIT
    repo = tmp_path / "repos" / REPO
    assert (repo / lora.name).read_bytes() == lora.read_bytes()
    made = json.loads((repo / "loraport.json").read_text())
    digest = hashlib.sha256(lora.read_bytes()).hexdigest()
    assert (made["sha256"], made["base_model"], made["made"]["method"]) == (digest, BASE, "casa")
    text = (repo / "README.md").read_text()
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == BASE and data["base_model_relation"] == "adapter"
    assert (data["license"], data["instance_prompt"], data["pipeline_tag"]) == ("apache-2.0", "n0ir", "text-to-video")
    assert data["tags"] == ["lora", "template:sd-lora", "loraport", "wan"]
    assert f'pipe.load_lora_weights("{REPO}", weight_name="{lora.name}"' in text and digest in text
    assert str(tmp_path) not in text and MARK in text.splitlines()
    assert run("push", lora, REPO)[0] == 0 and len(hub.commits) == 2  # a card of ours is replaced


def test_a_card_of_somebody_else_stays_on_the_hub_and_here(run, hub, lora, tmp_path):
    for card in (tmp_path / "repos" / REPO / "README.md", tmp_path / "README.md"):
        card.write_text("---\nlicense: mit\n---\n\nMy own words.\n")
    code, _, err = run("push", lora, REPO)
    assert code == 2 and "has a card that loraport did not write" in err and not hub.commits
    code, _, err = run("push", lora, "--card", tmp_path / "README.md")
    assert code == 2 and "loraport did not write it" in err
    assert "My own words." in (tmp_path / "README.md").read_text()


def test_a_pull_request_and_a_new_repository(run, hub, lora, tmp_path):
    code, out, _ = run("push", lora, REPO, "--create-pr")
    assert code == 0 and "discussions/1" in out and hub.commits[0]["proposed"]
    code, _, err = run("push", lora, "someone/new")
    assert code == 2 and "--create" in err and len(hub.commits) == 1
    assert run("push", lora, "someone/new", "--create")[0] == 0
    assert (tmp_path / "repos" / "someone" / "new" / lora.name).is_file()


@pytest.mark.parametrize(
    ("status", "words"),
    {401: "does not accept the token", 403: "--create-pr", 412: "meanwhile", 400: "refuses"}.items(),
)
def test_a_refusal_is_one_sentence(run, hub, lora, status, words):
    hub.refuses["/commit/"] = status
    code, _, err = run("push", lora, REPO, "-q")
    assert code == 2 and words in err and err.startswith("loraport: ") and "Traceback" not in err
    assert not hub.commits


def test_a_card_that_the_hub_finds_invalid_is_not_called_a_missing_network(run, hub, lora):
    hub.refuses["/validate-yaml"] = 400
    code, _, err = run("push", lora, REPO, "-q")
    assert code == 2 and "does not take the card" in err and not hub.commits


def test_without_a_token_a_network_or_a_hub(run, hub, lora, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in run("push", lora, REPO)[2]
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "hf auth login" in run("push", lora, REPO)[2]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in run("push", lora, REPO)[2]
    assert not hub.requests


def test_a_dry_run_prints_the_card_and_the_files_and_asks_nobody(run, hub, lora):
    code, out, _ = run("push", lora, REPO, "--dry-run")
    assert code == 0 and MARK in out and "loraport.json" in out and not hub.requests


def test_nothing_is_published_without_a_licence(run, tmp_path):
    bare = write_lora(tmp_path / "bare.safetensors", license=None)
    code, _, err = run("push", bare, REPO, "--dry-run")
    assert code == 2 and "--license" in err
    out = run("push", bare, REPO, "--dry-run", "--license", "My Own 1.0", "--json")[1]
    data = ModelCard(json.loads(out)["card"]).data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "my-own-1.0")


def test_models_that_are_no_place_on_the_hub_are_said_or_named(run, tmp_path):
    local = write_lora(tmp_path / "x.safetensors", **{"loraport.target": "mine", "loraport.source": "base"})
    told = json.loads(run("push", local, REPO, "--dry-run", "--json")[1])
    assert "base_model" not in ModelCard(told["card"]).data.to_dict() and len(told["notes"]) == 2
    told = json.loads(run("push", local, REPO, "--dry-run", "--json", "--source", "me/base")[1])
    assert "base_model" not in ModelCard(told["card"]).data.to_dict()  # or the Hub would offer it for the source
    named = ("--target", "me/fast", "--source", "me/base")
    told = json.loads(run("push", local, REPO, "--dry-run", "--json", *named)[1])
    assert ModelCard(told["card"]).data.base_model == ["me/fast", "me/base"] and told["notes"] == []


def test_accelerators_on_the_hub_are_linked(run, tmp_path):
    """By what the file says of where they were fetched, else by the name of a published file."""
    rows = [
        {"name": "speed.safetensors", "strength": 1.0, "hub": "org/speed@main:loras/speed.safetensors"},
        {"name": "wan2.1_t2v_14b_lora_rank64_lightx2v_4step.safetensors", "strength": 0.5},
        {"name": "mine.safetensors", "strength": 0.5, "hub": "javascript:alert(1)"},
    ]
    fields = {"loraport.accelerators": json.dumps(rows), "loraport.target": "wan2.1-t2v-1.3b"}
    local = write_lora(tmp_path / "x.safetensors", **fields)
    told = json.loads(run("push", local, REPO, "--dry-run", "--json")[1])
    assert "`speed.safetensors` of [org/speed](https://huggingface.co/org/speed) at strength 1" in told["card"]
    assert "of [lightx2v/Wan2.1-Distill-Loras](https://huggingface.co/lightx2v/Wan2.1-Distill-Loras)" in told["card"]
    assert "and `mine.safetensors` at strength 0.5 beside it" in told["card"] and "javascript" not in told["card"]


def test_beside_an_accelerator_the_model_is_the_source_and_the_accelerator_is_named(run, tmp_path):
    beside = {"loraport.accelerator": "acc.safetensors", "loraport.accelerator_strength": "0.8"}
    target = {"loraport.target": "wan2.1-t2v-1.3b+acc.safetensors"}
    lora = write_lora(tmp_path / "x.safetensors", **target, **beside)
    told = json.loads(run("push", lora, REPO, "--dry-run", "--json")[1])
    assert ModelCard(told["card"]).data.base_model == BASE[1:] and told["notes"] == []
    assert "with `acc.safetensors` at strength 0.8 beside it" in told["card"]


@pytest.mark.parametrize(
    ("more", "words"),
    {
        (): "name a repository",
        ("no-slash",): "is no repository of the Hub",
        (REPO, "--evaluation", "x"): "needs --compare",
        ("--card", "x.md", "--create"): "do nothing without a repository",
        (REPO, "--report", "none.html"): "is not a page",
        (REPO, "--compare", "none"): "no comparison wrote it",
        (REPO, "--target", "C:/x/y"): "neither a Hub id",
    }.items(),
)
def test_bad_input_is_one_sentence(run, lora, more, words):
    code, _, err = run("push", lora, *more)
    assert code == 2 and words in " ".join(err.split())


def test_a_lora_that_was_not_moved_has_nothing_to_say(run, tmp_path):
    trained = write_lora(tmp_path / "t.safetensors", **{"loraport.method": None})
    assert "does not say that `loraport transfer` wrote it" in run("push", trained, REPO)[2]
    assert "does not exist" in run("push", tmp_path / "none.safetensors", REPO)[2]


def test_clips_and_numbers_stand_beside_those_of_direct_reuse(run, hub, lora, comparison, tmp_path):
    assert (
        run("evaluate", comparison, "-o", tmp_path / "out", "--cache", tmp_path / "c", "--metrics", "psnr,sharpness")[0]
        == 0
    )
    measured = ("--compare", comparison, "--evaluation", tmp_path / "out")
    code, out, err = run("push", lora, REPO, *measured, "--json")
    assert code == 0, err
    card = json.loads(out)["card"]
    assert "(this file)" in card and "against `direct`" in card and "was not measured" not in card
    assert not [line for line in card.splitlines() if line.endswith((", ", ", None"))]  # a metric without a better way
    widget = ModelCard(card).data.to_dict()["widget"]
    assert len(widget) == 2
    first = tmp_path / "repos" / REPO / widget[0]["output"]["url"]
    assert first.read_bytes() == b"clips/casa/00-0.mkv"


@pytest.mark.parametrize("fault", ["another LoRA", "outside"])
def test_clips_of_another_lora_or_from_outside_are_never_published(run, hub, lora, comparison, tmp_path, fault):
    place = comparison / "manifest.json"
    manifest = json.loads(place.read_text())
    if fault == "outside":
        (tmp_path / "secret.png").write_bytes(b"mine")
        for row in manifest["clips"]:
            row["look"] = "../secret.png"
    else:
        manifest["lora"]["sha256"] = "d" * 64
    place.write_text(json.dumps(manifest))
    code, _, err = run("push", lora, REPO, "--compare", comparison)
    words = {"outside": "not one inside it", "another LoRA": "has no column of noir-fast.safetensors"}
    assert code == 2 and words[fault] in " ".join(err.split()) and not hub.commits
