"""What needs no numbers starts without PyTorch: looking at files and names, and refusing what cannot be worked on."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from loraport.files.inspect import describe, layer_lines
from loraport.files.lora.read import read_lora
from tests.dialects import CASES, write
from tests.tiny import drifted, lora_factors, tiny_state, write_lora, write_original

CALLS = """
import contextlib, io, json, sys
from loraport.cli import main
told = {}
for name, words in json.loads(sys.argv[1]).items():
    sys.argv, out, err, code = ["loraport", *words], io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    heavy = sorted({"torch", "scipy", "diffusers", "transformers", "matplotlib", "jinja2"} & set(sys.modules))
    told[name] = (code, out.getvalue(), err.getvalue(), heavy)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What commands say, one after the other in one process, and whether PyTorch had been loaded by then."""
    folder = tmp_path_factory.mktemp("start")
    state = tiny_state()
    lora = write_lora(folder / "lora.safetensors", lora_factors(state))
    model = write_original(folder / "model.safetensors", state)
    target = write_original(folder / "target.safetensors", drifted(state))
    (folder / "damaged.safetensors").write_bytes(lora.read_bytes()[:-1])
    save_file({"lora_unet_blocks_0_ffn_0.oft_blocks": torch.ones(2, 2)}, folder / "oft.safetensors")
    torch.save({"a.lora_A.weight": torch.ones(1, 2), "a.lora_B.weight": torch.ones(2, 1)}, folder / "lora.pt")

    def transfer(lora, source, target):
        places = {"--source": source, "--target": target, "-o": "out.safetensors"}
        return ["transfer", str(lora), *(str(word) for pair in places.items() for word in pair)]

    calls = {
        "presets": ["presets", "--json"],
        "all metrics": ["evaluate", "--list", "--json"],
        "inspect a LoRA": ["inspect", str(lora), "-v", "--json"],
        "inspect a model": ["inspect", str(model), "--json"],
        "inspect nothing": ["inspect", "nothing"],
        "no LoRA": transfer(folder / "none.safetensors", model, model),
        "a damaged LoRA": transfer(folder / "damaged.safetensors", model, model),
        "another adapter": transfer(folder / "oft.safetensors", model, model),
        "a model as a LoRA": transfer(model, model, model),
        "no method": [*transfer(lora, model, target), "--method", "cassa"],
        "no setting of it": [*transfer(lora, model, target), "--method", "undo", "--tau", "3"],
        "no candidate": ["score", "cassa", "--lora", "toy:noir", "--source", "toy:base", "--target", "toy:matched"],
        "no source": transfer(lora, folder / "none.safetensors", model),
        "a LoRA as a target": transfer(lora, model, lora),
        "a damaged target": transfer(lora, model, folder / "damaged.safetensors"),
        "convert": ["convert", str(folder / "damaged.safetensors"), "--to", "comfy", "-o", "out.safetensors"],
        "merge": ["merge", str(folder / "none.safetensors"), str(lora), "-o", "out.safetensors"],
        "analyze": ["analyze", str(lora), "--source", "none.pt", "--target", str(model), "-o", "out"],
        "inspect a pickle": ["inspect", str(folder / "lora.pt"), "--json"],
        "a dry run": [*transfer(lora, model, target), "--dry-run"],
    }
    done = subprocess.run([sys.executable, "-c", CALLS, json.dumps(calls)], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not (folder / "out.safetensors").exists()
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["presets", "all metrics", "inspect a LoRA", "inspect a model"])
def test_looking_loads_no_torch(name, told):
    code, out, err, heavy = told[name]
    assert code == 0 and json.loads(out) and not heavy, err


@pytest.mark.parametrize(
    ("name", "said"),
    {
        "inspect nothing": "nothing does not exist",
        "no LoRA": "none.safetensors does not exist; give a LoRA",
        "a damaged LoRA": "damaged.safetensors is truncated",
        "another adapter": "holds OFT",
        "a model as a LoRA": "is a model checkpoint, not a LoRA",
        "no method": "unknown method 'cassa'",
        "no setting of it": "--tau is a setting of CASA",
        "no candidate": "unknown method or file 'cassa'",
        "no source": "none.safetensors does not exist; give a file, a folder or a Hub id",
        "a LoRA as a target": "is a LoRA, where a model belongs",
        "a damaged target": "damaged.safetensors is truncated",
        "convert": "damaged.safetensors is truncated",
        "merge": "none.safetensors does not exist",
        "analyze": "none.pt does not exist",
    }.items(),
)
def test_refusing_loads_no_torch(name, said, told):
    code, _, err, heavy = told[name]
    assert code == 2 and said in err and err.count("\n") == 1 and not heavy


def test_what_only_torch_can_read_loads_it(told):
    code, out, _, heavy = told["inspect a pickle"]
    assert code == 0 and json.loads(out)["layers"] == 1 and heavy == ["torch"]


def test_a_transfer_begins_with_torch_alone(told):
    code, out, err, heavy = told["a dry run"]
    assert code == 0 and "20 layers" in out and heavy == ["torch"], err


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_outline_says_what_reading_says(case, tmp_path):
    path = write(case, tmp_path).path
    read, outlined = read_lora(path, dense=True), read_lora(path, dense=True, outlines=True)
    assert list(layer_lines(outlined)) == list(layer_lines(read)) and outlined.notes == read.notes
    assert [(one.kernel, one.keys, one.resolved) for one in outlined.layers.values()] == [
        (one.kernel, one.keys, one.resolved) for one in read.layers.values()
    ]
    for name, update in read.updates.items():
        assert torch.equal(outlined.updates[name].dense(), update.dense())


def test_an_outline_of_a_fused_module_is_divided_among_its_layers(tmp_path):
    name = "double_blocks.0.img_attn_qkv.lora"
    save_file(
        {f"{name}_A.weight": torch.ones(2, 9), f"{name}_B.weight": torch.ones(9, 2)}, tmp_path / "lora.safetensors"
    )
    layers = read_lora(tmp_path / "lora.safetensors", outlines=True).layers
    assert [layer.known.shape for layer in layers.values()] == [(3, 9)] * 3
    assert [tuple(layer.update.B.shape) for layer in layers.values()] == [(3, 2)] * 3
    save_file(
        {f"{name}_A.weight": torch.ones(2, 9), f"{name}_B.weight": torch.ones(8, 2)}, tmp_path / "odd.safetensors"
    )
    assert "cannot be divided into 3 equal parts" in describe(str(tmp_path / "odd.safetensors"))["refused"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_seen_without_torch(value, dtype, tmp_path):
    factors = {"a.lora_A.weight": torch.ones(1, 9, dtype=dtype), "a.lora_B.weight": torch.ones(9, 1, dtype=dtype)}
    save_file(factors, tmp_path / "fine.safetensors")
    assert "refused" not in describe(str(tmp_path / "fine.safetensors"))
    factors["a.lora_B.weight"][5] = value
    save_file(factors, tmp_path / "bad.safetensors")
    assert "'a.lora_B.weight' holds NaN or infinite values" in describe(str(tmp_path / "bad.safetensors"))["refused"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64], ids=str)
def test_an_alpha_in_any_dtype_is_read(dtype, tmp_path):
    factors = {"a.lora_A.weight": torch.ones(4, 9), "a.lora_B.weight": torch.zeros(9, 4)}
    save_file(factors | {"a.alpha": torch.tensor(6, dtype=dtype)}, tmp_path / "lora.safetensors")
    facts = describe(str(tmp_path / "lora.safetensors"))
    assert facts["scale"] == {"1.5": 1} and "add nothing" in facts["notes"][0]
