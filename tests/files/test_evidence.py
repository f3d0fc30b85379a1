"""Files whose layers are called alike in several families: what else stands in them decides, and a guess is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.conversion import convert
from loraport.files.lora.read import read_lora
from loraport.files.lora.write import write_lora
from loraport.files.names.dialects import parse_key
from loraport.files.names.evidence import words_of

DOUBLE, SINGLE = "transformer.transformer_blocks", "transformer.single_transformer_blocks"


def write(path: Path, layers: dict[str, tuple[int, int]], header: dict[str, str] | None = None) -> Path:
    """Factors of rank 1 by keys' stems and shapes."""
    tensors = {}
    for stem, (rows, columns) in layers.items():
        tensors |= {f"{stem}.lora_A.weight": torch.ones(1, columns), f"{stem}.lora_B.weight": torch.ones(rows, 1)}
    save_file(tensors, path, header)
    return path


def attention(*blocks: int, width: int = 3072) -> dict[str, tuple[int, int]]:
    return {f"{DOUBLE}.{block}.attn.to_q": (width, width) for block in blocks}


HEADERS = [
    ({"modelspec.architecture": "flux-1-dev/lora"}, "flux.1"),
    ({"modelspec.architecture": "Flux.1-schnell/lora"}, "flux.1"),
    ({"ss_network_module": "networks.lora_flux"}, "flux.1"),
    ({"ss_base_model_version": "flux"}, "flux.1"),
    ({"modelspec.architecture": "hunyuan-video/lora"}, "hunyuanvideo"),
    ({"ss_base_model_version": "hunyuan_video"}, "hunyuanvideo"),
    ({"ss_network_module": "networks.lora_flux_2"}, "flux.2"),
    ({"base_model": "black-forest-labs/FLUX.2-klein-base-4B"}, "flux.2"),
    ({"ss_base_model_version": "flux2_klein_4b"}, "flux.2"),
]


@pytest.mark.parametrize(("header", "family"), HEADERS)
def test_the_header_decides_first(header: dict[str, str], family: str, tmp_path: Path) -> None:
    lora = read_lora(write(tmp_path / "x.safetensors", attention(3), header))
    assert lora.dialect.family == family and not any("called alike" in note for note in lora.notes)


@pytest.mark.parametrize(
    ("layers", "family"),
    [
        (attention(19), "hunyuanvideo"),
        (attention(0, 18), "flux.1"),
        (attention(0, width=2048), "hunyuanvideo-1.5"),
        ({f"{SINGLE}.39.proj_mlp": (12288, 3072)}, "hunyuanvideo"),
        ({f"{SINGLE}.37.proj_mlp": (12288, 3072)}, "flux.1"),
        (
            attention(3)
            | {
                "transformer.time_text_embed.guidance_embedder.linear_1": (3072, 256),
                f"{DOUBLE}.3.norm1.linear": (18432, 3072),
                "transformer.x_embedder": (3072, 64),
            },
            "flux.1",
        ),
        ({"diffusion_model.single_blocks.37.linear1": (21504, 3072)}, "flux.1"),
        ({"diffusion_model.single_blocks.3.linear1": (27648, 3072)}, "flux.2"),
        ({"diffusion_model.double_blocks.3.img_mlp.0": (18432, 3072)}, "flux.2"),
        ({"diffusion_model.single_blocks.3.linear1": (55296, 6144)}, "flux.2"),
        ({"diffusion_model.single_blocks.3.linear2": (4096, 16384)}, "flux.2"),
        (attention(0, 4), "flux.2"),
        (attention(7, width=4096), "flux.2"),
        (attention(3) | {"transformer.context_embedder.proj_in": (3072, 4096)}, "hunyuanvideo"),
    ],
)
def test_blocks_widths_and_other_layers_decide(layers: dict[str, tuple[int, int]], family: str, tmp_path: Path) -> None:
    lora = read_lora(write(tmp_path / "x.safetensors", layers))
    assert lora.dialect.family == family and not any("called alike" in note for note in lora.notes)


def test_a_guess_is_said_and_the_updates_are_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", attention(3))
    lora = read_lora(path)
    (note,) = (note for note in lora.notes if "called alike" in note)
    assert lora.dialect.family == "flux.1" and note.startswith("its layers are called alike in flux.1, hunyuanvideo")
    assert note in convert(str(path), "comfy", str(tmp_path / "y.safetensors")).notes
    named = read_lora(write(tmp_path / "z.safetensors", attention(3), {"ss_base_model_version": "hunyuan_video"}))
    assert named.layers.keys() == lora.layers.keys()


