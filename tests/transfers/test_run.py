"""A transfer from files to a file: the right numbers, nothing lost, the same bytes whatever happens on the way."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loraport.errors import MismatchError, OutputError, SettingsError
from loraport.inputs.config import RankRule
from loraport.inputs.open import prepare
from loraport.methods.recipes import METHODS
from loraport.methods.settings import CasaSettings
from loraport.transfers import run as running
from loraport.transfers.run import transfer
from tests import reference, tiny
from tests.transfers.models import deltas, make_family


@pytest.fixture
def family(tmp_path):
    return make_family(tmp_path)


def digest(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def loops(family, layer: str) -> np.ndarray:
    """The reference's update of one layer, from the weights on disk."""
    W = family.source_state[f"{layer}.weight"].double()
    B, A = family.factors[layer]
    U, S, Vh = (x.numpy() for x in torch.linalg.svd(W, full_matrices=False))
    drift = (family.target_state[f"{layer}.weight"].double() - W).numpy()
    settings = {"energy": 0.9, "tau": 1.0, "eps": 1e-6, "q_dom": 0.5, "q_act": 0.85, "restore": 1.0, "arbitrate": True}
    return reference.casa(U, S, Vh, (B.double() @ A.double()).numpy(), drift, **settings)[0]


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["blocks.0.self_attn.q", "blocks.1.ffn.0", "blocks.1.ffn.2"])
def test_the_written_update_is_the_references_from_files_to_file(family, layer):
    transfer(family.config(rank=RankRule("full")))
    written, expected = deltas(family.folder / "out.safetensors")[layer], torch.from_numpy(loops(family, layer))
    assert float((written - expected).norm() / expected.norm()) < 2e-3  # bases are kept in 16 bits
    direct = family.factors[layer][0].double() @ family.factors[layer][1].double()
    assert float((direct - expected).norm() / expected.norm()) > 0.1


@pytest.mark.slow
def test_every_layer_is_reported_and_every_key_accounted_for(family):
    result = transfer(family.config())
    assert {layer.name for layer in result.layers} == set(family.factors)
    assert result.keys.as_json() == {"in": 40, "transferred": 40, "copied": 0, "dropped": []} and not result.lost
    row = next(layer for layer in result.layers if layer.name == "blocks.0.ffn.0")
    assert (row.status, row.shape, row.rank_in, row.rank_out) == ("transferred", (40, 24), 4, 8)
    assert row.drift == pytest.approx(0.1, rel=1e-3) and row.lora == pytest.approx(0.1, rel=1e-3)
    written = deltas(result.output)["blocks.0.ffn.0"]
    weight = family.source_state["blocks.0.ffn.0.weight"].double()
    assert row.update == pytest.approx(float(written.norm() / weight.norm()), rel=1e-4)
    assert 0 < row.kept_correction < row.kept_energy < 1
    assert row.k and row.clusters and 0 < row.largest_cluster <= 1 and row.arbitrated > 0
    assert 0 < result.kept_correction < result.kept_energy < 1
    json.dumps(result.as_json(), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, "direct:1.15"])
def test_every_method_writes_what_it_says(family, method):
    result = transfer(family.config(method=method))
    assert all(layer.status == "transferred" for layer in result.layers)
    exact = method.partition(":")[0] in ("direct", "direct-matched")
    low_rank = METHODS[method.partition(":")[0]].low_rank
    assert {layer.rank_out for layer in result.layers} == {4 if low_rank else 8}
    written = deltas(result.output)["blocks.0.self_attn.q"]
    B, A = family.factors["blocks.0.self_attn.q"]
    if exact:
        strength = float(written.norm() / (B @ A).norm())
        assert torch.allclose(written, strength * (B @ A).double(), atol=1e-6)
        assert {"direct": 1.0, "direct:1.15": 1.15}.get(method, strength) == pytest.approx(strength, rel=1e-5)
        assert all(layer.kept_correction is None and layer.kept_energy == 1 for layer in result.layers)
    else:
        assert not torch.allclose(written, (B @ A).double(), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "ranks"),
    [("auto", {8}), ("source", {4}), ("full", {24}), ("6", {6}), ("200", {24})],
)
def test_ranks(family, rule, ranks):
    result = transfer(family.config(rank=RankRule.parse(rule)))
    assert {layer.rank_out for layer in result.layers} == ranks
    shapes = {tuple(t.shape) for k, t in load_file(result.output).items() if "self_attn.q.lora_A" in k}
    assert shapes == {(ranks.copy().pop(), 24)}
    if rule in ("full", "200"):
        assert result.kept_energy == pytest.approx(1, abs=1e-6)
        assert result.kept_correction == pytest.approx(1, abs=1e-4)


