"""The nodes in ComfyUI itself, where `COMFYUI` names a checkout: files, a MODEL by its own loader, and its page.

`COMFYUI_PYTHON` is the Python that has its requirements, if it is not this one; `COMFYUI_SHOTS` a folder for pictures.
"""

import json
import os
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

import loraport
from tests import tiny
from tests.comfyui.server import ROOT, comfyui, failure
from tests.comfyui.wan_files import ACCELERATOR, BASE, FAST, STYLE, write_files

CHECKOUT = os.environ.get("COMFYUI")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKOUT, reason="COMFYUI names no checkout of ComfyUI: the nodes ran in a stand-in alone"),
]
WORKFLOWS = ROOT / "comfyui" / "example_workflows"
TRANSFER = {
    "lora": STYLE, "source": BASE, "target": FAST, "method": "casa",
    "name": "", "rank": "auto", "format": "same", "dtype": "fp32", "existing": "make it again",
}  # fmt: skip
LAYER = "blocks.1.ffn.0"
CONDITIONS = """
import torch

class Conditions:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "test"

    def make(self):
        return ([[torch.randn(1, 8, 4096, generator=torch.Generator().manual_seed(0)), {}]],)

NODE_CLASS_MAPPINGS = {"RandomConditions": Conditions}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comfyui")
    write_files(folder / "models")
    (folder / "custom_nodes").mkdir()
    (folder / "custom_nodes" / "conditions.py").write_text(CONDITIONS)
    with comfyui(Path(CHECKOUT), folder) as server:
        yield server


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def loras(server):
    return server.folder / "models" / "loras"


def models(server):
    return server.folder / "models" / "diffusion_models"


def delta(path):
    tensors = load_file(path)
    A, B = (tensors[f"diffusion_model.{LAYER}.lora_{factor}.weight"].float() for factor in "AB")
    return B @ A


def saved(server, prefix):
    """The weight in the file that ComfyUI's own node has written of a MODEL."""
    (file,) = (server.folder / "output").glob(f"{prefix}_*.safetensors")
    tensors = load_file(file)
    return next(tensor for key, tensor in tensors.items() if key.endswith(f"{LAYER}.weight")).float()


def test_every_node_is_listed_with_its_choices(server):
    info = server.call("/object_info")
    ours = {name: one for name, one in info.items() if name.startswith("Loraport")}
    assert len(ours) == 6 and all(one["category"] == "loraport" for one in ours.values())
    options = ours["LoraportTransfer"]["input"]["required"]["source"][1]["options"]
    assert options == [FAST, BASE, "none"]


def test_the_examples_are_among_the_templates(server):
    assert sorted(server.call("/workflow_templates")["loraport"]) == sorted(EXAMPLES)
    shown = server.call("/api/workflow_templates/loraport/transfer_lora.json")
    assert shown == json.loads((WORKFLOWS / "transfer_lora.json").read_text())


def test_a_posted_workflow_writes_the_file_that_loraport_writes(server, tmp_path):
    texts = server.run({"1": node("LoraportTransfer", **TRANSFER)})
    written = loras(server) / f"style-for-{Path(FAST).stem}-casa.safetensors"
    expected = tmp_path / "expected.safetensors"
    places = [loras(server) / TRANSFER["lora"], *(models(server) / TRANSFER[name] for name in ("source", "target"))]
    loraport.transfer(loraport.TransferConfig(*places, expected, dtype="fp32"))
    assert load_file(written).keys() == load_file(expected).keys()
    assert all((load_file(written)[key] == tensor).all() for key, tensor in load_file(expected).items())
    assert "20 layers transferred" in texts["1"]
    listed = server.call("/object_info/LoraLoaderModelOnly")["LoraLoaderModelOnly"]["input"]["required"]["lora_name"][0]
    assert written.name in listed, "the new file is offered without a restart"


