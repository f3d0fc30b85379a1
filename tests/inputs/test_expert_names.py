"""High and low as words in names: which expert they mean, whose twin is where, and what is no such word."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save

from loraport.errors import SettingsError
from loraport.inputs import experts as module
from loraport.inputs.expert_names import HIGH, LOW, name_for, side_of
from loraport.inputs.experts import both, experts

PAIRS = [
    ("wan2.2_i2v_A14b_high_noise_scaled.gguf", "wan2.2_i2v_A14b_low_noise_scaled.gguf"),
    ("Lightning-4steps_HIGH_fp16.safetensors", "Lightning-4steps_LOW_fp16.safetensors"),
    ("T2V-HighNoise-Q4_K_M.safetensors", "T2V-LowNoise-Q4_K_M.safetensors"),
    ("Fun-InP-high-noise-HPS2.1.safetensors", "Fun-InP-low-noise-HPS2.1.safetensors"),
    ("ink-high-v2.safetensors", "ink-low-v2.safetensors"),
    ("Seko-V1-H.safetensors", "Seko-V1-L.safetensors"),
    ("ink_h.safetensors", "ink_l.safetensors"),
    ("ink_HN.safetensors", "ink_LN.safetensors"),
    ("inkHighNoise14B.safetensors", "inkLowNoise14B.safetensors"),
    ("22HIGH2.safetensors", "22LOW2.safetensors"),
    ("high noise ink.safetensors", "low noise ink.safetensors"),
    ("ink_noise_High.safetensors", "ink_noise_Low.safetensors"),
    ("low_poly_HIGH.safetensors", "low_poly_LOW.safetensors"),
    ("Ink_HIGH.safetensors", "ink_low.safetensors"),
]
MODELS = ("wan2.2-t2v-a14b", "wan2.2-t2v-a14b")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Makes files with a LoRA of one layer in a folder of its own, where the test runs."""
    monkeypatch.chdir(tmp_path)
    layer = "diffusion_model.blocks.0.ffn.0.lora_"
    content = save({f"{layer}A.weight": torch.ones(1, 2), f"{layer}B.weight": torch.ones(2, 1)})

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)

    return make


@pytest.mark.parametrize(("high", "low"), PAIRS)
def test_either_finds_the_other_and_a_swapped_pair_is_refused(here, high, low):
    here(high, low)
    for given in (high, low):
        found = experts([given], *MODELS)
        assert [expert.lora.casefold() for expert in found] == [high.casefold(), low.casefold()]
        guessed = [note for expert in found for note in expert.notes]
        assert len(guessed) == 1 and "by its name" in guessed[0]
    assert [expert.lora for expert in experts([high, low], *MODELS)] == [high, low]
    with pytest.raises(SettingsError, match="names say otherwise"):
        experts([low, high], *MODELS)
    assert [place.casefold() for place in both(low)] == [high.casefold(), low.casefold()]
    target = experts([high], MODELS[0], f"source+{high}*0.5")[1]
    assert target.target.casefold() == f"source+{low}*0.5".casefold()


@pytest.mark.parametrize("name", ["slow_noise", "Highlight", "below", "yellow-flow", "Shigh", "glow_fp16", "ink"])
def test_other_words_mean_no_expert(here, name):
    file = f"{name}.safetensors"
    here(file, file.replace("low", "high"), file.replace("igh", "ow"))
    assert side_of(file) is None
    found = experts([file], *MODELS)
    assert [expert.lora for expert in found] == [file, file]
    assert all("serves both experts" in expert.notes[0] for expert in found)
    with pytest.raises(SettingsError, match="no high-noise and low-noise experts found"):
        both(file)


def test_a_twin_is_taken_only_if_it_is_there(here):
    here("ink_HIGH.safetensors", "fast_high_noise.safetensors")
    found = experts(["ink_HIGH.safetensors"], MODELS[0], "source+fast_high_noise.safetensors")
    assert {expert.lora for expert in found} == {"ink_HIGH.safetensors"}
    assert {expert.target for expert in found} == {"source+fast_high_noise.safetensors"}
    assert ["serves both" in note for note in found[1].notes] == [True, True]
    with pytest.raises(SettingsError, match="no high-noise and low-noise experts found"):
        both("ink_HIGH.safetensors")


