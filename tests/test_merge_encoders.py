"""Text encoders in a merge: in single files in both spellings, as diffusers reads them back, and beside a network."""

import shutil

import pytest
import torch
import transformers
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from safetensors.torch import load_file, save_file

from loraport.errors import InputError, MismatchError
from loraport.merging import merge

NETWORKS = [
    f"model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn{n}.to_{x}.weight" for n in (1, 2) for x in "qkv"
]
NETWORK = NETWORKS[3]
KOHYA_NETWORK = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_q"
BLOCK = "text_model.encoder.layers.{}"
WIDTH, BLOCKS = 8, 2


def encoder():
    """The parameters of a tiny CLIP with a projection, by transformers' names since it had any."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=WIDTH, intermediate_size=12, num_hidden_layers=BLOCKS, num_attention_heads=2)
    config = transformers.CLIPTextConfig(vocab_size=20, max_position_embeddings=6, projection_dim=WIDTH, **sizes)
    state = transformers.CLIPTextModelWithProjection(config).state_dict()
    return {name: torch.randn(value.shape) for name, value in state.items() if value.is_floating_point()}


def open_clip(state):
    """The same in OpenCLIP's names, written out by hand."""
    found = {
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
    }
    for leaf in ("weight", "bias"):
        found[f"ln_final.{leaf}"] = state[f"text_model.final_layer_norm.{leaf}"]
        for n in range(BLOCKS):
            old, new = BLOCK.format(n), f"transformer.resblocks.{n}"
            rows = [state[f"{old}.self_attn.{letter}_proj.{leaf}"] for letter in "qkv"]
            found[f"{new}.attn.in_proj_{leaf}"] = torch.cat(rows)
            found[f"{new}.attn.out_proj.{leaf}"] = state[f"{old}.self_attn.out_proj.{leaf}"]
            for mine, theirs in (("fc1", "c_fc"), ("fc2", "c_proj")):
                found[f"{new}.mlp.{theirs}.{leaf}"] = state[f"{old}.mlp.{mine}.{leaf}"]
            for number in "12":
                found[f"{new}.ln_{number}.{leaf}"] = state[f"{old}.layer_norm{number}.{leaf}"]
    return found


def read_back(file, home):
    """An encoder of a single file by transformers' names; OpenCLIP's as diffusers converts them.

    Of Stable Diffusion 2 it leaves out the projection, which is not used there.
    """
    if home in ("conditioner.embedders.1.model.", "cond_stage_model.model."):
        model = type("Model", (), {"config": type("Config", (), {"hidden_size": WIDTH})})
        return convert_open_clip_checkpoint(model, dict(file), prefix=home)
    return {key.removeprefix(home): value for key, value in file.items() if key.startswith(home)}


HOMES = {
    "cond_stage_model.transformer.": "lora_te_",
    "cond_stage_model.model.": "lora_te_",
    "conditioner.embedders.0.transformer.": "lora_te1_",
    "conditioner.embedders.1.model.": "lora_te2_",
    "text_encoders.clip_g.transformer.": "lora_te2_",
}
LAYERS = (
    *(f"{BLOCK.format(n)}.self_attn.{letter}_proj" for n in range(BLOCKS) for letter in ("q", "v", "out")),
    *(f"{BLOCK.format(1)}.mlp.{layer}" for layer in ("fc1", "fc2")),
    "text_model.embeddings.position_embedding",
    "text_projection",
)


def lora_of(prefix, state, seed=1):
    """(tensors, {parameter: what they add}): factors with an alpha, and differences of a norm and a bias."""
    g = torch.Generator().manual_seed(seed)
    tensors, added = {}, {}
    for name in LAYERS:
        out, inn = state[f"{name}.weight"].shape
        A, B = torch.randn(2, inn, generator=g), torch.randn(out, 2, generator=g)
        stem = prefix + name.replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": A, f"{stem}.lora_up.weight": B, f"{stem}.alpha": torch.tensor(3.0)}
        added[f"{name}.weight"] = 1.5 * B @ A
    norm, query = f"{BLOCK.format(0)}.layer_norm1", f"{BLOCK.format(0)}.self_attn.q_proj"
    for name, ending, leaf in ((norm, "diff", "weight"), (query, "diff_b", "bias")):
        added[f"{name}.{leaf}"] = torch.randn(state[f"{name}.{leaf}"].shape, generator=g)
        tensors[f"{prefix}{name.replace('.', '_')}.{ending}"] = added[f"{name}.{leaf}"]
    return tensors, added


