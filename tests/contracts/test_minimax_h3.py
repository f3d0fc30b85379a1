"""MiniMax-H3: what is written does what it should in ComfyUI, diffusers and Wan2GP, whatever the rows lie like."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraport.conversion import convert
from loraport.files.loaders.facts import facts_of
from loraport.files.loaders.table import verdicts
from loraport.files.lora.read import read_lora
from tests.contracts.loaders import Applied, RefusedError, comfyui, wan2gp
from tests.families import fused_by_diffusers, minimax_h3

H3 = {
    "blocks.0.attn.qkv_proj": (768, 12),
    "blocks.0.attn.out_proj": (12, 256),
    "blocks.0.mlp.fc1": (20, 12),
    "blocks.0.mlp.fc2": (12, 10),
    "blocks.0.adaln_proj.linear": (216, 9),
    "token_refiner.blocks.0.attn.qkv_proj": (768, 12),
    "final_layer.adaln_proj.linear": (24, 9),
}
"""Modules of a model in original names, q, k and v stacked, and the shapes of their weights."""
PARTS = {
    "blocks.0.attn.qkv_proj": [f"transformer_blocks.0.attn.to_{letter}" for letter in "qkv"],
    "token_refiner.blocks.0.attn.qkv_proj": [f"token_refiner.refiner_blocks.0.attn.to_{letter}" for letter in "qkv"],
    "blocks.0.attn.out_proj": ["transformer_blocks.0.attn.to_out.0"],
    "blocks.0.mlp.fc1": ["transformer_blocks.0.ff.net.0.proj"],
    "blocks.0.mlp.fc2": ["transformer_blocks.0.ff.net.2"],
    "blocks.0.adaln_proj.linear": ["transformer_blocks.0.adaln_proj.linear"],
    "final_layer.adaln_proj.linear": ["norm_out.linear"],
}
SPELLED = {
    "ai-toolkit": ("diffusion_model.", (".lora_A.weight", ".lora_B.weight")),
    "larryvrh": ("", (".lora_A.weight", ".lora_B.weight")),
    "musubi-tuner": ("lora_unet_", (".lora_down.weight", ".lora_up.weight")),
    "DiffSynth": ("", (".lora_A.default.weight", ".lora_B.default.weight")),
}


def comfyui_h3(tensors: dict[str, Tensor]) -> Applied:
    """ComfyUI's MiniMaxH3: as for any model, and the bare names. comfy/lora.py (17358c8), `model_lora_keys_unet`."""
    return comfyui(H3, tensors, lambda module: (f"diffusion_model.{module}", f"lora_unet_{module.replace('.', '_')}",
                                                module))  # fmt: skip


def wan2gp_h3(tensors: dict[str, Tensor]) -> Applied:
    """Wan2GP: diffusers' names without a prefix and kohya's are respelled, then all keys are known or none is taken.

    models/minimax_h3/transformer.py (2026-08-21) `preprocess_loras`: of kohya's names `blocks_`, `_attn_` and `_mlp_`
    get their dots and no other part; of diffusers' the halves of the inner layer change places in B, and q, k and v
    are joined. Then mmgp, as for Wan.
    """
    named: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key.startswith("lora_unet_"):
            module, _, ending = key.removeprefix("lora_unet_").partition(".")
            module = module.replace("blocks_", "blocks.", 1).replace("_attn_", ".attn.").replace("_mlp_", ".mlp.")
            key = f"{module}.{ending}"
        named[key] = tensor
    if any(key.startswith(("transformer_blocks.", "token_refiner.refiner_blocks.")) for key in named):
        named = from_diffusers(named)
    return wan2gp(H3, named)


def from_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA in diffusers' names under the original ones; q, k and v are joined, at three times the rank."""
    out = {}
    for module, parts in PARTS.items():
        pairs = [(tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in parts]
        B = torch.block_diag(*(up for _, up in pairs))
        out[f"{module}.lora_A.weight"] = torch.cat([down for down, _ in pairs])
        out[f"{module}.lora_B.weight"] = torch.cat(B.chunk(2)[::-1]) if module.endswith("fc1") else B
    return out


def by_head(rows: Tensor) -> Tensor:
    """Stacked rows of q, k and v, laid head by head."""
    heads = [part.reshape(-1, 128, *rows.shape[1:]) for part in rows.chunk(3)]
    return torch.cat([heads[part][head] for head in range(len(heads[0])) for part in range(3)])


def write(who: str, path: Path) -> dict[str, Tensor]:
    """A LoRA of mixed ranks as one trainer writes it; the updates by original module, stacked."""
    prefix, (down, up) = SPELLED[who]
    generator, tensors, deltas = torch.Generator().manual_seed(0), {}, {}
    for module, shape in H3.items():
        rank = 2 if "adaln" in module else 3
        A, B = torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator)
        stem = prefix + (module.replace(".", "_") if prefix.endswith("_") else module)
        deltas[module] = B.double() @ A.double()
        laid = by_head(B) if who == "DiffSynth" and "qkv" in module else B
        tensors |= {stem + down: A, stem + up: laid.contiguous()}
        if who == "musubi-tuner":
            tensors[f"{stem}.alpha"] = torch.tensor(1.0)
            deltas[module] = deltas[module] / rank
    save_file(tensors, path)
    return deltas