def test_folders_count_only_where_they_say_nothing_else(here):
    here("high_noise_tests/a_high_noise.gguf", "high_noise_tests/a_low_noise.gguf", "low_noise_tests/a_low_noise.gguf")
    assert both("high_noise_tests/a_high_noise.gguf")[1] == "high_noise_tests/a_low_noise.gguf"
    here("HighNoise/X-HighNoise.gguf", "LowNoise/X-LowNoise.gguf", "high/same.gguf", "low/same.gguf")
    assert both("HighNoise/X-HighNoise.gguf")[1] == "LowNoise/X-LowNoise.gguf"
    assert both("low/same.gguf") == ("high/same.gguf", "low/same.gguf")
    assert both("HighNoise") == ("HighNoise", "LowNoise")
    here("high_noise_only/b.gguf", "low_noise_only/b.gguf")
    with pytest.raises(SettingsError, match="no high-noise and low-noise experts found"):
        both("high_noise_only/b.gguf")
    here("pipe/transformer/model.safetensors", "pipe/transformer_2/model.safetensors")
    assert both("pipe/transformer_2/model.safetensors")[0] == "pipe/transformer/model.safetensors"
    assert both("pipe") == ("pipe/transformer", "pipe/transformer_2")
    here("files/x_HIGH.safetensors", "files/x_LOW.safetensors")
    assert both("files") == ("files/x_HIGH.safetensors", "files/x_LOW.safetensors")
    here("files/y_HIGH.safetensors", "files/y_LOW.safetensors")
    with pytest.raises(SettingsError, match="several pairs"):
        both("files")


def test_one_name_that_says_the_wrong_expert_is_enough(here):
    for wrong in (["a_LOW", "b"], ["a", "b-HighNoise"], ["a_high", "b_HIGH"], ["style_L", "tone_H"]):
        with pytest.raises(SettingsError, match="names say otherwise"):
            experts([f"{name}.safetensors" for name in wrong], *MODELS)
    experts(["size_L.safetensors", "b.safetensors"], *MODELS)  # one letter alone may mean anything


@pytest.mark.parametrize(
    ("given", "high", "low"),
    [
        ("out.safetensors", "out-high_noise.safetensors", "out-low_noise.safetensors"),
        ("out_HIGH_v2.safetensors", "out_HIGH_v2.safetensors", "out_LOW_v2.safetensors"),
        ("low_noise.safetensors", "high_noise.safetensors", "low_noise.safetensors"),
        ("peft-HighNoise", "peft-HighNoise", "peft-LowNoise"),
        ("v1-H.safetensors", "v1-H.safetensors", "v1-L.safetensors"),
        ("size_L.safetensors", "size_L-high_noise.safetensors", "size_L-low_noise.safetensors"),
        ("low_poly.safetensors", "low_poly-high_noise.safetensors", "low_poly-low_noise.safetensors"),
        ("high_LOW.safetensors", "high_LOW-high_noise.safetensors", "high_LOW-low_noise.safetensors"),
    ],
)
def test_outputs(given, high, low):
    assert [name_for(given, side) for side in (HIGH, LOW)] == [high, low]


def test_a_repository_tells_by_its_listing(monkeypatch):
    holds = {
        "a/two": ("transformer/x.safetensors", "transformer_2/x.safetensors", "vae/x.safetensors"),
        "a/one": ("transformer/x.safetensors",),
        "a/files": ("README.md", "s_HIGH.safetensors", "s_LOW.safetensors"),
        "a/Wan-HighNoise": ("x.safetensors",),
        "a/Wan-LowNoise": ("x.safetensors",),
    }
    monkeypatch.setattr(module, "listing", holds.get)
    for place in ("a/two", "a/two:transformer", "a/two:transformer_2"):
        assert both(place) == ("a/two:transformer", "a/two:transformer_2")
    assert both("a/Wan-LowNoise") == ("a/Wan-HighNoise", "a/Wan-LowNoise")
    for place in ("a/one:transformer", "a/one", "a/Wan-high"):
        with pytest.raises(SettingsError, match="no high-noise and low-noise experts found"):
            both(place)
    assert [expert.lora for expert in experts(["a/files"], *MODELS)] == [
        "a/files:s_HIGH.safetensors",
        "a/files:s_LOW.safetensors",
    ]
    assert experts(["a/files:s_HIGH.safetensors"], *MODELS)[1].lora == "a/files:s_LOW.safetensors"