@pytest.mark.parametrize("change", [{"method": "magic"}, {"lora": "../x.safetensors"}, {"name": "../x"}])
def test_a_wrong_choice_comes_through_the_server_and_is_refused_by_the_node(server, change):
    before = sorted(server.folder.rglob("*.safetensors"))
    message = failure(server.finished(server.queue({"1": node("LoraportTransfer", **{**TRANSFER, **change})})))
    assert message is not None and next(iter(change.values())) in message
    assert sorted(server.folder.rglob("*.safetensors")) == before


def test_diagnose_convert_inspect_and_accelerators(server):
    texts = server.run(
        {
            "1": node("LoraportDiagnose", **{k: TRANSFER[k] for k in ("lora", "source", "target")}, all_layers=False),
            "2": node("LoraportConvert", lora=STYLE, format="kohya", dtype="same", rank="auto", name=""),
            "3": node("LoraportInspect", file=STYLE),
            "4": node("LoraportAccelerator", lora=ACCELERATOR, strength=0.8),
            "5": node("LoraportTransfer", **{**TRANSFER, "target": "the source itself"}, accelerators=["4", 0]),
            "6": node("LoraportTransfer", **{**TRANSFER, "name": "advised"}, own_method=["1", 0]),
        }
    )
    assert (
        texts["1"].startswith("Verdict: ") and texts["2"].startswith("Wrote style-kohya") and "layers: 20" in texts["3"]
    )
    assert f"with {ACCELERATOR} at strength 0.8" in texts["5"] and "20 layers transferred" in texts["6"]


APPLY = {
    "lora": STYLE, "source": BASE, "method": "casa", "rank": "full", "strength": 1.0, "adapter_strength": 1.0,
    "counter_drift_strength": 1.0,
}  # fmt: skip


def apply_graph(unet, prefix, *, before=None, **inputs):
    graph = {
        "1": node("UNETLoader", unet_name=unet, weight_dtype="default"),
        "3": node("LoraportApply", **{**APPLY, **inputs}, model=["1", 0]),
        "4": node("ModelSave", model=["3", 0], filename_prefix=prefix),
    }  # fmt: skip
    if before is not None:
        graph["2"] = node("LoraLoaderModelOnly", model=["1", 0], lora_name=ACCELERATOR, strength_model=before)
        graph["3"]["inputs"]["model"] = ["2", 0]
    return graph


def close(found, expected):
    """ComfyUI writes the sum in bf16, rounded at random: what a weight loses by it is known."""
    return (found - expected).norm() <= 4e-3 * expected.norm()


def expected(server, tmp_path, target, **settings):
    output = tmp_path / "expected.safetensors"
    settings = {"rank": "full", "dtype": "fp32", **settings}
    loraport.transfer(loraport.TransferConfig(loras(server) / STYLE, models(server) / BASE, target, output, **settings))
    return delta(output)


def weight(server, name):
    return load_file(models(server) / name)[f"{LAYER}.weight"].float()


def test_a_model_of_its_own_loader_gets_the_transferred_lora(server, tmp_path):
    texts = server.run(apply_graph(FAST, "applied"))
    added = expected(server, tmp_path, models(server) / FAST)
    fast = weight(server, FAST)
    assert close(saved(server, "applied"), fast + added) and not close(fast, fast + added)
    assert "It is in the MODEL now." in texts["3"]


def test_a_loaded_accelerator_is_a_part_of_the_target(server, tmp_path):
    texts = server.run(apply_graph(BASE, "beside", before=0.8, counter_drift_strength=0.5))
    accelerator = loras(server) / ACCELERATOR
    place = f"source+{accelerator}*0.8"
    added = expected(server, tmp_path, place, part="adapter") + 0.5 * expected(
        server, tmp_path, place, part="counter-drift"
    )
    base = weight(server, BASE) + 0.8 * delta(accelerator)
    assert close(saved(server, "beside"), base + added) and not close(base, base + added)
    assert "changes 20 weights" in texts["3"]


