"""What is refused, and the one clear message that each gets; nothing is written, and nothing is guessed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraport.errors import FileFormatError, InputError, LoraportError, MismatchError
from loraport.files.lora.read import read_lora

Q = "diffusion_model.blocks.0.self_attn.q"
K = "diffusion_model.blocks.0.self_attn.k"


def tensors(**changes: Tensor | None) -> dict[str, Tensor]:
    """One good layer; each change replaces, adds or (None) removes a key of it, `__` for the dot."""
    good = {f"{Q}.lora_A.weight": torch.ones(2, 4), f"{Q}.lora_B.weight": torch.ones(6, 2)}
    for ending, value in changes.items():
        key = f"{Q}.{ending.replace('__', '.')}"
        good.pop(key, None)
        if value is not None:
            good[key] = value
    return good


def one_layer(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """A layer of other tensors than A and B."""
    return {f"{Q}.{part}": torch.ones(shape) for part, shape in shapes.items()}


def pair(stem: str, rows: int) -> dict[str, Tensor]:
    """Factors of rank 1."""
    return {f"{stem}.lora_A.weight": torch.ones(1, 8), f"{stem}.lora_B.weight": torch.ones(rows, 1)}


FUSED = "diffusion_model.double_blocks.0.img_attn.qkv"
HALVES = "diffusion_model.final_layer.adaLN_modulation.1"
ALONE = "transformer.transformer_blocks.0.attn.to_v"
NAN = torch.tensor([[1.0, float("nan")]] * 6)
INFINITE = torch.full((2, 4), float("inf"))
FLAT = "lora_unet_blocks_0_self_attn_q"
KIND = "which this version does not read"

CONTENTS: dict[str, tuple[dict[str, Tensor], type[LoraportError], str]] = {
    "no tensors": ({}, FileFormatError, r"is not a LoRA: .*\(its first keys: none\)"),
    "checkpoint": ({"blocks.0.self_attn.q.weight": torch.ones(2, 2)}, FileFormatError, "model checkpoint, not a LoRA"),
    "other keys": ({"encoder.mean": torch.ones(2)}, FileFormatError, r"is not a LoRA: .*'encoder\.mean'"),
    "only full differences": ({f"{Q}.diff": torch.ones(2, 2)}, FileFormatError, "full differences"),
    "text encoder only": (
        {"lora_te1_x.lora_down.weight": torch.ones(2, 2)},
        FileFormatError,
        "of text encoders alone .*convert and merge",
    ),
    "half of a text encoder's layer": (
        tensors() | {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(1, 2)},
        MismatchError,
        r"fc1\.lora_up\.weight' is missing",
    ),
    "NaN": (tensors(lora_B__weight=NAN), InputError, rf"'{Q}\.lora_B\.weight' holds NaN"),
    "infinite": (tensors(lora_A__weight=INFINITE), InputError, rf"'{Q}\.lora_A\.weight' holds NaN or infinite"),
    "rank 0": (tensors(lora_A__weight=torch.ones(0, 4), lora_B__weight=torch.ones(6, 0)), FileFormatError, "rank 0"),
    "no up": (tensors(lora_B__weight=None), MismatchError, rf"'{Q}\.lora_B\.weight' is missing"),
    "no down": (tensors(lora_A__weight=None), MismatchError, rf"'{Q}\.lora_A\.weight' is missing"),
    "no up, flat": (
        {f"{FLAT}.lora_down.weight": torch.ones(2, 4)},
        MismatchError,
        rf"'{FLAT}\.lora_up\.weight' is missing",
    ),
    "ranks": (tensors(lora_B__weight=torch.ones(6, 3)), MismatchError, "has rank 2, but .* has rank 3"),
    "rank 0 of a text encoder": (
        tensors()
        | {"text_encoder.x.lora_A.weight": torch.ones(0, 8), "text_encoder.x.lora_B.weight": torch.ones(8, 0)},
        FileFormatError,
        "rank 0",
    ),
    "a number as a text encoder's factor": (
        tensors() | {"text_encoder.x.lora_A.weight": torch.ones(()), "text_encoder.x.lora_B.weight": torch.ones(8)},
        MismatchError,
        "do not have the shapes of LoRA factors",
    ),
    "an empty full difference": (tensors() | {f"{K}.diff": torch.ones(0, 4)}, FileFormatError, "holds nothing"),
    "vector": (tensors(lora_A__weight=torch.ones(4)), MismatchError, "do not have the shapes of LoRA factors"),
    "kernel of B": (
        tensors(lora_A__weight=torch.ones(2, 4, 3, 3), lora_B__weight=torch.ones(6, 2, 3, 3)),
        MismatchError,
        "do not have the shapes of LoRA factors",
    ),
    "integers": (tensors(lora_A__weight=torch.ones(2, 4).long()), FileFormatError, "is stored as .*int64"),
    "two spellings": (
        tensors() | {"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 4)},
        MismatchError,
        "holds 2 LoRAs: diffusion_model, transformer; choose one",
    ),
    "two experts": (
        {p + "blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 4) for p in ("transformer.", "transformer_2.")},
        MismatchError,
        "holds 2 LoRAs: transformer, transformer_2; choose one with --lora-part",
    ),
    "alpha of two numbers": (tensors(alpha=torch.ones(2)), FileFormatError, "an alpha is one number"),
    "alpha 0": (tensors(alpha=torch.zeros(())), InputError, r"alpha' is 0, which"),
    "alpha NaN": (tensors(alpha=torch.tensor(float("nan"))), InputError, "is nan; the LoRA is damaged"),
    "LoHa beside a LoRA": (tensors(hada_w1_a=torch.ones(1, 1)), MismatchError, "tensors of LoHa and LoRA"),
    "half of LoHa": (one_layer(hada_w1_a=(6, 2)), MismatchError, rf"'{Q}\.hada_w1_b' is missing"),
    "LoHa without a core": (
        one_layer(hada_w1_a=(2, 6), hada_w1_b=(2, 4), hada_w2_a=(2, 6), hada_w2_b=(2, 4), hada_t1=(2, 2, 3, 3)),
        MismatchError,
        rf"'{Q}\.hada_t2' is missing",
    ),
    "ranks of LoHa": (
        one_layer(hada_w1_a=(6, 2), hada_w1_b=(3, 4), hada_w2_a=(6, 2), hada_w2_b=(2, 4)),
        MismatchError,
        r"do not fit together: \.hada_w1_a \[6, 2\], \.hada_w1_b \[3, 4\]",
    ),
    "sizes of LoHa": (
        one_layer(hada_w1_a=(6, 2), hada_w1_b=(2, 4), hada_w2_a=(5, 2), hada_w2_b=(2, 4)),
        MismatchError,
        "do not fit together",
    ),
    "LoHa of rank 0": (
        one_layer(hada_w1_a=(6, 0), hada_w1_b=(0, 4), hada_w2_a=(6, 2), hada_w2_b=(2, 4)),
        FileFormatError,
        "rank 0",
    ),
    "LoKr, a vector": (one_layer(lokr_w1=(4,), lokr_w2=(6,)), MismatchError, "do not fit together"),
    "LoKr, a number": (one_layer(lokr_w1=(), lokr_w2=(6, 4)), MismatchError, "do not fit together"),
    "LoKr, a core of one dimension": (
        one_layer(lokr_w1=(2, 2), lokr_w2_a=(2, 3), lokr_w2_b=(2, 2), lokr_t2=(2,)),
        MismatchError,
        "do not fit together",
    ),
    "a mid factor of one dimension": (tensors(lora_mid__weight=torch.ones(2)), MismatchError, "do not fit together"),
    "LoKr of a layer that no model has": (
        one_layer(lokr_w1=(300, 300), lokr_w2=(300, 300)),
        FileFormatError,
        "no model has: 90000 × 90000; 268435456 numbers are the most",
    ),
    "LoHa of a layer that no model has": (
        one_layer(hada_w1_a=(30_000, 1), hada_w1_b=(1, 30_000), hada_w2_a=(30_000, 1), hada_w2_b=(1, 30_000)),
        FileFormatError,
        "no model has: 30000 × 30000",
    ),
    "a core that makes gigabytes": (
        one_layer(
            hada_w1_a=(30_000, 1),
            hada_w1_b=(1, 30_000),
            hada_t1=(30_000, 1),
            hada_w2_a=(1, 1),
            hada_w2_b=(1, 1),
            hada_t2=(1, 1),
        ),
        FileFormatError,
        "its core and factor make 900000000 numbers",
    ),
    "half of LoKr": (one_layer(lokr_w2=(2, 2)), MismatchError, rf"'{Q}\.lokr_w1_a' is missing"),
    "half a factor of LoKr": (
        one_layer(lokr_w1=(2, 2), lokr_w2_b=(2, 2)),
        MismatchError,
        rf"'{Q}\.lokr_w2_a' is missing",
    ),
    "core on the first factor of LoKr": (one_layer(lokr_t1=(1,)), FileFormatError, f"first factor of LoKr, {KIND}"),
    "DoRA without factors": (one_layer(dora_scale=(6, 1)), MismatchError, "a DoRA magnitude without factors"),
    "DoRA of another size": (tensors(dora_scale=torch.ones(5, 1)), MismatchError, "6 numbers, one a row"),
    "DoRA of PEFT of another size": (tensors(lora_magnitude_vector=torch.ones(4)), MismatchError, "6 numbers, one a"),
    "DoRA that is not finite": (tensors(dora_scale=NAN[:, 1:].clone()), InputError, r"dora_scale' holds NaN"),
    "two magnitudes": (
        tensors(dora_scale=torch.ones(6, 1), lora_magnitude_vector=torch.ones(6)),
        MismatchError,
        "two DoRA magnitudes",
    ),
    "mid factor": (tensors(lora_mid__weight=torch.ones(3, 3, 2, 2)), MismatchError, "do not fit together"),
    "rows of a fused layer": (pair(FUSED, 25), MismatchError, "25 rows, which cannot be divided into 3 equal parts"),
    "rows of halves": (pair(HALVES, 15), MismatchError, "15 rows, which cannot be divided into two halves"),
    "fused and alone": (pair(FUSED, 24) | pair(ALONE, 8), MismatchError, r"attn\.to_v' is given twice"),
    "fused without B": ({f"{FUSED}.lora_A.weight": torch.ones(1, 8)}, MismatchError, rf"'{FUSED}\.lora_B\.weight' is"),
    "fused DoRA by columns": (
        pair(FUSED, 24) | {f"{FUSED}.dora_scale": torch.ones(1, 8)},
        MismatchError,
        "a magnitude a column, which its layers share",
    ),
    "fused DoRA of LoKr": (
        {f"{FUSED}.{part}": torch.ones(2, 2) for part in ("lokr_w1", "lokr_w2")}
        | {f"{FUSED}.dora_scale": torch.ones(4, 1)},
        MismatchError,
        "cannot be divided",
    ),
    "U-Net, kernel of B": (
        {"unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3), "unet.conv_in.lora_B.weight": torch.ones(6, 2, 3, 3)},
        MismatchError,
        "do not have the shapes of LoRA factors",
    ),
    "U-Net, two spellings": (
        pair("unet.down_blocks.1.attentions.0.proj_in", 8) | pair("diffusion_model.input_blocks.4.1.proj_in", 8),
        MismatchError,
        "holds 2 LoRAs: diffusion_model, unet; choose one",
    ),
    "U-Net, no up, flat": (
        {"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": torch.ones(2, 8)},
        MismatchError,
        r"'lora_unet_input_blocks_4_1_proj_in\.lora_up\.weight' is missing",
    ),
    "VeRA": (one_layer(vera_lambda_b=(6,)), FileFormatError, f"VeRA vectors .*, {KIND}"),
    "IA3": (one_layer(ia3_l=(6, 1)), FileFormatError, f"IA3 scales, {KIND}"),
    "AdaLoRA": (tensors(lora_E=torch.ones(2, 1)), FileFormatError, f"another kind, {KIND}"),
    "BOFT": (one_layer(boft_R=(6,)), FileFormatError, f"OFT rotations, {KIND}"),
    "an embedding": (one_layer(lora_embedding_A=(2, 4)), FileFormatError, f"factors of an embedding, {KIND}"),
    "OFT": (tensors(oft_blocks=torch.ones(1)), FileFormatError, f"OFT rotations, {KIND}"),
    "GLoRA": (tensors(a1__weight=torch.ones(1)), FileFormatError, f"GLoRA factors, {KIND}"),
    "replaced weight": (tensors(set_weight=torch.ones(1)), FileFormatError, f"set_weight.*, {KIND}"),
    "reshaped weight": (tensors(reshape_weight=torch.ones(1)), FileFormatError, f"reshape_weight.*, {KIND}"),
}


@pytest.mark.parametrize(("content", "error", "message"), CONTENTS.values(), ids=CONTENTS)
def test_contents_that_are_refused(
    content: dict[str, Tensor], error: type[LoraportError], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(content, path)
    with pytest.raises(error, match=message) as raised:
        read_lora(path, diffs=message == "holds nothing")
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def good_bytes(folder: Path) -> bytes:
    save_file(tensors(), folder / "good.safetensors")
    return (folder / "good.safetensors").read_bytes()


class Unsafe:
    """Something that only a full unpickling could bring back."""

    def __reduce__(self) -> Any:
        return (print, ("the pickle ran code",))


def pickle(folder: Path) -> bytes:
    torch.save(tensors() | {"x": Unsafe()}, folder / "x.pt")
    return (folder / "x.pt").read_bytes()


def old_pickle(folder: Path) -> bytes:
    torch.save(tensors() | {"x": Unsafe()}, folder / "x.pt", _use_new_zipfile_serialization=False)
    return (folder / "x.pt").read_bytes()


def with_header(entries: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def long_name(_: Path) -> bytes:
    return with_header({"." * 500_000 + ".A": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))


def many_dimensions(_: Path) -> bytes:
    return with_header({"a.lora_A": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}, bytes(4))


def bad_header(folder: Path) -> bytes:
    good = good_bytes(folder)
    return good[:20] + b"\xff" + good[21:]


FILES: dict[str, tuple[str, Callable[[Path], bytes], str]] = {
    "empty": ("a.safetensors", lambda _: b"", "is not a safetensors file"),
    "text": ("a.safetensors", lambda _: b"hello, this is no tensor file", "is not a safetensors file"),
    "web page": ("a.safetensors", lambda _: b"<!DOCTYPE html><html>", "web page"),
    "git-lfs pointer": ("a.safetensors", lambda _: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "truncated": ("a.safetensors", lambda folder: good_bytes(folder)[:-1], "truncated"),
    "too long": ("a.safetensors", lambda folder: good_bytes(folder) + b"\0", "its header does not describe"),
    "header longer than the file": ("a.safetensors", lambda _: (999).to_bytes(8, "little") + b"{}", "truncated"),
    "gigantic header": ("a.safetensors", lambda _: (1 << 60).to_bytes(8, "little") + b"{}", "header of"),
    "header is not JSON": ("a.safetensors", bad_header, "header cannot be read"),
    "pickle with code": ("a.pt", pickle, "loading that could run any code, so it is not done"),
    "pickle in disguise": ("a.safetensors", pickle, "most likely a PyTorch pickle; rename it to .pt"),
    "old pickle with code": ("a.bin", old_pickle, "loading that could run any code, so it is not done"),
    "half a pickle": ("a.pt", lambda folder: pickle(folder)[:200], "damaged"),
    "GGUF": ("a.gguf", lambda _: b"GGUF" + bytes(60), "LoRAs in GGUF files are not read"),
    "a name of half a million dots": ("a.safetensors", long_name, "has 500002 characters; more than 1000 are not read"),
    "a hundred dimensions": ("a.safetensors", many_dimensions, "has 100 dimensions; more than 64 are not read"),
}


@pytest.mark.parametrize(("name", "content", "message"), FILES.values(), ids=FILES)
def test_files_that_are_refused(name: str, content: Callable[[Path], bytes], message: str, tmp_path: Path) -> None:
    data = content(tmp_path)
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=message) as raised:
        read_lora(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("end", range(0, 260, 7))
def test_any_truncation_is_refused(end: int, tmp_path: Path) -> None:
    data = good_bytes(tmp_path)
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[:end])
    assert end < len(data)
    with pytest.raises(FileFormatError, match=r"cut\.safetensors"):
        read_lora(path)


CONFIGS: dict[str, tuple[Any, str]] = {
    "not JSON": ("{", r"adapter_config\.json is not JSON"),
    "not an object": ("[1]", "not a JSON object"),
    "another adapter": ({"peft_type": "OFT"}, "peft_type is 'OFT'; only LORA, LOHA, LOKR are read"),
    "rank of LoKr": ({"peft_type": "LOKR", "r": "x"}, "r is 'x', not a number"),
    "alpha is a word": ({"lora_alpha": "large"}, "lora_alpha is 'large', not a number"),
    "alpha is true": ({"lora_alpha": True}, "lora_alpha is True, not a number"),
    "alpha is zero": ({"lora_alpha": 0}, "lora_alpha is 0"),
    "alpha is infinite": ({"lora_alpha": float("inf")}, "damaged"),
    "patterns are a list": ({"alpha_pattern": ["q"]}, "not a table"),
    "a pattern's alpha": ({"alpha_pattern": {"q": None}}, "alpha_pattern of q is None"),
    "a broken pattern": ({"alpha_pattern": {"q(": 1}}, "is not a regular expression"),
}


@pytest.mark.parametrize(("config", "message"), CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("place", ["folder", "header"])
def test_configurations_that_are_refused(place: str, config: Any, message: str, tmp_path: Path) -> None:
    text = config if isinstance(config, str) else json.dumps(config)
    factors = {key.removeprefix("diffusion_model."): value for key, value in tensors().items()}
    if place == "folder":
        save_file(factors, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(text)
        path = tmp_path
    else:
        path = tmp_path / "lora.safetensors"
        save_file(factors, path, {"lora_adapter_metadata": text})
        message = message.replace(r"adapter_config\.json", "in the header")
    with pytest.raises(InputError, match=message):
        read_lora(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.safetensors does not exist"):
        read_lora(tmp_path / "nothing.safetensors")
    with pytest.raises(InputError, match="holds no weights"):
        read_lora(tmp_path)
    save_file(tensors(), tmp_path / "a.safetensors")
    assert list(read_lora(tmp_path).layers) == ["blocks.0.self_attn.q"]
    save_file(tensors(), tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"2 files of weights; give the file: a\.safetensors, b\.safetensors"):
        read_lora(tmp_path)


def test_another_kind_of_adapter_on_a_text_encoder_is_carried(tmp_path: Path) -> None:
    save_file(tensors() | {"lora_te1_x.hada_w1_a": torch.ones(1)}, tmp_path / "a.safetensors")
    assert list(read_lora(tmp_path / "a.safetensors").extras) == ["lora_te1_x.hada_w1_a"]