def test_a_share_of_energy_lets_ranks_vary_and_keeps_the_share(family):
    result = transfer(family.config(rank=RankRule.parse("0.8")))
    assert all(layer.kept_energy >= 0.8 for layer in result.layers)
    assert len({layer.rank_out for layer in result.layers}) > 1
    assert any("diffusers before 0.40" in note for note in result.warnings)


def test_direct_reuse_at_a_fixed_rank_has_that_rank_and_the_same_update(family):
    more = transfer(family.config("more.safetensors", method="direct", rank=RankRule.parse("6")))
    same = transfer(family.config("same.safetensors", method="direct"))
    less = transfer(family.config("less.safetensors", method="direct", rank=RankRule.parse("2")))
    most = transfer(family.config("most.safetensors", method="direct", rank=RankRule.parse("200")))
    assert [result.layers[0].rank_out for result in (more, same, less, most)] == [6, 4, 2, 24]
    layer = "blocks.0.self_attn.q"
    assert torch.allclose(deltas(more.output)[layer], deltas(same.output)[layer], atol=1e-6)
    assert less.kept_energy < 0.99


def test_dense_output_is_lossless(family):
    dense = transfer(family.config("dense.safetensors", as_diff=True))
    transfer(family.config("full.safetensors", rank=RankRule("full")))
    full = deltas(family.folder / "full.safetensors")
    for layer in full:
        D = load_file(dense.output)[f"diffusion_model.{layer}.diff"].double()
        assert float((D - full[layer]).norm() / D.norm()) < 1e-5
    assert {row.rank_out for row in dense.layers} == {None} and dense.kept_correction == 1


def test_same_input_same_seed_same_bytes_cold_warm_and_without_a_cache(family):
    cold = digest(transfer(family.config("cold.safetensors")).output)
    warm = digest(transfer(family.config("warm.safetensors")).output)
    none = digest(transfer(family.config("none.safetensors", cache=None)).output)
    assert cold == warm == none
    assert digest(transfer(family.config("other.safetensors", settings=CasaSettings(tau=0.1))).output) != cold


