"""The nodes that read and write files, run as ComfyUI runs them, in a stand-in of it."""

import inspect
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
from loraport.files.formats.safetensors_read import read_safetensors
from tests import tiny
from tests.comfyui.stand_in import PACKAGE, InterruptProcessingException, ProgressBar

WAN = {"lora": "style.safetensors", "source": "wan.safetensors", "target": "fast.safetensors"}


def test_every_input_is_a_parameter_and_says_what_it_is_for(comfy):
    assert len(comfy.nodes) == 6 and all(name.startswith("Loraport") for name in comfy.nodes)
    for node in comfy.nodes.values():
        schema = node.GET_SCHEMA()
        parameters = list(inspect.signature(node.execute).parameters.values())
        assert [one.id for one in schema.inputs] == [one.name for one in parameters]
        assert [one.optional for one in schema.inputs] == [
            one.default is not inspect.Parameter.empty for one in parameters
        ]
        assert schema.category == "loraport" and schema.description and schema.display_name


def transferred(tmp_path, target="models/diffusion_models/fast.safetensors", **settings):
    """The bytes of the same transfer without ComfyUI."""
    output = tmp_path / "expected.safetensors"
    target = target if target.startswith("source") else str(tmp_path / target)
    lora = tmp_path / "models/loras/style.safetensors"
    loraport.transfer(
        loraport.TransferConfig(lora, tmp_path / "models/diffusion_models/wan.safetensors", target, output, **settings)
    )
    return load_file(output)


def same(path, expected):
    found = load_file(path)
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_transfer_writes_what_loraport_writes_and_says_so(comfy, tmp_path):
    ProgressBar.seen.clear()
    output = comfy.run("LoraportTransfer", **WAN, method="undo:0.25", name="wan/moved", rank="8", dtype="fp32")
    name, path, report = output.result
    assert Path(path) == tmp_path / "models/loras/wan/moved.safetensors" and name == str(Path("wan/moved.safetensors"))
    assert same(path, transferred(tmp_path, method="undo:0.25", rank=8, dtype="fp32"))
    assert report.startswith("style.safetensors by undo:0.25: 10 layers transferred\nLoad wan")
    assert output.ui == {"text": (report,)}
    assert ProgressBar.seen[-1][0] == ProgressBar.seen[-1][1]


def test_the_usual_name_says_what_the_file_is(comfy):
    assert comfy.run("LoraportTransfer", **WAN, method="undo:0.25").args[0] == "style-for-fast-undo_0.25.safetensors"


def test_accelerators_are_the_drift(comfy, tmp_path):
    chain = comfy.run("LoraportAccelerator", lora="accelerator.safetensors", strength=0.8).args[0]
    named = {**WAN, "target": "the source itself", "accelerators": chain, "method": "casa"}
    name, path, report = comfy.run("LoraportTransfer", **named, dtype="fp32").args
    accelerator = tmp_path / "models/loras/accelerator.safetensors"
    assert same(path, transferred(tmp_path, target=f"source+{accelerator}*0.8", dtype="fp32"))
    assert name == "style-for-accelerator-casa.safetensors"
    assert f"Load {name} at strength 1 on the source, with accelerator.safetensors at strength 0.8." in report
    both = comfy.run("LoraportAccelerator", lora="style.safetensors", strength=1.0, accelerators=chain).args[0]
    assert [(one.path.name, one.strength) for one in both] == [
        ("accelerator.safetensors", 0.8), ("style.safetensors", 1.0),
    ]  # fmt: skip


def test_recommend_takes_what_the_diagnosis_says(comfy, tmp_path):
    method, verdict = comfy.run("LoraportDiagnose", **WAN).args
    _, path, report = comfy.run("LoraportTransfer", **WAN, method="recommend").args
    header = read_safetensors(Path(path)).metadata
    assert header["loraport.method"] == method and f"Why this method: {verdict.splitlines()[0][9:]}" in report
    assert comfy.run("LoraportTransfer", **WAN, own_method=method, name="same").args[1].endswith("same.safetensors")


def test_a_transfer_that_is_there_is_used_until_something_changes(comfy, tmp_path):
    named = {**WAN, "method": "direct", "name": "moved"}
    path = Path(comfy.run("LoraportTransfer", **named).args[1])
    first = path.stat().st_mtime_ns
    assert "is there already: the same" in comfy.run("LoraportTransfer", **named).args[2]
    assert path.stat().st_mtime_ns == first
    again = comfy.run("LoraportTransfer", **named, existing="make it again").args[2]
    assert "an earlier transfer, is replaced" in again and path.stat().st_mtime_ns > first
    assert "is replaced" in comfy.run("LoraportTransfer", **{**named, "method": "direct:1.15"}).args[2]
    target = tmp_path / "models/diffusion_models/fast.safetensors"
    state = load_file(target)
    save_file({key: 1.01 * tensor for key, tensor in state.items()}, target)
    assert "is there already" not in comfy.run("LoraportTransfer", **{**named, "method": "direct:1.15"}).args[2]


