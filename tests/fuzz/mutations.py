"""What is done to good inputs: bytes, headers, tensors, JSON, pickles. Everything is drawn from one generator."""

from __future__ import annotations

import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.fuzz.harness import CANARY

ODD_TEXT = (
    "", ".", "..", "/", "a" * 5000, "." * 20_000, "model." * 5000, "\x1b[31mred", "\x9b31m", "\ud800", "é" * 300,
    "\n\n", "\0", "../../etc/passwd", "__metadata__", "blocks.0.self_attn.q.weight", "lora_unet_", ".weight",
    "__class__", "%s{0}",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**63, 10**400, 1e308, float("inf"), float("nan"), [], {}, [[]], {"a": {}}, [None],
    [-1], [2**62, 2**62], *ODD_TEXT,
)  # fmt: skip
DTYPES = (
    "F32",
    "F16",
    "BF16",
    "F64",
    "I8",
    "U8",
    "I64",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "C64",
    "X9",
    "",
)
ENDINGS = (
    "lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "diff",
    "diff_b", "diff_m", "set_weight", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "dora_scale",
    "lora_magnitude_vector", "w_norm", "b_norm", "oft_blocks", "weight", "bias", "scale_weight", "weight_scale",
    "weight._data", "qweight", "rescale", "reshape_weight", "lora_embedding_A",
)  # fmt: skip
SHAPES = (
    (), (0,), (1,), (3,), (0, 5), (5, 0), (1, 1), (2, 24), (24, 2), (24, 24), (7, 24), (1, 1, 1), (2, 24, 1, 1),
    (24, 2, 3, 3), (1, 2, 3, 4, 5), (1,) * 12, (1,) * 70, (4096, 1), (1, 4096), (200, 200),
)  # fmt: skip
METADATA = (
    "format", "ss_network_alpha", "lora_alpha", "lora_adapter_metadata", "loraport.transfers",
    "_quantization_metadata", "modelspec.title", "ss_tag_frequency",
)  # fmt: skip


def mutate(path: Path, rng: random.Random) -> str:
    """Damage a file, or a file of a folder, in place; return what was done."""
    if path.is_dir():
        path = rng.choice(sorted(one for one in path.rglob("*") if one.is_file()))
    ways: dict[str, list[Callable[[Path, random.Random], str]]] = {
        ".safetensors": [_bytes, _header, _header, _tensors, _tensors, _tensors],
        ".json": [_bytes, _json, _json, _json],
        ".pt": [_bytes, _zip, _objects, _objects, _code],
        ".gguf": [_bytes],
    }
    way = rng.choice(ways[path.suffix])
    try:
        return f"{path.name}: {way(path, rng)}"
    except (ValueError, KeyError, RecursionError, SafetensorError, zipfile.BadZipFile):
        return f"{path.name}: {_bytes(path, rng)}, on top of an earlier damage"