def test_a_started_run_goes_on_to_the_same_bytes(family, monkeypatch):
    whole = digest(transfer(family.config("whole.safetensors")).output)
    real, calls = running.LayerTransfer.__call__, []

    def dies(self, job, lora, weights):
        calls.append(job.name)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(self, job, lora, weights)

    monkeypatch.setattr(running.LayerTransfer, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        transfer(family.config())
    assert not Path(family.config().output).exists()
    assert len(list((family.folder / "out.safetensors.partial").iterdir())) == 7
    calls.clear()
    calls.extend(["counted"] * 100)
    result = transfer(family.config())
    assert len(calls) == 100 + len(family.factors) - 7, "finished layers are not done again"
    assert digest(result.output) == whole and not (family.folder / "out.safetensors.partial").exists()


def test_leftovers_of_another_run_are_not_used(family, monkeypatch):
    expected = digest(transfer(family.config("expected.safetensors")).output)
    real = running.output_contents
    monkeypatch.setattr(running, "output_contents", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        transfer(family.config(method="undo:0.5"))
    monkeypatch.setattr(running, "output_contents", real)
    assert (family.folder / "out.safetensors.partial").is_dir()
    assert digest(transfer(family.config()).output) == expected


def test_a_damaged_leftover_is_done_again(family, monkeypatch):
    expected = digest(transfer(family.config("expected.safetensors")).output)
    real = running.output_contents
    monkeypatch.setattr(running, "output_contents", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        transfer(family.config())
    monkeypatch.setattr(running, "output_contents", real)
    for number, path in enumerate(sorted((family.folder / "out.safetensors.partial").iterdir())[:4]):
        path.write_bytes(path.read_bytes()[: 100 * number])
    assert digest(transfer(family.config()).output) == expected


@pytest.mark.slow
def test_killed_at_any_moment_it_continues_to_the_same_bytes(family):
    """A real process, a real SIGKILL, several times in a row."""
    expected = digest(transfer(family.config("expected.safetensors", dtype="bf16")).output)
    output = family.folder / "killed.safetensors"
    command = [sys.executable, "-m", "loraport", "transfer", family.lora, "--source", family.source, "--target",
               family.target, "-o", str(output), "--cache", str(family.folder / "cache2"), "-q"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    partial = family.folder / "killed.safetensors.partial"
    for wanted in (2, 12):
        process = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if partial.is_dir() and len(list(partial.glob("*.safetensors"))) >= wanted:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if output.exists():
            break
    subprocess.run(command, env=environment, check=True)
    assert digest(output) == expected
    assert not partial.exists() and not list(family.folder.glob("*.part"))


def test_a_layer_that_the_target_lacks_is_dropped_with_its_reason(tmp_path):
    family = make_family(tmp_path)
    tensors = load_file(family.lora)
    tensors["diffusion_model.blocks.7.self_attn.q.lora_A.weight"] = torch.ones(4, 24)
    tensors["diffusion_model.blocks.7.self_attn.q.lora_B.weight"] = torch.ones(24, 4)
    save_file(tensors, family.lora)
    result = transfer(family.config())
    assert result.lost and len(result.keys.dropped) == 2 and "has no such layer" in result.keys.dropped[0][1]
    assert [layer.name for layer in result.layers if layer.status == "skipped"] == ["blocks.7.self_attn.q"]
    assert "blocks.7.self_attn.q" not in deltas(result.output)


def test_a_gate_that_only_the_target_has_is_copied_and_counts_as_a_loss(tmp_path):
    family = make_family(tmp_path, gates=True)
    tensors = load_file(family.lora)
    tensors["diffusion_model.blocks.0.to_gate_compress.lora_A.weight"] = torch.ones(4, 24)
    tensors["diffusion_model.blocks.0.to_gate_compress.lora_B.weight"] = torch.ones(24, 4)
    save_file(tensors, family.lora)
    result = transfer(family.config())
    gate = next(layer for layer in result.layers if "gate" in layer.name)
    assert gate.status == "copied" and "drift is unknown" in gate.reason and result.lost
    assert torch.equal(deltas(result.output)["blocks.0.to_gate_compress"], torch.full((24, 24), 4.0).double())
    assert any("to_gate_compress" in note and "not transferred" in note for note in result.warnings)
    assert result.keys.as_json() == {"in": 42, "transferred": 40, "copied": 2, "dropped": []}


def test_excluded_layers_are_copied_as_they_are(family):
    result = transfer(family.config(exclude=("ffn",), include=("blocks.0.*",)))
    status = {layer.name: layer.status for layer in result.layers}
    assert status["blocks.0.self_attn.q"] == "transferred"
    assert status["blocks.0.ffn.0"] == status["blocks.1.self_attn.q"] == "copied"
    B, A = family.factors["blocks.0.ffn.0"]
    assert torch.allclose(deltas(result.output)["blocks.0.ffn.0"], (B @ A).double(), atol=1e-6)
    with pytest.raises(SettingsError, match="fits no layer"):
        prepare(family.config(exclude=("mlp",)))


@pytest.mark.parametrize("identical", ["file", "weights"])
def test_without_drift_the_result_is_direct_reuse_and_says_so(tmp_path, identical):
    family = make_family(tmp_path)
    target = family.source
    if identical == "weights":
        target = str(tiny.write_diffusers(tmp_path / "twin", family.source_state))
    result = transfer(family.config(target=target))
    assert sum("drift is zero, so direct reuse is exact" in note for note in result.warnings) == 1
    for layer, (B, A) in family.factors.items():
        assert torch.allclose(deltas(result.output)[layer], (B @ A).double(), atol=1e-6)
    assert {layer.rank_out for layer in result.layers} == {4}


def test_another_models_lora_is_refused_before_anything_is_written(family, tmp_path):
    small = tiny.write_original(tmp_path / "small.safetensors", tiny.tiny_state(3, dim=12))
    with pytest.raises(
        MismatchError, match=r"24 × 24, the weight in .*small.safetensors 12 × 12; this LoRA was made for"
    ):
        transfer(family.config(source=str(small), target=str(small)))
    alien = tmp_path / "alien.safetensors"
    save_file({"encoder.weight": torch.ones(2, 2)}, alien)
    with pytest.raises(MismatchError, match=r"no layer of .* is in"):
        transfer(family.config(target=str(alien)))
    assert not list(tmp_path.glob("out.safetensors*"))


def test_provenance_is_by_content_and_names_no_folder(family):
    result = transfer(family.config())
    with safe_open(result.output, "pt") as file:
        metadata = file.metadata()
    assert metadata["loraport.method"] == "casa" and json.loads(metadata["loraport.settings"])["tau"] == 1.0
    assert metadata["loraport.lora_sha256"] == digest(family.lora)
    assert str(family.folder) not in json.dumps(metadata)
    assert "strength slider" in metadata["loraport.note"]
    copy = tiny.write_original(family.folder / "copy.safetensors", family.source_state, prefix="model.")
    again = transfer(family.config("again.safetensors", source=str(copy)))
    with safe_open(again.output, "pt") as file:
        assert file.metadata()["loraport.source_hash"] == metadata["loraport.source_hash"]
    assert all(torch.equal(x, load_file(again.output)[key]) for key, x in load_file(result.output).items())


def test_the_output_is_checked_before_the_work(family, monkeypatch):
    monkeypatch.setattr(running, "transfer_layers", lambda *_: pytest.fail("work began"))
    (family.folder / "busy.safetensors.partial").mkdir()
    (family.folder / "busy.safetensors.partial" / "mine.txt").write_text("precious")
    for output, message in {
        "no-ending": "no .safetensors ending",
        "target": "is a folder",
        "lora.safetensors": "is an input of this run",
        "busy.safetensors": "'mine.txt', which no transfer wrote",
    }.items():
        with pytest.raises(OutputError, match=message):
            transfer(family.config(output))
    blocked = family.folder / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        transfer(family.config("file/out.safetensors"))


def test_a_conv_kernel_goes_through_its_matrix_form(family):
    tensors = load_file(family.lora)
    generator = torch.Generator().manual_seed(0)
    tensors["diffusion_model.patch_embedding.lora_A.weight"] = torch.randn(4, 4, 1, 2, 2, generator=generator) * 0.05
    tensors["diffusion_model.patch_embedding.lora_B.weight"] = torch.randn(24, 4, 1, 1, 1, generator=generator)
    save_file(tensors, family.lora)
    result = transfer(family.config(rank=RankRule("full")))
    written = load_file(result.output)
    A, B = (written[f"diffusion_model.patch_embedding.lora_{x}.weight"] for x in "AB")
    assert A.shape == (16, 4, 1, 2, 2) and B.shape == (24, 16, 1, 1, 1)
    kernels = [tensors[f"diffusion_model.patch_embedding.lora_{x}.weight"].flatten(1) for x in "BA"]
    family.factors["patch_embedding"] = (kernels[0], kernels[1])
    for state in (family.source_state, family.target_state):
        state["patch_embedding.weight"] = state["patch_embedding.weight"].flatten(1)
    expected = torch.from_numpy(loops(family, "patch_embedding"))
    assert float((B.flatten(1).double() @ A.flatten(1).double() - expected).norm() / expected.norm()) < 2e-3
