"""Damaged, unsafe, quantised and ambiguous checkpoints: how each is made, and what its refusal must say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests import tiny

STATE = tiny.tiny_state()
WEIGHT = "blocks.0.ffn.0.weight"


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file from a header of any shape and raw data; the announced length can be a lie."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def _file(content: bytes, name: str = "m.safetensors") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _entry(**changes: Any) -> Callable[[Path], Path]:
    good = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    return _file(safetensors_bytes({"a.weight": {**good, **changes}}, bytes(16)))


def _with(**extra: torch.Tensor) -> Callable[[Path], Path]:
    """The tiny model with tensors added or replaced; `__` in a name stands for a dot."""
    more = {name.replace("__", "."): tensor for name, tensor in extra.items()}
    return lambda folder: tiny.write_original(folder / "m.safetensors", {**STATE, **more})


def _replaced(tensor: torch.Tensor) -> Callable[[Path], Path]:
    return lambda folder: tiny.write_original(folder / "m.safetensors", {**STATE, WEIGHT: tensor})


def _cut(keep: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = tiny.write_original(folder / "m.safetensors", STATE)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
        return path

    return write


def _overlong(folder: Path) -> Path:
    path = tiny.write_original(folder / "m.safetensors", STATE)
    path.write_bytes(path.read_bytes() + b"\0" * 7)
    return path


def _folder(*names: str) -> Callable[[Path], Path]:
    """A folder `m` with small valid safetensors files, and empty files for other names."""

    def write(folder: Path) -> Path:
        for name in names:
            path = folder / "m" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"a": torch.ones(1)}, path) if name.endswith(".safetensors") else path.write_bytes(b"")
        (folder / "m").mkdir(exist_ok=True)
        return folder / "m"

    return write


def _index(
    text: str | None = None, shard: str | None = None, drop: str = "", move: bool = False
) -> Callable[[Path], Path]:
    """A folder of three shards whose index or files have been tampered with."""

    def write(folder: Path) -> Path:
        place = tiny.write_shards(folder / "m", STATE)
        index = next(place.glob("*.json"))
        table = json.loads(index.read_text())
        if shard is not None:
            table["weight_map"][WEIGHT] = shard
        if move:
            table["weight_map"][WEIGHT] = next(
                s for s in table["weight_map"].values() if s != table["weight_map"][WEIGHT]
            )
        index.write_text(json.dumps(table) if text is None else text)
        if drop:
            next(place.glob(f"*{drop}*.safetensors")).unlink()
        return place

    return write


def _missing_shard(folder: Path) -> Path:
    place = tiny.write_shards(folder / "m", STATE, index=False)
    (place / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    return place


def _one_shard_of_missing(folder: Path) -> Path:
    return _missing_shard(folder) / "diffusion_pytorch_model-00001-of-00003.safetensors"


def _repeated_across_shards(folder: Path) -> Path:
    place = tiny.write_shards(folder / "m", STATE, count=2, index=False)
    for path in place.glob("*.safetensors"):
        save_file({"same": torch.ones(1)}, path)
    return place


def _broken_link(folder: Path) -> Path:
    place = tiny.write_shards(folder / "m", STATE, index=False)
    shard = place / "diffusion_pytorch_model-00002-of-00003.safetensors"
    shard.unlink()
    shard.symlink_to(folder / "blobs" / "absent")
    return place


def _experts(folder: Path) -> Path:
    tiny.write_diffusers(folder / "m", STATE, inner="transformer_2")
    return tiny.write_diffusers(folder / "m", STATE)


def _pickle(value: Any, name: str = "m.pt") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(value, folder / name)
        return folder / name

    return write


def _misnamed(folder: Path) -> Path:
    torch.save(STATE, folder / "m.safetensors")
    return folder / "m.safetensors"


def _cut_pickle(folder: Path) -> Path:
    path = _pickle(STATE)(folder)
    path.write_bytes(path.read_bytes()[:5000])
    return path


class Sharded(torch.Tensor):
    """Stands for DTensor: a tensor of a class of its own, as distributed trainers save it."""


class Trap:
    """What an attacker would put in a pickle: loading it would write a file."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return (exec, (f"open({self.folder + '/sprung'!r}, 'w')",))