def close(added: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return added.keys() >= wanted.keys() and all(
        float((added[name] - delta).norm()) <= 1e-5 * float(delta.norm()) for name, delta in wanted.items()
    )


def moved_by_diffusers(path: Path) -> dict[str, Tensor]:
    """What diffusers adds, by original module: the halves of the inner layer lie the other way round there."""
    model, added = minimax_h3(), {}
    before = {name: model.get_submodule(name).weight.detach().double() for parts in PARTS.values() for name in parts}
    fused_by_diffusers("minimax-h3", model, path)
    for module, parts in PARTS.items():
        rows = torch.cat([model.get_submodule(name).weight.detach().double() - before[name] for name in parts])
        added[module] = torch.cat(rows.chunk(2)[::-1]) if module.endswith("fc1") else rows
    return added


@pytest.mark.parametrize("who", SPELLED)
def test_the_verdicts_are_what_happens_and_converting_mends_them(who: str, tmp_path: Path) -> None:
    """DiffSynth's rows, which ComfyUI would put onto others, are laid as it has them; so are all others."""
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    deltas = write(who, path)
    facts = facts_of(read_lora(path))
    assert facts is not None
    said = {one.loader: one.takes for one in verdicts(facts)}
    in_comfyui = comfyui_h3(load_file(path))
    assert not in_comfyui.unused
    assert said["ComfyUI"] == ("yes" if close(in_comfyui.added, deltas) else "partly")
    assert (said["ComfyUI"] == "yes") == (who != "DiffSynth")
    assert said["diffusers"] == "yes" and close(moved_by_diffusers(path), deltas)
    assert said["Wan2GP"] == ("yes" if who in ("ai-toolkit", "larryvrh") else "no")
    for format in ("comfy", "kohya"):
        convert(str(path), format, str(out), dtype="fp32")
        assert close(comfyui_h3(load_file(out)).added, deltas), format
        assert close(moved_by_diffusers(out), deltas), format
        if format == "comfy":
            assert close(wan2gp_h3(load_file(out)).added, deltas)
        else:
            with pytest.raises(RefusedError, match="unexpected module keys"):
                wan2gp_h3(load_file(out))


def test_wan2gp_takes_diffusers_names_without_a_prefix_alone(tmp_path: Path) -> None:
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    deltas = write("larryvrh", path)
    convert(str(path), "diffusers", str(out), dtype="fp32")
    said = {one.loader: one.takes for one in verdicts(facts_of(read_lora(out)))}  # type: ignore[arg-type]
    assert said["Wan2GP"] == "no" and said["diffusers"] == "yes"
    with pytest.raises(RefusedError):
        wan2gp_h3(load_file(out))
    save_file({key.removeprefix("transformer."): value for key, value in load_file(out).items()}, path)
    said = {one.loader: one.takes for one in verdicts(facts_of(read_lora(path)))}  # type: ignore[arg-type]
    assert said["Wan2GP"] == "yes" and close(wan2gp_h3(load_file(path)).added, deltas)


@pytest.mark.parametrize("who", ["larryvrh", "DiffSynth"])
def test_alpha_in_the_header_counts_as_in_diffusers_and_is_baked_for_others(who: str, tmp_path: Path) -> None:
    """One alpha for layers of several ranks: alpha / rank of each; ComfyUI reads no header."""
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    deltas = write(who, path)
    save_file(load_file(path), path, {"alpha": "8"})
    wanted = {module: 8 / (2 if "adaln" in module else 3) * delta for module, delta in deltas.items()}
    assert close(moved_by_diffusers(path), wanted)
    facts = facts_of(read_lora(path))
    assert facts is not None
    said = {one.loader: one.takes for one in verdicts(facts)}
    assert said["diffusers"] == "yes" and said["ComfyUI"] == "partly"
    assert not close(comfyui_h3(load_file(path)).added, wanted)
    for format in ("comfy", "diffusers"):
        convert(str(path), format, str(out), dtype="fp32")
        assert close(moved_by_diffusers(out), wanted), format
    assert not close(moved_by_diffusers(out), deltas)


def test_what_is_written_for_another_layout_fails(tmp_path: Path) -> None:
    """The same file read with the other layout is another update: the flag matters."""
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    deltas = write("DiffSynth", path)
    right, wrong = read_lora(path), read_lora(path, qkv="stacked")
    assert any("head by head" in note for note in right.notes) and not any("--qkv" in note for note in wrong.notes)
    assert right.dialect.naming == "interleaved" and wrong.dialect.naming == "original"
    key = "transformer_blocks.0.attn.to_k"
    assert not torch.allclose(right.updates[key].dense(), wrong.updates[key].dense(), atol=1e-2)  # type: ignore[union-attr]
    save_file({key.replace(".default", ""): value for key, value in load_file(path).items()}, out)
    again = read_lora(out, qkv="interleaved")
    assert torch.equal(again.updates[key].dense(), right.updates[key].dense())  # type: ignore[union-attr]
    assert not close(comfyui_h3(load_file(out)).added, deltas)
    assert any("--qkv lora=interleaved" in note for note in read_lora(out).notes)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda key: key.replace("blocks.0.attn.out_proj", "blocks.0.attn.other"), "no name for"),
        (lambda key: key.replace("fc1.lora_B.weight", "fc1.diff_b"), "no name for"),
    ],
)
def test_one_key_that_it_does_not_know_makes_diffusers_refuse_the_file(spoil, why: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "in.safetensors"
    write("larryvrh", path)
    tensors = {spoil(key): value for key, value in load_file(path).items()}
    whole = {key: value for key, value in tensors.items() if key.replace("lora_A", "lora_B") in tensors}
    save_file(
        tensors
        if whole.keys() == tensors.keys()
        else {**whole, **{key: value for key, value in tensors.items() if "lora_A" not in key}},
        path,
    )
    facts = facts_of(read_lora(path))
    assert facts is not None
    said = {one.loader: one for one in verdicts(facts)}["diffusers"]
    assert said.takes == "no" and why in said.reasons[0]
    with pytest.raises(Exception, match=r"empty|KeyError|lora"):
        moved_by_diffusers(path)