def test_the_family_outlives_a_conversion(tmp_path: Path) -> None:
    """The names of kohya's format differ: img_mlp_0 and img_mlp_fc1."""
    layers = {f"{DOUBLE}.3.ff.net.0.proj": (12288, 3072)}
    for header, wanted in (
        ({"modelspec.architecture": "hunyuan-video"}, "fc1"),
        ({"ss_base_model_version": "flux1"}, "0"),
    ):
        path = write(tmp_path / "x.safetensors", layers, header)
        convert(str(path), "comfy", str(tmp_path / "comfy.safetensors"))
        convert(str(tmp_path / "comfy.safetensors"), "kohya", str(tmp_path / "kohya.safetensors"))
        again = read_lora(tmp_path / "kohya.safetensors")
        assert any(f"img_mlp_{wanted}." in key for layer in again.layers.values() for key in layer.keys)


def test_words_are_those_of_the_fields_that_name_a_base() -> None:
    header = {"modelspec.architecture": "FLUX", "ss_output_name": "hunyuan", "base_model": "a/b"}
    assert words_of(header, None, "C/D") == ("flux", "a/b", "c/d")


XLABS = "double_blocks.7.processor"


def test_xlabs_files_are_read_and_leave_for_every_loader(tmp_path: Path) -> None:
    """x-flux, src/flux/modules/layers.py: the down of one layer, the up of three."""
    A, B = torch.randn(2, 8), torch.randn(24, 2)
    tensors = {f"{XLABS}.qkv_lora1.down.weight": A, f"{XLABS}.qkv_lora1.up.weight": B}
    single = "single_blocks.3.processor.proj_lora"
    tensors |= {f"{single}.down.weight": torch.randn(2, 40), f"{single}.up.weight": torch.randn(8, 2)}
    save_file(tensors, tmp_path / "x.safetensors")
    lora = read_lora(tmp_path / "x.safetensors")
    assert lora.dialect.family == "flux.1" and lora.dialect.naming == "xlabs"
    for letter, rows in zip("qkv", B.chunk(3), strict=True):
        torch.testing.assert_close(lora.updates[f"transformer_blocks.7.attn.to_{letter}"].dense(), rows @ A)
    assert "single_transformer_blocks.3.proj_out" in lora.layers
    write_lora(tmp_path / "same.safetensors", lora.updates, lora, format="same")
    assert load_file(tmp_path / "same.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize(
    "key", ["blocks.0.mlp.down.weight", "layers.0.processor.down.weight", "a.qkv_lora1.down.weight"]
)
def test_other_keys_that_end_so_are_none_of_xlabs(key: str) -> None:
    assert parse_key(key).part not in ("A", "B")


def test_diffusers_reads_kohyas_file_of_full_width_as_it_was(tmp_path: Path) -> None:
    """Its converter divides linear1 as 3072, 3072, 3072 and 12288; the fused factors hold each layer's update."""
    diffusers = pytest.importorskip("diffusers")
    generator, tensors, wanted = torch.Generator().manual_seed(0), {}, {}
    layers = {"attn.to_q": 3072, "attn.to_k": 3072, "attn.to_v": 3072, "proj_mlp": 12288}
    probe = torch.randn(3072, generator=generator)
    for name, rows in layers.items():
        A, B = torch.randn(1, 3072, generator=generator), torch.randn(rows, 1, generator=generator)
        stem = f"single_transformer_blocks.5.{name}"
        tensors |= {f"transformer.{stem}.lora_A.weight": A, f"transformer.{stem}.lora_B.weight": B}
        wanted[stem] = B @ (A @ probe)
    save_file(tensors, tmp_path / "x.safetensors", {"ss_base_model_version": "flux1"})
    convert(str(tmp_path / "x.safetensors"), "kohya", str(tmp_path / "kohya.safetensors"), dtype="fp32")
    state = diffusers.FluxPipeline.lora_state_dict(str(tmp_path), weight_name="kohya.safetensors")
    assert len(state) == 2 * len(wanted)
    for stem, value in wanted.items():
        A, B = (state[f"transformer.{stem}.lora_{end}.weight"] for end in "AB")
        torch.testing.assert_close(B @ (A @ probe), value, rtol=1e-4, atol=1e-4)
