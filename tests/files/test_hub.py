"""Models and LoRAs on the Hub, against a stand-in for its client: what is fetched, what is refused before that."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from loraport.errors import InputError
from loraport.files.inspect import describe
from loraport.files.lora.read import read_lora
from loraport.files.models.checkpoint import open_checkpoint
from loraport.files.models.hub import fetch_pipeline, looks_like_hub_id
from loraport.sampling.places import find_model
from tests import tiny

STATE = tiny.tiny_state()
FACTORS = tiny.lora_factors(STATE)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub whose repositories are folders in tmp_path/hub; it notes what is asked of it."""
    fake = ModuleType("huggingface_hub")
    fake.asked = []
    fake.constants = SimpleNamespace(HF_HUB_OFFLINE=False)
    root = tmp_path / "hub"

    def listing(repo, revision=None):
        if not (root / repo).is_dir():
            raise OSError("404 Client Error\nRepository Not Found")
        return sorted(str(path.relative_to(root / repo)) for path in (root / repo).rglob("*") if path.is_file())

    def snapshot(repo, revision=None, allow_patterns=("*",), local_files_only=False):
        names = [name for name in listing(repo) if any(fnmatch.fnmatch(name, p) for p in allow_patterns)]
        fake.asked.append((repo, revision, sorted(names), local_files_only))
        return str(root / repo)

    fake.HfApi = lambda: SimpleNamespace(list_repo_files=listing)
    fake.snapshot_download = snapshot
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.chdir(tmp_path)
    fake.root = root
    return fake


def pipeline(root: Path, shards: int = 2) -> Path:
    folder = tiny.write_diffusers(root / "Wan-AI/Wan", STATE, shards=shards)
    for other in ("vae", "text_encoder"):
        (folder / other).mkdir()
        tiny.write_original(folder / other / "model.safetensors", STATE)
    return folder


@pytest.mark.parametrize(
    ("where", "is_one"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B", True),
        ("org/repo@main", True),
        ("org/repo@refs/pr/3:transformer/x.safetensors", True),
        ("gdhe17/Self-Forcing:checkpoints/self_forcing_dmd.pt", True),
        ("models/wan.safetensors", False),
        ("models/wan.pt", False),
        ("wan", False),
        ("/models/wan", False),
        ("../models/wan", False),
        ("a/b/c", False),
        ("C:\\models\\wan", False),
    ],
)
def test_which_strings_are_hub_ids(where, is_one):
    assert looks_like_hub_id(where) is is_one


def test_only_the_network_is_fetched(hub):
    pipeline(hub.root)
    model = open_checkpoint("Wan-AI/Wan@abc")
    assert set(model) == set(STATE)
    [(repo, revision, names, _)] = hub.asked
    assert (repo, revision) == ("Wan-AI/Wan", "abc")
    assert names == [
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
    ]


@pytest.mark.parametrize("inside", ["transformer", "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"])
def test_a_folder_or_a_file_inside_can_be_named(hub, inside):
    pipeline(hub.root)
    assert set(open_checkpoint(f"Wan-AI/Wan:{inside}")) == set(STATE)
    assert sum("safetensors" in name and "index" not in name for name in hub.asked[0][2]) == 2


def test_a_pickle_can_be_named(hub):
    (hub.root / "g/Self-Forcing/checkpoints").mkdir(parents=True)
    for name in ("a.pt", "b.pt"):
        tiny.write_pickle(hub.root / "g/Self-Forcing/checkpoints" / name, {"generator_ema": STATE})
    assert open_checkpoint("g/Self-Forcing:checkpoints/a.pt").part == "generator_ema"
    assert hub.asked[0][2] == ["checkpoints/a.pt"]


def test_ambiguity_is_refused_before_anything_is_fetched(hub):
    tiny.write_diffusers(pipeline(hub.root), STATE, inner="transformer_2")
    with pytest.raises(
        InputError, match=r"several models; name one of: Wan-AI/Wan:transformer, Wan-AI/Wan:transformer_2"
    ):
        open_checkpoint("Wan-AI/Wan")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("no/where", "neither a path here nor a Hub model that can be reached .*404"),
        ("Wan-AI/Wan:unet", "has no folder 'unet'; its weights: .*transformer/"),
        ("Wan-AI/Wan:x.safetensors", "has no file 'x.safetensors'; its weights: .*transformer/"),
        ("Wan-AI/Wan:../../etc", "leaves the repository"),
    ],
)
def test_what_is_not_there_is_named(hub, where, message):
    pipeline(hub.root)
    with pytest.raises(InputError, match=message) as refusal:
        open_checkpoint(where)
    assert "\n" not in str(refusal.value)
    assert hub.asked == []