def test_a_node_runs_again_when_a_file_has_changed(comfy, tmp_path):
    node = comfy.nodes["LoraportTransfer"]
    before = node.fingerprint_inputs(**WAN, method="casa")
    assert before == node.fingerprint_inputs(**WAN, method="direct")
    tiny.write_lora(
        tmp_path / "models/loras/style.safetensors", tiny.lora_factors(tiny.tiny_state(0, blocks=1), 5, rank=2)
    )
    assert node.fingerprint_inputs(**WAN, method="casa") != before
    assert node.fingerprint_inputs(**{**WAN, "lora": "no.safetensors"})
    assert node.fingerprint_inputs(lora=None, source=None, target=None), "what other nodes choose is not known yet"


def test_an_interrupted_transfer_goes_on_where_it_was(comfy, tmp_path):
    comfy.interrupt_after = 4
    with pytest.raises(InterruptProcessingException):
        comfy.run("LoraportTransfer", **WAN, method="casa", name="moved", dtype="fp32")
    output = tmp_path / "models/loras/moved.safetensors"
    assert not output.exists() and output.with_name("moved.safetensors.partial").is_dir()
    ProgressBar.seen.clear()
    comfy.run("LoraportTransfer", **WAN, method="casa", name="moved", dtype="fp32")
    assert ProgressBar.seen[0][0] > 0, "layers of the first start count as done"
    assert same(output, transferred(tmp_path, dtype="fp32")) and not list(output.parent.glob("*.partial"))


WRONG = {
    "no such LoRA": ({"lora": "no.safetensors"}, "is no LoRA in"),
    "a path instead of a choice": ({"lora": "../diffusion_models/wan.safetensors"}, "is no LoRA in"),
    "no source": ({"source": "none"}, "no source is chosen"),
    "no such model": ({"target": "no.safetensors"}, "is no file in ComfyUI/models/diffusion_models or checkpoints"),
    "itself without accelerators": ({"target": "the source itself"}, "connect an Accelerator LoRA"),
    "no such method": ({"method": "magic"}, "unknown method 'magic'"),
    "a number where none belongs": ({"own_method": "casa:3"}, "takes no number"),
    "no such format": ({"format": "peft"}, "is no format"),
    "no such dtype": ({"dtype": "int4"}, "unknown dtype"),
    "no rank": ({"rank": "many"}, "rank 'many' is none of"),
    "no text at all": ({"source": 3}, "'3' is no file"),
    "a list for a format": ({"format": ["comfy"]}, "is no format"),
    "no such way": ({"existing": "perhaps"}, "is no way with files"),
    "no such device": ({"device": "tpu"}, "is no device"),
    "out of the folder": ({"name": "../../moved"}, "leads out of"),
    "an absolute name": ({"name": "/tmp/moved"}, "leads out of"),
    "a drive": ({"name": "C:\\moved"}, "leads out of"),
    "a relative path": ({"source_elsewhere": "models/wan.safetensors"}, "give a whole path"),
    "a path that is not there": ({"source_elsewhere": "/no/such/wan.safetensors"}, "there is no /no/such"),
    "onto an input": ({"name": "style"}, "style.safetensors"),
}