def single_file(path, homes, more=None):
    """A network and encoders; another text encoder and an autoencoder beside them."""
    state = encoder()
    tensors = dict.fromkeys(NETWORKS, torch.ones(WIDTH, WIDTH)) | {
        "first_stage_model.decoder.conv_in.weight": torch.ones(4, 4)
    }
    for home in homes:
        spelled = open_clip(state) if home.endswith(".model.") else state
        tensors |= {home + name: value.clone().contiguous() for name, value in spelled.items()}
    save_file({key: value.clone() for key, value in (tensors | (more or {})).items()}, path)
    return state


def network():
    return {
        f"{KOHYA_NETWORK}.lora_down.weight": torch.ones(1, WIDTH),
        f"{KOHYA_NETWORK}.lora_up.weight": torch.ones(WIDTH, 1),
    }


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("alone", [False, True])
def test_every_layer_is_added_where_the_file_holds_it(home, alone, tmp_path):
    state = single_file(tmp_path / "model.safetensors", [home])
    tensors, added = lora_of(HOMES[home], state)
    save_file(tensors if alone else tensors | network(), tmp_path / "lora.safetensors")
    done = merge(
        str(tmp_path / "model.safetensors"), [str(tmp_path / "lora.safetensors")], str(tmp_path / "o.safetensors")
    )
    assert not done.lost and done.keys.counts["merged"] == len(tensors) + (0 if alone else 2)
    before, after = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "o.safetensors")
    assert before.keys() == after.keys()
    torch.testing.assert_close(after[NETWORK], before[NETWORK] + (0 if alone else 1))
    found = read_back(after, home)
    unread = {"text_projection.weight"} if home == "cond_stage_model.model." else set()
    assert added.keys() - unread < found.keys() == state.keys() - unread
    for name, value in state.items() if not unread else ((name, state[name]) for name in found):
        torch.testing.assert_close(found[name], value + added.get(name, 0))
        assert name in added or torch.equal(found[name], value)


def test_the_two_encoders_of_one_file_are_not_confused(tmp_path):
    homes = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
    state = single_file(tmp_path / "model.safetensors", homes)
    loras = [lora_of(HOMES[home], state, seed) for seed, home in enumerate(homes)]
    save_file(loras[0][0] | loras[1][0], tmp_path / "lora.safetensors")
    place = f"{tmp_path / 'lora.safetensors'}*0.5"
    done = merge(str(tmp_path / "model.safetensors"), [place], str(tmp_path / "o.safetensors"))
    assert not done.lost
    after = load_file(tmp_path / "o.safetensors")
    for home, (_, added) in zip(homes, loras, strict=True):
        for name, value in read_back(after, home).items():
            torch.testing.assert_close(value, state[name] + 0.5 * added.get(name, torch.zeros(())))


def test_a_file_without_one_says_so(tmp_path):
    state = single_file(tmp_path / "model.safetensors", [])
    tensors, _ = lora_of("lora_te_", state)
    save_file(tensors | network(), tmp_path / "lora.safetensors")
    done = merge(
        str(tmp_path / "model.safetensors"), [str(tmp_path / "lora.safetensors")], str(tmp_path / "o.safetensors")
    )
    assert {key for key, _ in done.keys.dropped} == set(tensors)
    assert all("holds none" in reason for _, reason in done.keys.dropped)
    save_file(tensors, tmp_path / "te.safetensors")
    with pytest.raises(MismatchError, match=r"text encoders alone, and .* holds none of their layers"):
        merge(str(tmp_path / "model.safetensors"), [str(tmp_path / "te.safetensors")], str(tmp_path / "p.safetensors"))