def test_offline_only_the_local_copy_is_looked_at(hub):
    pipeline(hub.root)
    hub.constants.HF_HUB_OFFLINE = True
    hub.HfApi = None
    assert set(open_checkpoint("Wan-AI/Wan")) == set(STATE)
    assert hub.asked[0][3] is True
    with pytest.raises(InputError, match="'unet' is not in the local copy"):
        open_checkpoint("Wan-AI/Wan:unet")


def test_without_network_the_local_copy_is_taken(hub):
    pipeline(hub.root)

    def unreachable():
        raise ConnectionError("no route to host")

    hub.HfApi = unreachable
    assert set(open_checkpoint("Wan-AI/Wan")) == set(STATE)
    assert hub.asked[0][3] is True


def test_an_existing_path_wins_over_the_hub(hub, tmp_path):
    tiny.write_diffusers(tmp_path / "Wan-AI/Wan", STATE)
    assert set(open_checkpoint("Wan-AI/Wan")) == set(STATE)
    assert hub.asked == []


def test_without_the_client_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'loraport\[hub\]'"):
        open_checkpoint("Wan-AI/Wan")


def test_the_real_client_offline_gives_one_clear_message(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids to fetch it"):
        open_checkpoint("no-such-organisation/no-such-model")


def peft_folder(folder: Path, alpha: int = 8) -> Path:
    """PEFT's two files, and what else people upload."""
    folder.mkdir(parents=True)
    tiny.write_lora(folder / "adapter_model.safetensors", FACTORS, "base_model.model.")
    (folder / "adapter_config.json").write_text(f'{{"r": 4, "lora_alpha": {alpha}}}')
    for other in ("README.md", "sample.mp4", "optimizer.pt"):
        (folder / other).write_text("large")
    return folder


def test_a_lora_is_fetched_with_its_configuration_and_nothing_else(hub):
    peft_folder(hub.root / "me/style")
    lora = read_lora("me/style@v1")
    assert set(lora.layers) == set(FACTORS) and {layer.scale for layer in lora.layers.values()} == {2.0}
    assert hub.asked == [("me/style", "v1", ["adapter_config.json", "adapter_model.safetensors"], False)]


def test_the_only_lora_of_a_repository_or_folder_needs_no_name(hub):
    (hub.root / "me/style/wan").mkdir(parents=True)
    tiny.write_lora(hub.root / "me/style/style.safetensors", FACTORS)
    tiny.write_lora(hub.root / "me/style/wan/other.safetensors", FACTORS)
    assert read_lora("me/style").path.name == "style.safetensors"
    assert read_lora("me/style:wan").path.name == "other.safetensors"
    assert [names for _, _, names, _ in hub.asked] == [["style.safetensors"], ["wan/other.safetensors"]]


def test_of_several_loras_one_has_to_be_named(hub):
    (hub.root / "me/styles").mkdir(parents=True)
    for name in ("high_noise", "low_noise"):
        tiny.write_lora(hub.root / "me/styles" / f"{name}.safetensors", FACTORS)
    message = r"name one of: me/styles:high_noise\.safetensors, me/styles:low_noise\.safetensors"
    with pytest.raises(InputError, match=message):
        read_lora("me/styles")
    assert hub.asked == []
    assert read_lora("me/styles:low_noise.safetensors").path.name == "low_noise.safetensors"
    assert hub.asked[0][2] == ["low_noise.safetensors"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("no/where", "neither a path here nor a Hub model that can be reached .*404"),
        ("me/style:x.safetensors", "me/style has no LoRA at 'x.safetensors'; its files: adapter_model.safetensors"),
        ("me/empty", "me/empty has no LoRA at its top; its files: none"),
        ("me/style:../x", "leaves the repository"),
    ],
)
def test_a_lora_that_is_not_there(hub, where, message):
    peft_folder(hub.root / "me/style")
    (hub.root / "me/empty").mkdir()
    with pytest.raises(InputError, match=message) as refusal:
        read_lora(where)
    assert "\n" not in str(refusal.value) and hub.asked == []