def test_a_model_that_was_sampled_with_is_read_without_its_patches(server, tmp_path):
    """Its weights have the first result in them by then; the second strength starts from what they were before."""
    server.run(apply_graph(FAST, "first", adapter_strength=2.0, counter_drift_strength=2.0))
    server.run(apply_graph(FAST, "second", adapter_strength=0.5, counter_drift_strength=0.5))
    added = expected(server, tmp_path, models(server) / FAST)
    assert close(saved(server, "second"), weight(server, FAST) + 0.5 * added)


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_a_model_that_was_loaded_as_fp8_is_read(server, dtype):
    """Its rounding is no drift: the same model in fp8 has none, so that the LoRA comes back as it is."""
    graph = apply_graph(BASE, dtype)
    graph["1"]["inputs"]["weight_dtype"] = dtype
    graph["4"] = node("PreviewAny", source=["3", 1])
    texts = server.run(graph)
    assert "10 layers transferred" not in texts["3"] and "rounding" in texts["3"], texts["3"]


def test_the_file_goes_on_into_the_lora_loader(server, tmp_path):
    graph = {
        "1": node("LoraportTransfer", **{**TRANSFER, "name": "sub/onward", "rank": "full"}),
        "2": node("UNETLoader", unet_name=FAST, weight_dtype="default"),
        "3": node("LoraLoaderModelOnly", model=["2", 0], lora_name=["1", 0], strength_model=1.0),
        "4": node("ModelSave", model=["3", 0], filename_prefix="onward"),
    }
    server.run(graph)
    added = expected(server, tmp_path, models(server) / FAST)
    assert close(saved(server, "onward"), weight(server, FAST) + added)


EXAMPLES = ["transfer_lora", "apply_transferred_lora"]
WEIGHTS = {"CLIPLoader", "CLIPTextEncode", "VAELoader", "VAEDecode", "KSampler", "SaveAnimatedWEBP"}
"""Nodes of an example that want a text encoder or a decoder, which are too large to be made for a test."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_run(server, name):
    """The API's form of each, up to what needs large files."""
    prompt = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    texts = server.run({key: one for key, one in prompt.items() if one["class_type"] not in WEIGHTS})
    assert any("layers transferred" in text for text in texts.values())


def test_the_model_is_sampled_with(server):
    """By ComfyUI's own sampler, from random conditions, which a node of this test makes."""
    graph = {
        "1": node("UNETLoader", unet_name=FAST, weight_dtype="default"),
        "2": node("LoraportApply", **APPLY, model=["1", 0]),
        "3": node("RandomConditions"),
        "4": node("EmptyHunyuanLatentVideo", width=32, height=32, length=5, batch_size=1),
    }
    sampler = {"seed": 0, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    for number, model in (("5", "1"), ("6", "2")):
        graph[number] = node(
            "KSampler", model=[model, 0], positive=["3", 0], negative=["3", 0], latent_image=["4", 0], **sampler
        )
        graph[f"{number}0"] = node("SaveLatent", samples=[number, 0], filename_prefix=f"sampled{number}")
    server.run(graph)
    found = [load_file(next((server.folder / "output").glob(f"sampled{number}_*")))["latent_tensor"] for number in "56"]
    assert (
        found[0].isfinite().all()
        and found[1].isfinite().all()
        and (found[0] - found[1]).norm() > 0.01 * found[0].norm()
    )


def test_the_interrupt_button_ends_a_transfer_whose_finished_layers_stay(server):
    """On layers that take a while, which lie outside ComfyUI's folders."""
    state, outside = tiny.tiny_state(0, dim=640, ffn=1024), server.folder / "outside"
    outside.mkdir()
    tiny.write_original(outside / "base.safetensors", state)
    tiny.write_original(outside / "fast.safetensors", tiny.drifted(state))
    tiny.write_lora(loras(server) / "wide.safetensors", tiny.lora_factors(state))
    places = {
        f"{name}_elsewhere": str(outside / f"{file}.safetensors")
        for name, file in (("source", "base"), ("target", "fast"))
    }
    prompt_id = server.queue(
        {"1": node("LoraportTransfer", **{**TRANSFER, "lora": "wide.safetensors", "name": "wide-moved"}, **places)}
    )
    partial = loras(server) / "wide-moved.safetensors.partial"
    end = time.monotonic() + 60
    while not list(partial.glob("*.safetensors")) and time.monotonic() < end:
        time.sleep(0.05)
    server.call("/interrupt", {})
    ended = server.finished(prompt_id)
    assert "execution_interrupted" in [kind for kind, _ in ended["status"]["messages"]]
    assert list(partial.glob("*.safetensors")) and not (loras(server) / "wide-moved.safetensors").exists()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


needs_page = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None,
    reason="no Chromium or no playwright here: ComfyUI's page was not opened (pip install playwright)",
)