def test_an_encoder_in_a_pipeline_is_a_part_of_its_own(tmp_path):
    """Merged with the network it is left out, by a true reason that says how; as the part that is named, it is not."""
    state = single_file(tmp_path / "model.safetensors", [])
    for part in ("unet", "text_encoder", "text_encoder_2"):
        (tmp_path / "pipe" / part).mkdir(parents=True)
        (tmp_path / "pipe" / part / "config.json").write_text("{}")
    (tmp_path / "pipe/model_index.json").write_text("{}")
    shutil.copyfile(tmp_path / "model.safetensors", tmp_path / "pipe/unet/diffusion_pytorch_model.safetensors")
    spelled = {"text_encoder": state, "text_encoder_2": {k.removeprefix("text_model."): v for k, v in state.items()}}
    for part, tensors in spelled.items():
        save_file(tensors, tmp_path / "pipe" / part / "model.safetensors")
    tensors, added = {}, {}
    for part, prefix in (("text_encoder", "lora_te1_"), ("text_encoder_2", "lora_te2_")):
        of_part, added[part] = lora_of(prefix, state, len(part))
        tensors |= of_part
    save_file(tensors | network(), tmp_path / "lora.safetensors")
    lora = str(tmp_path / "lora.safetensors")
    done = merge(str(tmp_path / "pipe"), [f"{lora}*0.5"], str(tmp_path / "merged"))
    assert {key for key, _ in done.keys.dropped} == set(tensors)
    for key, reason in done.keys.dropped:
        part = "text_encoder_2" if key.startswith("lora_te2_") else "text_encoder"
        assert f"merge {tmp_path / 'pipe' / part} {lora}*0.5 " in reason
    for part, start in (("text_encoder", ""), ("text_encoder_2", "text_model.")):
        done = merge(str(tmp_path / "pipe" / part), [lora], str(tmp_path / part))
        after = load_file(tmp_path / part / "model.safetensors")
        for name, value in after.items():
            name = name if name in state else start + name
            torch.testing.assert_close(value, state[name] + added[part].get(name, torch.zeros(())))
        assert len(done.keys.dropped) == 2 + len(tensors) // 2


def test_codes_that_do_not_change_are_copied_with_their_scales(tmp_path):
    """A scaled fp8 encoder beside a network of values; the same encoder refuses what would change it."""
    home = "conditioner.embedders.0.transformer."
    layer = f"{home}{BLOCK.format(1)}.mlp.fc1"
    codes = {
        f"{layer}.weight": torch.randn(12, WIDTH).to(torch.float8_e4m3fn),
        f"{layer}.scale_weight": torch.tensor(0.5),
    }
    state = single_file(tmp_path / "model.safetensors", [], codes)
    save_file(network(), tmp_path / "lora.safetensors")
    model, lora = str(tmp_path / "model.safetensors"), str(tmp_path / "lora.safetensors")
    done = merge(model, [lora], str(tmp_path / "o.safetensors"))
    assert not done.lost and done.changed == 1
    after = load_file(tmp_path / "o.safetensors")
    for key, value in codes.items():
        assert after[key].dtype == value.dtype and torch.equal(after[key].float(), value.float())
    assert float(after[NETWORK].sum()) == 2 * WIDTH * WIDTH
    save_file(lora_of("lora_te1_", state)[0], tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match=r"fc1\.weight is stored as float8_e4m3fn"):
        merge(model, [lora], str(tmp_path / "p.safetensors"))


@pytest.mark.parametrize("home", ["conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."])
def test_nothing_is_added_to_a_plain_cast_to_fp8(home, tmp_path):
    state = single_file(tmp_path / "model.safetensors", [home])
    model = load_file(tmp_path / "model.safetensors")
    cast = {key: value.to(torch.float8_e4m3fn) for key, value in model.items() if key.startswith(home)}
    save_file(model | cast, tmp_path / "model.safetensors")
    tensors = {key: tensor for key, tensor in lora_of(HOMES[home], state)[0].items() if "q_proj.lora" in key}
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match=r"stored as (torch\.)?float8_e4m3fn"):
        merge(
            str(tmp_path / "model.safetensors"), [str(tmp_path / "lora.safetensors")], str(tmp_path / "o.safetensors")
        )
    assert not (tmp_path / "o.safetensors").exists()