def test_offline_the_local_copy_of_a_lora_is_taken(hub):
    peft_folder(hub.root / "me/style")
    hub.constants.HF_HUB_OFFLINE = True
    hub.HfApi = None
    assert set(read_lora("me/style").layers) == set(FACTORS) and hub.asked[0][3] is True
    with pytest.raises(InputError, match=r"^the local copy of me/style has no LoRA at 'x\.safetensors'"):
        read_lora("me/style:x.safetensors")


def test_inspect_knows_a_lora_from_a_model(hub):
    peft_folder(hub.root / "me/style")
    (hub.root / "me/one").mkdir()
    tiny.write_lora(hub.root / "me/one/style.safetensors", FACTORS)
    pipeline(hub.root)
    kinds = [describe(where)["kind"] for where in ("me/style", "me/one", "me/one:style.safetensors", "Wan-AI/Wan")]
    assert kinds == ["LoRA", "LoRA", "LoRA", "model"]
    assert describe("me/style")["scale"] == {"2": 20}


def test_an_existing_lora_wins_over_the_hub(hub, tmp_path):
    peft_folder(tmp_path / "me/style")
    assert set(read_lora("me/style").layers) == set(FACTORS) and hub.asked == []
    with pytest.raises(InputError, match="does not exist"):
        read_lora(tmp_path / "me/none")


def test_a_copy_that_lacks_other_files_will_do(hub, monkeypatch):
    """Newer clients raise where a repository was fetched in part, which is how it always is here."""
    folder = peft_folder(hub.root / "me/style")
    hub.constants.HF_HUB_OFFLINE = True

    class IncompleteError(Exception):
        snapshot_path = str(folder)

    def incomplete(*_, **__):
        raise IncompleteError

    monkeypatch.setattr(hub, "snapshot_download", incomplete)
    assert set(read_lora("me/style").layers) == set(FACTORS)


@pytest.mark.parametrize("whole", [False, True])
def test_of_a_pipeline_its_own_parts_are_fetched_once_each(hub, whole):
    """No second copy in another format or precision; the VAE's weights only where pictures are made."""
    parts = {
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "tokenizer_2/merges.txt",
        "text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder_2/model.safetensors",
        "guider/guider_config.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
        "transformer_2/diffusion_pytorch_model.fp16.safetensors",
    }  # fmt: skip
    of_vae = {"vae/diffusion_pytorch_model.safetensors"}
    left = {
        "README.md", "sd_xl_base_1.0.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/model.onnx",
        "unet/diffusion_pytorch_model.bin", "vae_decoder/model.onnx", "assets/unet/a.json",
    }  # fmt: skip
    for name in parts | of_vae | left:
        place = hub.root / "org/images" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    assert fetch_pipeline("org/images@main", whole=whole) == hub.root / "org/images"
    [(_, revision, names, _)] = hub.asked
    assert revision == "main" and set(names) == parts | (of_vae if whole else set())
    with pytest.raises(InputError, match="a pipeline is a whole repository"):
        fetch_pipeline("org/images:unet")


def test_a_preset_and_a_repository_are_found_as_what_they_are(hub):
    """A pipeline's preset is the whole pipeline; what is a network alone needs the rest."""
    for name in ("model_index.json", "transformer/config.json"):
        place = hub.root / "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("{}")
    file = hub.root / "krea/krea-realtime-video/krea-realtime-video-14b.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    found = find_model("krea-realtime-14b", source="wan2.1-t2v-1.3b", whole=True)
    assert found.folder == hub.root / "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" and "are the source's" in found.notes[0]
    assert found.network == "krea/krea-realtime-video:krea-realtime-video-14b.safetensors"
    assert find_model("wan2.1-t2v-1.3b").network is None
    assert find_model("krea-realtime-14b", pipeline="wan2.1-t2v-1.3b").notes == ()
    with pytest.raises(InputError, match="it is a network alone"):
        find_model("krea-realtime-14b")