@pytest.mark.parametrize(("inputs", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_before_anything_is_written(comfy, tmp_path, inputs, says):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(loraport.LoraportError) as caught:
        comfy.run("LoraportTransfer", **{**WAN, "method": "direct", **inputs})
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_strangers_file_is_never_replaced(comfy, tmp_path):
    tiny.write_lora(tmp_path / "models/loras/moved.safetensors", tiny.lora_factors(tiny.tiny_state(0, blocks=1), 7))
    before = (tmp_path / "models/loras/moved.safetensors").read_bytes()
    for node, inputs in (("LoraportTransfer", {**WAN, "method": "direct"}), ("LoraportConvert", {"lora": WAN["lora"]})):
        with pytest.raises(loraport.OutputError, match="is there already"):
            comfy.run(node, **inputs, name="moved")
    assert (tmp_path / "models/loras/moved.safetensors").read_bytes() == before


def test_a_place_that_is_clearly_meant_is_taken(comfy, tmp_path):
    aside = tmp_path / "aside" / "wan2.safetensors"
    aside.parent.mkdir()
    tiny.write_original(aside, tiny.tiny_state(0, blocks=1))
    comfy.run("LoraportTransfer", **{**WAN, "source": "none"}, source_elsewhere=str(aside), method="direct")
    places = comfy.part("places")
    for text in ("wan2.1-t2v-1.3b", "Wan-AI/Wan2.1-T2V-1.3B", "org/repo@main:transformer", "toy:base"):
        assert places.place_elsewhere(text, what="source") == text
    for text in ("wan", "./wan", "a/b/c", "org/file.safetensors", "~/wan"):
        with pytest.raises(loraport.SettingsError, match="give a whole path"):
            places.place_elsewhere(text, what="source")


def test_checkpoints_are_models_too(comfy, tmp_path):
    folder = tmp_path / "models/checkpoints"
    tiny.write_original(
        folder / "wan.safetensors", tiny.drifted(tiny.tiny_state(0, blocks=1), 4), prefix="model.diffusion_model."
    )
    options = next(one for one in comfy.nodes["LoraportTransfer"].GET_SCHEMA().inputs if one.id == "target").options
    assert options["options"][-1] == "checkpoints/wan.safetensors"
    path = comfy.run("LoraportTransfer", **{**WAN, "target": "checkpoints/wan.safetensors"}, method="casa").args[1]
    assert Path(path).name == "style-for-wan-casa.safetensors"


def test_a_lora_of_another_model_is_refused_by_recommend_and_diagnosed(comfy, tmp_path):
    strange = tiny.tiny_state(9, blocks=1, dim=32)
    tiny.write_lora(tmp_path / "models/loras/strange.safetensors", tiny.lora_factors(strange))
    method, report = comfy.run("LoraportDiagnose", **{**WAN, "lora": "strange.safetensors"}).args
    assert method == "" and report.startswith("Verdict: not this pair")
    with pytest.raises(loraport.InputError, match="choose a method by its name"):
        comfy.run("LoraportTransfer", **{**WAN, "lora": "strange.safetensors"}, method="recommend")


def test_one_of_several_loras_in_a_file_is_chosen_by_its_name(comfy, tmp_path):
    one = load_file(tmp_path / "models/loras/style.safetensors")
    parts = ("transformer", "transformer_2")
    two = {key.replace("diffusion_model", part): tensor.clone() for part in parts for key, tensor in one.items()}
    save_file(two, tmp_path / "models/loras/two.safetensors")
    named = {**WAN, "lora": "two.safetensors", "method": "direct"}
    with pytest.raises(loraport.InputError, match="choose one with lora_part NAME"):
        comfy.run("LoraportTransfer", **named)
    comfy.run("LoraportTransfer", **named, lora_part="transformer_2")
    assert (
        "fits: " in comfy.run("LoraportDiagnose", **{**WAN, "lora": "two.safetensors"}, lora_part="transformer").args[1]
    )


def test_convert_and_inspect(comfy, tmp_path):
    name, path, report = comfy.run("LoraportConvert", lora="style.safetensors", format="kohya").args
    assert name == "style-kohya.safetensors" and report.startswith("Wrote style-kohya.safetensors: kohya, fp32, 10")
    assert all(key.startswith("lora_unet_") for key in load_file(path))
    assert comfy.run("LoraportConvert", lora="style.safetensors", format="kohya", dtype="bf16").args[0] == name
    (text,) = comfy.run("LoraportInspect", file=name).args
    assert "layers: 10" in text and "ranks: 4 10" in text and "loads in (yes): ComfyUI" in text
    (text,) = comfy.run("LoraportInspect", file="wan.safetensors").args
    assert "kind: model" in text and "family: wan" in text
    (text,) = comfy.run("LoraportInspect", file="", elsewhere=path).args
    assert "kind: LoRA" in text
    for inputs in ({"format": "same"}, {"format": "kohya", "dtype": "int4"}):
        with pytest.raises(loraport.SettingsError):
            comfy.run("LoraportConvert", lora="style.safetensors", **inputs)


def test_what_is_missing_is_said_when_comfyui_starts(comfy, monkeypatch):
    needs = sys.modules[f"{PACKAGE}.needs"]
    needs.check_loraport()
    with monkeypatch.context() as change:
        change.setattr(loraport, "__version__", "9.9.9")
        with pytest.raises(ImportError, match=r"the installed loraport is 9\.9\.9: update both"):
            needs.check_loraport()
    with monkeypatch.context() as change:
        change.setattr(needs, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match="loraport is not installed for the Python that runs ComfyUI"):
            needs.check_loraport()
    monkeypatch.delattr(sys.modules["comfy_api.latest"], "io")
    with pytest.raises(ImportError, match=r"need ComfyUI 0\.3\.48 or newer"):
        needs.check_comfyui()


def test_messages_name_inputs_and_not_options(comfy):
    words = comfy.part("words")
    given = "at rank 8. --rank 32 keeps more, 0.34 MB instead of 0.086 MB; --as diff keeps all, in 0.72 MB"
    assert words.as_inputs(given) == "at rank 8. rank 32 keeps more, 0.34 MB instead of 0.086 MB"
    assert words.as_inputs("a well-known file -- or --source-part") == "a well-known file -- or source_part"


def test_the_facts_of_a_report_are_json_or_words(comfy):
    assert comfy.part("words").facts_text({"a": {"b": [1, 2]}, "c": None}) == "a: b 1, 2"
    assert json.dumps(comfy.run("LoraportInspect", file="wan.safetensors").ui)
