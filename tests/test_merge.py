"""LoRAs baked into checkpoints: sums right to one rounding, all else bit by bit, and diffusers runs the result."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loraport.errors import InputError, LoraportError, MismatchError, OutputError, SettingsError
from loraport.files.accelerator_names import file_of
from loraport.files.lora.read import read_lora
from loraport.files.models.checkpoint import open_checkpoint
from loraport.files.strength import split_strength
from loraport.inputs.accelerator import AcceleratedModel, open_target
from loraport.merging import MERGED, merge
from loraport.transfers.run import transfer
from tests import tiny
from tests.dialects import CASES, write
from tests.progress import Reports
from tests.transfers.models import make_family


@pytest.fixture
def family(tmp_path):
    return make_family(tmp_path)


def state_of(place) -> dict[str, torch.Tensor]:
    """Every parameter under its canonical name."""
    model = open_checkpoint(place)
    return {name: model.tensor(name) for name in model}


def expected(state, factors, strength=1.0):
    """W + strength · B·A in float64."""
    moved = {name: tensor.double() for name, tensor in state.items()}
    for layer, (B, A) in factors.items():
        name = f"{layer}.weight"
        moved[name] = moved[name] + strength * (B.double() @ A.double()).reshape(moved[name].shape)
    return moved


def assert_within_rounding(got, wanted, dtype):
    step = torch.finfo(dtype).eps
    for name, tensor in wanted.items():
        assert got[name].dtype == dtype
        error = (got[name].double() - tensor).abs()
        assert bool((error <= 0.51 * step * tensor.abs() + 4e-7 * (1 + tensor.abs())).all()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strength", [1.0, -0.4])
def test_the_sum_is_rounded_once_and_the_rest_is_untouched(family, tmp_path, dtype, strength):
    state = tiny.tiny_state(0, dtype=dtype)
    place = tiny.write_original(tmp_path / "model.safetensors", state, prefix="model.diffusion_model.")
    done = merge(str(place), [f"{family.lora}*{strength}"], str(tmp_path / "out.safetensors"))
    before, after = load_file(place), load_file(tmp_path / "out.safetensors")
    assert set(before) == set(after)
    merged = state_of(tmp_path / "out.safetensors")
    assert_within_rounding(merged, expected(state, family.factors, strength), dtype)
    for name, tensor in state.items():
        assert torch.equal(merged[name], tensor) == (name.removesuffix(".weight") not in family.factors), name
    assert (done.changed, done.parameters, done.files) == (20, len(state), 1)
    assert done.keys.as_json() == {"in": 40, "merged": 40, "dropped": []} and not done.lost
    json.dumps(done.as_json())


def test_minus_one_after_plus_one_gives_the_model_back(family, tmp_path):
    one, two = str(tmp_path / "one.safetensors"), str(tmp_path / "two.safetensors")
    merge(family.source, [family.lora], one)
    merge(one, [f"{family.lora}*-1"], two)
    back = state_of(two)
    assert all(float((back[name] - tensor).abs().max()) < 1e-6 for name, tensor in family.source_state.items())
    assert float((state_of(one)["blocks.0.ffn.0.weight"] - back["blocks.0.ffn.0.weight"]).abs().max()) > 1e-3
    with safe_open(two, "pt") as file:
        steps = json.loads(file.metadata()[MERGED])
    assert [step["loras"][0]["strength"] for step in steps] == [1.0, -1.0]
    assert steps[0]["loras"][0]["sha256"] == hashlib.sha256(Path(family.lora).read_bytes()).hexdigest()


def test_several_loras_are_summed_before_the_one_rounding(family, tmp_path):
    state = tiny.tiny_state(0, dtype=torch.bfloat16)
    place = tiny.write_original(tmp_path / "model.safetensors", state)
    other = tiny.lora_factors(family.source_state, seed=9, rank=3)
    second = tiny.write_lora(tmp_path / "second.safetensors", other)
    done = merge(str(place), [f"{family.lora}*0.5", f"{second}*2"], str(tmp_path / "out.safetensors"))
    wanted = expected(expected(state, family.factors, 0.5), other, 2)
    assert_within_rounding(state_of(tmp_path / "out.safetensors"), wanted, torch.bfloat16)
    assert [one["strength"] for one in done.loras] == [0.5, 2.0] and done.keys.total == 80


@pytest.mark.parametrize("shards", [1, 3])
def test_a_real_diffusers_model_loads_the_folder(tmp_path, shards):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2
    )
    model.save_pretrained(tmp_path / "wan" / "transformer", max_shard_size="70KB" if shards > 1 else "1GB")
    (tmp_path / "wan" / "model_index.json").write_text("{}")
    given = write(CASES["g5"], tmp_path)
    done = merge(str(tmp_path / "wan"), [str(given.path)], str(tmp_path / "out"))
    files = {path.name for path in (tmp_path / "wan" / "transformer").iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files and "config.json" in files
    assert (done.files > 1) == (shards > 1) == any(name.endswith("index.json") for name in files)
    loaded = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "out", dtype=torch.float32)
    names = {open_checkpoint(tmp_path / "out").key(f"{layer}.weight"): delta for layer, delta in given.deltas.items()}
    for key, tensor in model.state_dict().items():
        wanted = tensor.double() + names.get(key, 0)
        assert torch.equal(loaded.state_dict()[key], tensor) == (key not in names)
        assert float((loaded.state_dict()[key].double() - wanted).abs().max()) <= 1e-6 * float(1 + wanted.abs().max())
    assert done.changed == len(names) == 20 and "takes the place of transformer/" in done.notes[0]


def test_shards_index_and_config_are_the_inputs(family, tmp_path):
    place = tiny.write_diffusers(tmp_path / "wan", family.source_state, shards=3)
    merge(str(place / "transformer"), [family.lora], str(tmp_path / "out"))
    inside = {path.name: path.read_bytes() for path in (place / "transformer").iterdir()}
    outside = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(inside) == set(outside) and len(inside) == 5
    same = {name for name in inside if inside[name] == outside[name]}
    assert same == {"config.json", "diffusion_pytorch_model.safetensors.index.json"}
    for name in set(inside) - same:
        assert set(load_file(place / "transformer" / name)) == set(load_file(tmp_path / "out" / name))


def test_a_pickle_becomes_safetensors_with_its_stored_keys(family, tmp_path):
    parts = {"generator": family.target_state, "generator_ema": family.source_state}
    place = tiny.write_pickle(tmp_path / "model.pt", parts)
    done = merge(str(place), [family.lora], str(tmp_path / "out.safetensors"))
    stored = torch.load(place, weights_only=True)["generator_ema"]
    assert set(load_file(tmp_path / "out.safetensors")) == set(stored) and "generator_ema" in done.notes[0]
    wanted = expected(family.source_state, family.factors)
    assert_within_rounding(state_of(tmp_path / "out.safetensors"), wanted, torch.float32)
    with pytest.raises(OutputError, match=r"no \.safetensors ending"):
        merge(str(place), [family.lora], str(tmp_path / "out.pt"))


def test_differences_and_biases_are_added_and_convolutions_too(family, tmp_path):
    head = "diffusion_model."
    W = family.source_state
    extra = {
        "blocks.0.self_attn.q.diff": torch.full((24, 24), 0.5),
        "blocks.0.self_attn.q.diff_b": torch.full((24,), 0.25),
        "blocks.0.norm3.diff": torch.full((24,), 2.0),
        "blocks.1.diff_m": torch.full((1, 6, 24), 3.0),
        "patch_embedding.lora_A.weight": torch.ones(1, 4, 1, 2, 2),
        "patch_embedding.lora_B.weight": torch.ones(24, 1, 1, 1, 1),
    }
    path = tmp_path / "extras.safetensors"
    save_file(load_file(family.lora) | {head + key: tensor for key, tensor in extra.items()}, path)
    done = merge(family.source, [f"{path}*2"], str(tmp_path / "out.safetensors"))
    got, wanted = state_of(tmp_path / "out.safetensors"), expected(W, family.factors, 2)
    wanted["blocks.0.self_attn.q.weight"] += 1
    wanted["blocks.0.self_attn.q.bias"] += 0.5
    wanted["blocks.0.norm3.weight"] += 4
    wanted["blocks.1.modulation"] += 6
    wanted["patch_embedding.weight"] += 2
    assert_within_rounding(got, wanted, torch.float32)
    assert not done.lost and done.keys.counts["merged"] == 46


def test_a_dense_transfer_can_be_merged(family, tmp_path):
    transfer(family.config(as_diff=True, method="direct"))
    merge(family.target, [str(tmp_path / "out.safetensors")], str(tmp_path / "merged"))
    assert_within_rounding(state_of(tmp_path / "merged"), expected(family.target_state, family.factors), torch.float32)


def test_flattened_names_are_looked_up_in_the_model(tmp_path):
    state = {f"odd_part.layer_{number}.weight": torch.zeros(4, 4) for number in range(2)}
    place = tiny.write_original(tmp_path / "model.safetensors", state)
    key = "lora_unet_odd_part_layer_1.lora_"
    save_file({key + "down.weight": torch.ones(1, 4), key + "up.weight": torch.ones(4, 1)}, tmp_path / "l.safetensors")
    merge(str(place), [str(tmp_path / "l.safetensors")], str(tmp_path / "out.safetensors"))
    merged = load_file(tmp_path / "out.safetensors")
    assert [float(tensor.sum()) for _, tensor in sorted(merged.items())] == [0, 16]


def test_what_the_model_lacks_is_dropped_with_the_reason(family, tmp_path):
    tensors = load_file(family.lora)
    lacking = {
        "diffusion_model.blocks.9.ffn.0.lora_A.weight": torch.ones(4, 24),
        "diffusion_model.blocks.9.ffn.0.lora_B.weight": torch.ones(40, 4),
        "diffusion_model.blocks.0.ffn.7.diff": torch.ones(3),
        "lora_te1_x.lora_down.weight": torch.ones(1, 2),
    }
    save_file(tensors | lacking, tmp_path / "more.safetensors")
    done = merge(family.source, [str(tmp_path / "more.safetensors")], str(tmp_path / "out.safetensors"))
    assert done.lost and {key for key, _ in done.keys.dropped} == set(lacking) and done.keys.total == 44
    two = merge(family.source, [str(tmp_path / "more.safetensors"), family.lora], str(tmp_path / "two.safetensors"))
    assert two.keys.dropped[0][0].startswith("more.safetensors: ")


def test_the_same_bytes_every_time(family, tmp_path):
    for name in ("a", "b"):
        merge(family.source, [family.lora], str(tmp_path / f"{name}.safetensors"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_stale_hashes_go_and_the_rest_of_the_header_stays(family, tmp_path):
    metadata = {"modelspec.title": "kept", "modelspec.hash_sha256": "0x00", "sshs_model_hash": "00"}
    save_file(load_file(family.source), tmp_path / "model.safetensors", metadata=metadata)
    merge(str(tmp_path / "model.safetensors"), [family.lora], str(tmp_path / "out.safetensors"))
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert set(file.metadata()) == {"format", "modelspec.title", MERGED, "loraport.version"}


def test_progress_counts_every_byte(family, tmp_path):
    reports = Reports()
    merge(family.source, [family.lora], str(tmp_path / "o.safetensors"), progress=reports)
    size, done = open_checkpoint(family.source).bytes, [amount for _, amount, _, _ in reports.advanced]
    assert reports.advanced[-1] == ("merging", size, size, "") and done == sorted(done)


@pytest.mark.parametrize("kind", ["factors", "differences"])
def test_one_tensor_is_in_memory_at_a_time(kind, family, tmp_path, monkeypatch):
    """Of the model as of the LoRA: dense differences are as large as the model."""
    from loraport.files.formats import safetensors_read as safetensors_files

    alive, most, real = [], [], safetensors_files.ByteReader.__call__

    def reading(self):
        import weakref

        tensor = real(self)
        alive[:] = [one for one in alive if one() is not None] + [weakref.ref(tensor)]
        most.append(len(alive))
        return tensor

    place = tiny.write_original(tmp_path / "m.safetensors", family.source_state)
    lora = tiny.write_lora(tmp_path / "l.safetensors", family.factors)
    if kind == "differences":
        dense = {f"diffusion_model.{name}.diff": B @ A for name, (B, A) in family.factors.items()}
        save_file(dense, lora)
    monkeypatch.setattr(safetensors_files.ByteReader, "__call__", reading)
    merge(str(place), [str(lora)], str(tmp_path / "o.safetensors"))
    assert len(most) > len(family.source_state) and max(most) <= (5 if kind == "factors" else 3)
    target = open_target(f"source+{lora}", open_checkpoint(str(place)))
    assert isinstance(target, AcceleratedModel) and len(target.weights) == len(family.factors)
    assert len([one for one in alive if one() is not None]) <= 2


@pytest.mark.parametrize("text", ["x*", "x*much", "x*nan", "x*inf", "*2"])
def test_bad_strengths(text):
    with pytest.raises(SettingsError, match=r"is not a valid strength; write LORA\*0\.8"):
        split_strength(text)


def test_strengths_and_paths_with_a_star(tmp_path):
    (tmp_path / "we*2").touch()
    assert split_strength(str(tmp_path / "we*2")) == (str(tmp_path / "we*2"), 1.0)
    assert split_strength(str(tmp_path / "we*2*-.5")) == (str(tmp_path / "we*2"), -0.5)
    assert split_strength("a.safetensors") == ("a.safetensors", 1.0)
    assert split_strength("org/repo:x.safetensors*1e-1") == ("org/repo:x.safetensors", 0.1)


def test_wrong_usage_is_one_message_and_writes_nothing(family, tmp_path):
    big = str(tiny.write_lora(tmp_path / "big.safetensors", tiny.lora_factors(tiny.tiny_state(0, dim=48))))
    odd = str(tiny.write_lora(tmp_path / "odd.safetensors", {"encoder.0": (torch.ones(4, 2), torch.ones(2, 4))}))
    half = tiny.write_original(tmp_path / "half.safetensors", tiny.tiny_state(0, dtype=torch.float16))
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious.txt").write_text("mine")
    cases = [
        (family.source, [], "o.safetensors", SettingsError, "no LoRA"),
        (family.source, [big], "o.safetensors", MismatchError, "made for another model"),
        (family.source, [family.lora, odd], "o.safetensors", MismatchError, "no layer of .*odd"),
        (family.source, [family.source], "o.safetensors", InputError, "model checkpoint, not a LoRA"),
        (family.source, [family.lora + "*x"], "o.safetensors", SettingsError, "is not a valid strength"),
        (family.source, [family.lora + "gone"], "o.safetensors", InputError, "does not exist"),
        (str(half), [family.lora + "*1e9"], "o.safetensors", InputError, "not finite in torch.float16"),
        (family.source, [family.lora], "o.bin", OutputError, "no .safetensors ending"),
        (family.source, [family.lora], "full", OutputError, "is a folder, but this result is one file"),
        (family.source, [family.lora], "source.safetensors", OutputError, "is an input"),
        (family.source, [family.lora], "lora.safetensors", OutputError, "is an input"),
        (family.target, [family.lora], "full", OutputError, "is a folder with other files in it"),
        (family.target, [family.lora], "o.safetensors", OutputError, "and so is the result"),
        (family.source, [family.lora], f"{half.name}/o.safetensors", OutputError, "cannot be written"),
    ]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for model, loras, output, error, message in cases:
        with pytest.raises(LoraportError, match=message) as refusal:
            merge(model, loras, str(tmp_path / output))
        assert isinstance(refusal.value, error), message
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_empty_folder_is_filled(family, tmp_path):
    (tmp_path / "out").mkdir()
    merge(family.target, [family.lora], str(tmp_path / "out"))
    assert (tmp_path / "out" / "config.json").is_file()


def test_accelerators_by_name_stand_for_their_files(tmp_path, monkeypatch):
    """A stack of two at its own strengths; `inspect` takes the name of a single one."""
    from loraport.files.presets.table import ACCELERATORS

    stack = [place for place, _ in ACCELERATORS["longlive-plug-wan2.1-t2v-14b"].files]
    state = tiny.tiny_state()
    files = {
        place: tiny.write_lora(tmp_path / f"{seed}.safetensors", tiny.lora_factors(state, seed))
        for seed, place in enumerate(stack)
    }
    monkeypatch.setattr("loraport.merging.read_lora", lambda place, **more: read_lora(files.get(place, place), **more))
    model = str(tiny.write_original(tmp_path / "model.safetensors", state))
    merge(model, "longlive-plug-wan2.1-t2v-14b", str(tmp_path / "a.safetensors"))
    merge(model, [str(files[stack[0]]), f"{files[stack[1]]}*0.5"], str(tmp_path / "b.safetensors"))
    named, given = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(torch.equal(named[key], tensor) for key, tensor in given.items())
    assert file_of("dmd2-lora-sdxl") == ACCELERATORS["dmd2-lora-sdxl"].files[0][0] and file_of("x") == "x"
    with pytest.raises(SettingsError, match="is several files; name one"):
        file_of("longlive-plug-wan2.1-t2v-14b")