def _bytes(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    if not content:
        return "bytes, of an empty file"
    kind = rng.choice(["flip", "flip", "cut", "zero", "repeat", "noise", "empty", "grow"])
    reach = min(len(content), rng.choice([16, 200, 4000, len(content)]))
    at = rng.randrange(max(1, reach))
    if kind == "flip":
        for _ in range(rng.choice([1, 3, 30])):
            content[rng.randrange(max(1, reach))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[at:]
    elif kind == "zero":
        content[at : at + 64] = bytes(64)
    elif kind == "repeat":
        content[at:at] = content[at : at + 256]
    elif kind == "noise":
        content[at : at + 64] = rng.randbytes(64)
    elif kind == "empty":
        content = bytearray()
    else:
        content += rng.randbytes(100)
    path.write_bytes(content)
    return f"bytes, {kind}"


def _header(path: Path, rng: random.Random) -> str:
    """Well-formed JSON that says something else."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        names = [name for name in header if name != "__metadata__"]
        name = rng.choice(names)
    except (ValueError, IndexError):
        return "was no header"
    kind = rng.choice(["dtype", "shape", "offsets", "rename", "metadata", "metadata", "drop", "value", "many"])
    if kind == "dtype":
        header[name]["dtype"] = rng.choice([*DTYPES, *ODD_VALUES])
    elif kind == "shape":
        header[name]["shape"] = rng.choice([list(rng.choice(SHAPES)), rng.choice(ODD_VALUES)])
    elif kind == "offsets":
        header[name]["data_offsets"] = rng.choice([[0, 0], [5, 1], [0, 2**60], [-4, 4], [0], rng.choice(ODD_VALUES)])
    elif kind == "rename":
        header[rng.choice([rng.choice(ODD_TEXT), f"{name}{rng.choice(ODD_TEXT)}", f"{rng.choice(ODD_TEXT)}{name}"])] = (
            header.pop(name)
        )
    elif kind == "metadata":
        keys = (*METADATA, rng.choice(ODD_TEXT))
        value = rng.choice(
            [
                *ODD_TEXT,
                "[" * 3000,
                "9" * 6000,
                json.dumps({"a": {"r": "x"}}),
                "NaN",
                '{"layers": 3}',
                rng.choice(ODD_VALUES),
            ]
        )
        header["__metadata__"] = rng.choice([{rng.choice(keys): value}, rng.choice(ODD_VALUES)])
    elif kind == "drop":
        del header[name]
    elif kind == "value":
        header[name] = rng.choice(ODD_VALUES)
    else:
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        header |= {f"blocks.{number}.self_attn.q.{rng.choice(ENDINGS)}": empty for number in range(3000)}
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])
    return f"header, {kind}"


def _tensors(path: Path, rng: random.Random) -> str:
    """A valid file with a tensor that nobody would expect."""
    state = load_file(path)
    name = rng.choice(sorted(state))
    layer = (
        name.removesuffix(".weight").rpartition(".")[0] if not name.endswith(".alpha") else name.removesuffix(".alpha")
    )
    kind = rng.choice(["shape", "dtype", "value", "another", "another", "drop", "rename", "only"])
    if kind == "shape":
        state[name] = torch.ones(rng.choice(SHAPES))
    elif kind == "dtype":
        to = rng.choice(
            [torch.float64, torch.int8, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn, torch.float16]
        )
        state[name] = state[name].to(to)
    elif kind == "value":
        state[name] = torch.full_like(
            state[name].float(), rng.choice([0.0, float("nan"), float("inf"), 1e38, 1e-42, -1.0])
        )
    elif kind == "another":
        for _ in range(rng.choice([1, 2, 4])):
            state[f"{layer}.{rng.choice(ENDINGS)}"] = torch.ones(rng.choice(SHAPES))
    elif kind == "drop":
        del state[name]
    elif kind == "rename":
        new = rng.choice([one for one in ODD_TEXT if "\ud800" not in one])
        state[rng.choice([new, name + new, new + name, name.replace(".", new, 1)])] = state.pop(name)
    else:
        state = {name: state[name]}
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return f"tensors, {kind} of {name[:60]!r}"


def _json(path: Path, rng: random.Random) -> str:
    """Values of other types anywhere in a configuration or an index."""
    facts = json.loads(path.read_text())
    kind = rng.choice(["value", "value", "value", "whole", "deep", "key"])
    if kind == "whole":
        facts = rng.choice(ODD_VALUES)
    elif kind == "deep":
        path.write_text("[" * 50_000 + "]" * 50_000)
        return "json, deep"
    else:
        holder = facts
        while True:
            if not isinstance(holder, dict) or not holder:
                break
            key = rng.choice(sorted(holder))
            if isinstance(holder[key], dict) and holder[key] and rng.random() < 0.7:
                holder = holder[key]
                continue
            if kind == "key":
                holder[rng.choice(ODD_TEXT)] = holder.pop(key)
            else:
                holder[key] = rng.choice(ODD_VALUES)
            break
    path.write_text(json.dumps(facts))
    return f"json, {kind}"


def _zip(path: Path, rng: random.Random) -> str:
    """A zip archive of the same members, packed in another way."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    kind = rng.choice(["deflate", "one deflated", "twice", "missing", "blown up"])
    some = rng.choice(sorted(members))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            packed = kind == "deflate" or (kind == "one deflated" and name == some)
            if kind == "missing" and name == some:
                continue
            if kind == "blown up" and name == some:
                content, packed = bytes(64 << 20), True
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
            if kind == "twice" and name == some:
                archive.writestr(name, content[::-1])
    return f"zip, {kind} ({some})"


class _Call:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


def _code(path: Path, rng: random.Random) -> str:
    if rng.random() < 0.5:
        torch.save({"model": {"a.weight": torch.ones(2, 2), "b": _Call()}}, path)
        return "code in a zip"
    path.write_bytes(pickle.dumps({"state_dict": _Call()}, protocol=rng.choice([0, 2, 4])))
    return "code in a plain pickle"


def _objects(path: Path, rng: random.Random) -> str:
    """Tables that are none: what trainers and others put into a file."""
    weight, other, base = torch.randn(24, 24), torch.randn(4, 24), torch.arange(600.0)
    q = "blocks.0.self_attn.q.weight"
    objects: list[Any] = [
        {}, [], None, 3, "text", weight, {"model": {}}, {"model": None, "ema": []}, {1: weight, 2: other},
        {q: [1, 2, 3]}, {q: weight.to_sparse()}, {q: base.as_strided((24, 24), (0, 1))}, {q: weight.T},
        {q: torch.ones(24, 24, dtype=torch.complex64)}, {q: torch.nn.Parameter(weight)}, {q: torch.empty(0)},
        {"a": {"b": {"c": {"d": {q: weight}}}}}, {"values": 1, "items": 2, "keys": 3, "blocks.0.ffn.0.weight": other},
        {f"blocks.0.self_attn.q.lora_{side}.weight": X for side, X in (("A", other), ("B", other.T))},
        {"\x1b[31m": {q: weight}, "other": {q: weight}}, {rng.choice(ODD_TEXT): weight, q: weight},
    ]  # fmt: skip
    number = rng.randrange(len(objects))
    torch.save(objects[number], path, _use_new_zipfile_serialization=rng.random() < 0.8)
    return f"objects, number {number}"