def _trap(folder: Path) -> Path:
    return _pickle({"generator": STATE, "hook": Trap(str(folder))})(folder)


NOT_READ = (
    "of quantised checkpoints fp8, GGUF and the int8 of quanto and TurboDiffusion are read, nothing else: use the"
)
_E4M3 = STATE[WEIGHT].to(torch.float8_e4m3fn)
_LAYER = WEIGHT.removesuffix(".weight")


def _fp8(weight: torch.Tensor = _E4M3, header: Any = None, **beside: torch.Tensor) -> Callable[[Path], Path]:
    """The tiny model with one fp8 weight, tensors beside it, and perhaps a note in the header."""
    more = {f"{_LAYER}.{name}": tensor for name, tensor in beside.items()}
    metadata = None if header is None else {"_quantization_metadata": json.dumps(header)}

    def write(folder: Path) -> Path:
        save_file({**STATE, WEIGHT: weight, **more}, folder / "m.safetensors", metadata)
        return folder / "m.safetensors"

    return write


def _note(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _gguf(
    kind: str = "Q8_0", cut: int | None = None, fields: dict[str, list[int]] | None = None
) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = tiny.write_gguf(folder / "m.gguf", tiny.tiny_state(dim=32, ffn=64), kind, notes=fields or {})
        content = path.read_bytes()
        path.write_bytes(content[:cut])
        return path

    return write


def _two_gguf(folder: Path) -> Path:
    for name in ("wan-Q4_0.gguf", "wan-Q8_0.gguf"):
        (folder / name).write_bytes(b"GGUF")
    return folder


MALFORMED: dict[str, tuple[Callable[[Path], Path], str]] = {
    # what: (how it is made, a pattern that its refusal matches)
    "empty file": (_file(b""), "not a safetensors file"),
    "seven bytes": (_file(b"1234567"), "not a safetensors file"),
    "text": (_file(b"hello, this is no model at all"), "not a safetensors file"),
    "web page": (_file(b"<!DOCTYPE html><html>Not found</html>"), "looks like a web page"),
    "git-lfs pointer": (_file(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    "pickle by another name": (_misnamed, r"rename it to \.pt"),
    "GGUF by another name": (_file(b"GGUF" + bytes(40)), r"is a GGUF file; rename it to \.gguf"),
    "GGUF of zeros": (_file(b"GGUF" + bytes(40), "m.gguf"), "cannot be read as a GGUF file"),
    "GGUF cut in the header": (_gguf(cut=700), "cannot be read as a GGUF file .*truncated"),
    "GGUF cut in the data": (_gguf(cut=-4000), "cannot be read as a GGUF file"),
    "GGUF of an uneven type": (
        _gguf("IQ4_NL"),
        "is stored as IQ4_NL, which is not read; read are F32, F16, BF16, Q4_0",
    ),
    "GGUF of nvfp4": (_gguf("NVFP4"), "is stored as NVFP4, which is not read"),
    "GGUF with a wrong shape": (_gguf(fields={WEIGHT: [64, 31]}), "has a size that does not fit its shape"),
    "unknown kind": (_file(b"x", "m.onnx"), r"of a kind that is not read; give one of \.safetensors"),
    "truncated data": (_cut(0.7), "is truncated: the header describes .* download it again"),
    "truncated header": (_cut(0.01), "is truncated: .* its header alone"),
    "bytes at the end": (_overlong, "7 bytes that its header does not describe"),
    "header longer than the file": (
        _file(safetensors_bytes(b"{}", length=1000)),
        "is truncated: .* header alone has 1000",
    ),
    "absurd header": (_file(safetensors_bytes(b"{}", length=2**40)), "more than any real one has"),
    "broken JSON": (_file(safetensors_bytes(b'{"a": ')), "header cannot be read"),
    "deep JSON": (_file(safetensors_bytes(b'{"a":' * 100_000)), "header cannot be read"),
    "repeated key": (_file(safetensors_bytes(b'{"a": {}, "a": {}}')), "a key stands twice"),
    "entry is a number": (_file(safetensors_bytes({"a": 3})), "entry for 'a' lacks a dtype"),
    "entry without shape": (_file(safetensors_bytes({"a": {"dtype": "F32"}})), "entry for 'a' lacks a dtype"),
    "metadata of numbers": (_file(safetensors_bytes({"__metadata__": {"n": 1}})), "not a table of strings"),
    "no tensors": (_file(safetensors_bytes({})), "holds no tensors"),
    "key that is no text": (_file(safetensors_bytes(b'{"a\\ud800": {}}')), r"the key 'a\\ud800' is not valid text"),
    "too many dimensions": (
        _entry(shape=[1] * 65, data_offsets=[0, 4]),
        "'a.weight' has 65 dimensions; more than 64 are not read",
    ),
    "negative shape": (_entry(shape=[-2, -2]), "'a.weight' has an impossible shape"),
    "fractional shape": (_entry(shape=[2.0, 2]), "'a.weight' has an impossible shape"),
    "offsets backwards": (_entry(data_offsets=[16, 0]), "'a.weight' has an impossible shape or place"),
    "offsets too few": (_entry(data_offsets=[16]), "'a.weight' has an impossible shape or place"),
    "size does not fit": (_entry(shape=[2, 3]), "'a.weight' has 16 bytes, not what F32 of shape"),
    "gap before the data": (_entry(shape=[2, 1], data_offsets=[8, 16]), "overlaps or leaves a gap"),
    "beyond the end": (_entry(shape=[2, 4], data_offsets=[0, 32]), "is truncated"),
    "unknown dtype": (_entry(dtype="F4"), f"stored as F4; {NOT_READ}"),
    "fp8 without its scale": (
        _with(
            blocks__0__ffn__0__weight=_E4M3,
            blocks__1__ffn__0__weight=_E4M3.clone(),
            blocks__1__ffn__0__scale_weight=torch.ones(()),
        ),
        f"{WEIGHT}' is fp8 and lacks its scale, which other layers have",
    ),
    "two scales": (_fp8(scale_weight=torch.ones(()), weight_scale=torch.ones(())), "has two scales"),
    "scale of another shape": (_fp8(weight_scale=torch.ones(7)), rf"has shape \(7,\), which does not fit .*{NOT_READ}"),
    "blocks that do not divide": (_fp8(scale_weight=torch.ones(40, 5, 1)), "does not fit a weight of shape"),
    "nvfp4": (_fp8(weight_scale=torch.ones(()), weight_scale_2=torch.ones(())), f"nvfp4.*{NOT_READ}"),
    "nvfp4, by the note": (
        _fp8(weight_scale=torch.ones(()), comfy_quant=_note('{"format": "nvfp4"}')),
        f"is quantised as nvfp4; {NOT_READ}",
    ),
    "int8, by the header": (
        _fp8(header={"layers": {_LAYER: {"format": "int8_blockwise"}}}, weight_scale=torch.ones(())),
        f"{_LAYER} is quantised as int8_blockwise; {NOT_READ}",
    ),
    "broken header note": (_fp8(header=[], weight_scale=torch.ones(())), "note on quantisation cannot be read"),
    "broken note": (
        _fp8(weight_scale=torch.ones(()), comfy_quant=_note("{")),
        "not a readable note on quantisation",
    ),
    "AWQ": (_fp8(weight_scale=torch.ones(()), pre_quant_scale=torch.ones(24)), f"AWQ.*{NOT_READ}"),
    "block-scaled fp8": (_fp8(weight_scale_inv=torch.ones(1, 1)), f"block-scaled.*{NOT_READ}"),
    "int8": (_replaced(STATE[WEIGHT].to(torch.int8)), f"stored as int8, in codes that are not read; {NOT_READ}"),
    "bitsandbytes": (_with(blocks__0__ffn__0__weight__absmax=torch.ones(3)), f"NF4.*{NOT_READ}"),
    "quant_state": (_with(blocks__0__ffn__0__weight__quant_state__bitsandbytes__nf4=torch.ones(3)), NOT_READ),
    "SVDQuant": (_with(blocks__0__ffn__0__qweight=torch.ones(3)), f"SVDQuant.*{NOT_READ}"),
    "wtscale": (_with(blocks__0__ffn__0__wtscale=torch.ones(3)), NOT_READ),
    "int8 in a pickle": (_pickle({"generator": {**STATE, WEIGHT: STATE[WEIGHT].to(torch.int8)}}), NOT_READ),
    "two keys, one name": (
        _with(_orig_mod__head__head__weight=torch.ones(2)),
        "both name",
    ),
    "same key in two shards": (_repeated_across_shards, "'same' stands both in"),
    "folder without weights": (_folder("README.md"), "has no weights"),
    "empty folder": (_folder(), "has no weights"),
    "several GGUF": (_two_gguf, r"several models: wan-Q4_0\.gguf, wan-Q8_0\.gguf; name one"),
    "unrelated files": (_folder("a.safetensors", "b.safetensors"), r"several models: a\.safetensors, b\.safetensors"),
    "variants": (
        _folder("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
        "several models: .*fp16.*name one of these files",
    ),
    "file and shards": (_folder("a.safetensors", "b-00001-of-00001.safetensors"), "several models"),
    "several pickles": (_folder("a.pt", "b.pth"), r"several models: a\.pt, b\.pth"),
    "two experts": (_experts, "several models; name one of: .*/m/transformer, .*/m/transformer_2"),
    "Wan 2.2's experts": (
        _folder("high_noise_model/a.safetensors", "low_noise_model/a.safetensors", "t5.pth"),
        "name one of: .*high_noise_model, .*low_noise_model",
    ),
    "network here and inside": (
        _folder("a.safetensors", "transformer/a.safetensors"),
        r"name one of: .*/a\.safetensors, ",
    ),
    "missing shard": (_missing_shard, "lacks 1 of 3 shards: diffusion_pytorch_model-00002-of-00003"),
    "missing shard, another named": (
        _one_shard_of_missing,
        "lacks 1 of 3 shards: diffusion_pytorch_model-00002-of-00003",
    ),
    "index names a missing shard": (_index(drop="00003-of"), "index.json names shards that are not there: .*00003-of"),
    "index leaves the folder": (
        _index(shard="../secret.safetensors"),
        r"'\.\./secret\.safetensors', which is not a safetensors",
    ),
    "index is absolute": (
        _index(shard="/etc/secret.safetensors"),
        "'/etc/secret.safetensors', which is not a safetensors",
    ),
    "index with backslashes": (
        _index(shard="..\\secret.safetensors"),
        "which is not a safetensors file in the same folder",
    ),
    "index names a pickle": (_index(shard="secret.pt"), "which is not a safetensors file in the same folder"),
    "index is no JSON": (_index(text="{"), "is not an index of shards"),
    "index is a list": (_index(text="[]"), "is not an index of shards"),
    "index is empty": (_index(text='{"weight_map": {}}'), "is not an index of shards"),
    "index of numbers": (_index(text='{"weight_map": {"a": 1}}'), "is not an index of shards"),
    "index is wrong": (_index(move=True), f"says that '{WEIGHT}' is in .*, but it is not"),
    "no such file": (lambda folder: folder / "absent.safetensors", "does not exist"),
    "numpy scalar": (
        _pickle({"generator": STATE, "step": np.float64(3)}),
        r"more than tensors \(numpy.*could run any code",
    ),
    "any class": (
        _pickle({"generator": STATE, "path": Path("x")}),
        r"more than tensors \(pathlib.*save the tensors alone",
    ),
    "tensors of a distributed run": (
        _pickle({"generator": {"a": torch.ones(2).as_subclass(Sharded)}}),
        r"Sharded.*safetensors",
    ),
    "shape beyond 64 bits": (_entry(shape=[0, 2**70], data_offsets=[0, 0]), "'a.weight' has an impossible shape"),
    "broken link": (_broken_link, "lacks 1 of 3 shards|cannot be read: No such file"),
    "a trap": (_trap, r"more than tensors \(.*exec\)"),
    "damaged pickle": (_cut_pickle, "cannot be read as a PyTorch file"),
    "text as a pickle": (_file(b"hello, this is no model at all", "m.pt"), "damaged or of another kind"),
    "a tensor alone": (_pickle(torch.ones(2)), "holds a Tensor, not a table of tensors"),
    "a list": (_pickle([torch.ones(2)]), "holds a list, not a table of tensors"),
    "no tensors in a pickle": (_pickle({"epoch": 3}), "is not a table of tensors"),
    "parts of unknown names": (_pickle({"a": STATE, "b": STATE}), "several parts .* give one of them: a, b"),
    "sparse tensor": (_pickle({"a": torch.ones(2, 2).to_sparse()}), "not a plain tensor"),
}