@pytest.fixture
def page(server):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(server.url)
        page.wait_for_function(
            "Boolean(window.app?.graph && window.LiteGraph?.registered_node_types?.LoraportTransfer)", timeout=120_000
        )
        page.wait_for_function("window.app?.api?.socket?.readyState === 1 && Boolean(window.app.api.clientId)")
        page.wait_for_timeout(2500)  # when its nodes are known, it still opens the workflow that it begins with
        yield page
        browser.close()


def shot(page, name):
    if os.environ.get("COMFYUI_SHOTS"):
        page.screenshot(path=str(Path(os.environ["COMFYUI_SHOTS"], f"{name}.png")))


@needs_page
def test_the_page_makes_the_node_and_runs_the_workflow(server, page):
    made = page.evaluate(
        """(inputs) => {
          app.graph.clear();
          const made = LiteGraph.createNode("LoraportTransfer");
          made.pos = [80, 80];
          app.graph.add(made);
          for (const widget of made.widgets) if (widget.name in inputs) widget.value = inputs[widget.name];
          const names = (list) => list.map((one) => one.name);
          return { title: made.title, widgets: names(made.widgets), outputs: names(made.outputs) };
        }""",
        {**TRANSFER, "name": "by-hand"},
    )
    assert made["title"] == "Transfer LoRA" and made["outputs"] == ["lora_name", "path", "report"]
    assert set(TRANSFER) <= set(made["widgets"])
    page.evaluate("app.queuePrompt(0)")
    written = loras(server) / "by-hand.safetensors"
    end = time.monotonic() + 60
    while not written.exists() and time.monotonic() < end:
        page.wait_for_timeout(200)
    assert written.exists()
    page.wait_for_timeout(1500)
    shot(page, "node")


@needs_page
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_opens_and_runs_the_example(server, page, name):
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text())
    found = page.evaluate(
        """async (workflow) => {
          await app.loadGraphData(workflow);
          const { output } = await app.graphToPrompt();
          return { missing: app.graph.nodes.filter((n) => n.has_errors).map((n) => n.type), output };
        }""",
        workflow,
    )
    assert found["missing"] == []
    api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    plain = {key: {"class_type": one["class_type"], "inputs": one["inputs"]} for key, one in found["output"].items()}
    assert plain == {key: {"class_type": one["class_type"], "inputs": one["inputs"]} for key, one in api.items()}
    page.wait_for_timeout(1000)
    shot(page, name)


@needs_page
def test_the_page_is_told_what_is_wrong(server, page):
    """What reaches the page. This frontend does not always show it for a server that is a year older."""
    page.evaluate(
        """(inputs) => {
          app.graph.clear();
          const made = LiteGraph.createNode("LoraportTransfer");
          app.graph.add(made);
          for (const widget of made.widgets) if (widget.name in inputs) widget.value = inputs[widget.name];
        }""",
        {**TRANSFER, "name": "../outside"},
    )
    told = """new Promise((resolve) => app.api.addEventListener("execution_error", (event) => resolve(event.detail)))"""
    found = page.evaluate(f"Promise.all([{told}, app.queuePrompt(0)]).then(([error]) => error)")
    assert found["node_type"] == "LoraportTransfer" and "leads out of" in found["exception_message"]
    page.wait_for_timeout(2000)
    shot(page, "wrong")
