"""Codes and scales as files have them: W = q · scale where nothing is ambiguous, and a refusal by name elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraport.errors import InputError
from loraport.files.formats.safetensors_read import StoredTensor, kind_of
from loraport.files.formats.scales import ScaledCodes
from loraport.files.inspect import describe
from loraport.files.models.checkpoint import open_checkpoint
from loraport.merging import merge
from tests import tiny
from tests.tiny import State

STATE = tiny.tiny_state(dim=32, ffn=160)
LAYERS = [name.removesuffix(".weight") for name, W in STATE.items() if "blocks" in name and W.dim() == 2]
LAYER = "blocks.0.ffn.2"  # 32 × 160
W = STATE[f"{LAYER}.weight"]
FP8 = torch.float8_e4m3fn


def in_codes(code: Callable[[str, torch.Tensor], State], layers: list[str] = LAYERS) -> State:
    """The model with the weights of these layers replaced by what `code` makes of them."""
    state = {name: W for name, W in STATE.items() if name.removesuffix(".weight") not in layers}
    for layer in layers:
        state |= code(layer, STATE[f"{layer}.weight"])
    return state


def by_rows(W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = W.abs().amax(1, keepdim=True) / 127
    return (W / scale).round().to(torch.int8), scale


def in_squares(W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = (-(-size // 128) for size in W.shape)
    scale = torch.tensor(
        [[W[i * 128 :, j * 128 :][:128, :128].abs().max() / 127 for j in range(columns)] for i in range(rows)]
    )
    spread = scale.repeat_interleave(128, 0)[: W.shape[0]].repeat_interleave(128, 1)[:, : W.shape[1]]
    return (W / spread).round().to(torch.int8), scale


def quanto(layer: str, W: torch.Tensor) -> State:
    q, scale = by_rows(W)
    beside = {f"{layer}.{name}": torch.ones(()) for name in ("input_scale", "output_scale")}
    return {f"{layer}.weight._data": q, f"{layer}.weight._scale": scale, **beside}


def turbo(layer: str, W: torch.Tensor, split: Callable = in_squares) -> State:
    q, scale = split(W)
    return {f"{layer}.int8_weight": q, f"{layer}.scale": scale}


READ = {"quanto": quanto, "TurboDiffusion": turbo, "TurboDiffusion by rows": lambda layer, W: turbo(layer, W, by_rows)}


@pytest.mark.parametrize("what", READ)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_int8_with_its_scale_is_read(tmp_path, what, prefix):
    path = tiny.write_original(tmp_path / "m.safetensors", in_codes(READ[what]), prefix)
    model = open_checkpoint(path)
    assert set(model) == set(STATE) and model.extra == () and model.quantized[0].startswith("int8, a scale a")
    for layer in LAYERS:
        weight = model.read(layer)
        error = float((weight.matrix - STATE[f"{layer}.weight"]).norm())
        assert 0 < error < 0.02 * float(weight.matrix.norm())
        assert weight.rounding == pytest.approx(error, rel=0.2)
    lora = tiny.write_lora(tmp_path / "l.safetensors", tiny.lora_factors(STATE))
    with pytest.raises(InputError, match=r"is stored as int8, a scale a .*nothing can be added exactly"):
        merge(str(path), [str(lora)], str(tmp_path / "out.safetensors"))
    assert describe(str(path))["size"] != "width 1, 0 blocks"


PACKED = torch.zeros(4, 4, dtype=torch.int32)
REFUSED: dict[str, Callable[[str], State]] = {
    # what: the tensors that stand under a layer's name instead of its weight; the first is named
    "compressed-tensors": lambda layer: {f"{layer}.weight_packed": PACKED, f"{layer}.weight_scale": torch.ones(4)},
    "MLX": lambda layer: {f"{layer}.weight": PACKED.view(torch.uint32), f"{layer}.scales": torch.ones(4, 1)},
    "GPTQ": lambda layer: {f"{layer}.qweight": PACKED, f"{layer}.g_idx": torch.zeros(4, dtype=torch.int32)},
    "bitsandbytes int8": lambda layer: {f"{layer}.weight": PACKED.to(torch.int8), f"{layer}.SCB": torch.ones(4)},
    "torchao": lambda layer: {f"{layer}._weight_qdata": PACKED.to(torch.int8), f"{layer}._weight_scale": torch.ones(4)},
    "quanto int4": lambda layer: {
        f"{layer}.weight._data": PACKED.to(torch.uint8),
        f"{layer}.weight._scale": torch.ones(4),
    },
    "HQQ": lambda layer: {f"{layer}.W_q": PACKED.to(torch.uint8), f"{layer}.meta": torch.ones(4)},
    "a maker nobody has heard of": lambda layer: {f"{layer}.ternary": PACKED.to(torch.int8)},
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_layer_of_codes_alone_is_refused_by_name(tmp_path, what):
    codes = REFUSED[what](LAYER)
    state = {name: W for name, W in STATE.items() if name != f"{LAYER}.weight"} | codes
    path = tiny.write_original(tmp_path / "m.safetensors", state)
    with pytest.raises(InputError, match=r"of quantised checkpoints fp8, GGUF") as refusal:
        open_checkpoint(path)
    assert str(path) in str(refusal.value) and any(key in str(refusal.value) for key in codes)


def test_a_layer_of_which_only_the_bias_is_there_is_no_code(tmp_path):
    state = {name: W for name, W in STATE.items() if name != f"{LAYER}.weight"}
    assert LAYER not in open_checkpoint(tiny.write_original(tmp_path / "m.safetensors", state)).layers


def scaled(layer: str, W: torch.Tensor) -> State:
    scale = W.abs().max() / 448
    return {f"{layer}.weight": (W / scale).to(FP8), f"{layer}.scale_weight": scale}


def changed(mark: bool = True, **tensors: torch.Tensor | None) -> State:
    """A scaled fp8 model with one layer's tensors replaced, or removed where None is given."""
    state = in_codes(scaled) | ({"scaled_fp8": torch.zeros(2, dtype=FP8)} if mark else {})
    state |= {f"{LAYER}.{name}": tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


Q = (W / W.abs().max() * 448).to(FP8)
ROW, COLUMN = torch.rand(32) + 0.5, torch.rand(160) + 0.5
ZERO_ROW = torch.cat([torch.zeros(1), ROW[1:]])
NO_FIRST = Q.float().index_fill(0, torch.tensor([0]), 0).to(FP8)
EDGES: dict[str, tuple[State, torch.Tensor, str]] = {
    # what: (the file, the layer's weight, what is said)
    "a scale of one beside bf16": (changed(weight=W.bfloat16(), scale_weight=torch.ones(())), W.bfloat16().float(), ""),
    "a scale beside bf16": (
        changed(weight=W.bfloat16(), scale_weight=torch.tensor(0.5)),
        W.bfloat16().float() / 2,
        f"1 weights that are not codes have a scale, and are multiplied by it: {LAYER}.weight",
    ),
    "no scale where the file says scaled": (
        changed(weight=Q, scale_weight=None),
        Q.float(),
        f"1 fp8 weights have no scale, and 1 is taken: {LAYER}.weight",
    ),
    "zeros with a scale of zero": (changed(weight=torch.zeros_like(Q), scale_weight=torch.zeros(())), W * 0, ""),
    "a row of zeros with a scale of zero": (
        changed(weight=NO_FIRST, scale_weight=ZERO_ROW),
        NO_FIRST.float() * ZERO_ROW[:, None],
        "",
    ),
    "a row, transposed": (changed(weight=Q, scale_weight=ROW[None]), Q.float() * ROW[:, None], ""),
    "a column": (changed(weight=Q, scale_weight=COLUMN[None]), Q.float() * COLUMN, ""),
    "one number in four dimensions": (changed(weight=Q, scale_weight=torch.full((1, 1, 1, 1), 2.0)), Q.float() * 2, ""),
    "squares": (
        changed(weight=Q, scale_weight=torch.tensor([[2.0, 3.0]])),
        Q.float() * torch.tensor([2.0] * 128 + [3.0] * 32),
        "",
    ),
}


@pytest.mark.parametrize("what", EDGES)
def test_scales_at_the_edges(tmp_path, what):
    state, meant, note = EDGES[what]
    model = open_checkpoint(tiny.write_original(tmp_path / "m.safetensors", state))
    assert torch.allclose(model.read_weight(LAYER), meant, rtol=1e-6, atol=0)
    assert [one.split(": ", 1)[1] for one in model.notes] == ([note] if note else [])
    assert set(model) == set(STATE)


@pytest.mark.parametrize(("rows", "columns"), [(256, 128 * 127 + 1), (128 * 128, 256)])
def test_squares_as_many_as_rows_or_columns_are_squares(rows, columns):
    W = torch.ones(rows, columns).to(FP8)
    scale = torch.rand(-(-rows // 128), -(-columns // 128)) + 0.5
    file = Path("m.safetensors")
    codes = StoredTensor("x.weight", file, kind_of(W.dtype), tuple(W.shape), lambda: W)
    of = StoredTensor("x.weight_scale", file, kind_of(scale.dtype), tuple(scale.shape), lambda: scale)
    spread = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    assert torch.equal(ScaledCodes(codes, of)()[0], spread)


def test_activations_beside_plain_fp8_with_a_scale_say_nothing(tmp_path):
    state = changed(input_amax=torch.ones(()))
    assert torch.equal(
        open_checkpoint(tiny.write_original(tmp_path / "m.safetensors", state)).read_weight(LAYER),
        scaled(LAYER, W)[f"{LAYER}.weight"].float() * scaled(LAYER, W)[f"{LAYER}.scale_weight"],
    )


def test_a_fork_name_of_rows_is_read(tmp_path):
    note = torch.tensor(list(b'{"format": "float8_e4m3fn_rowwise"}'), dtype=torch.uint8)
    state = changed(mark=False, weight=Q, scale_weight=None, weight_scale=ROW, comfy_quant=note)
    model = open_checkpoint(tiny.write_original(tmp_path / "m.safetensors", state))
    assert torch.allclose(model.read_weight(LAYER), Q.float() * ROW[:, None])


AMBIGUOUS = {
    "no scale, and nothing that says so": (
        changed(mark=False, weight=Q, scale_weight=None),
        "nothing says that it has none",
    ),
    "a scale of the inputs' number": (changed(weight=Q, scale_weight=COLUMN), "does not fit a weight of shape"),
    "a scale of exponents": (
        changed(weight=Q, scale_weight=torch.full((), 127, dtype=torch.uint8)),
        "a scale in uint8, whose numbers can mean several things",
    ),
    "a scale under another name": (
        changed(weight=Q, scale_weight=None, scale=torch.ones(())),
        "may say what its values mean",
    ),
    "a scale behind the weight's own name": (
        changed(weight=Q, scale_weight=None) | {f"{LAYER}.weight.scale": torch.ones(())},
        "may say what its values mean",
    ),
    "a zero point beside the scale": (changed(weight_zero_point=ROW), "weight_zero_point.* may say what its values"),
    "zero for codes": (changed(weight=Q, scale_weight=torch.zeros(())), "zeros for codes that are not zero"),
    "infinite": (changed(weight=Q, scale_weight=torch.tensor(float("inf"))), "NaN, infinite or negative"),
    "NaN": (changed(weight=Q, scale_weight=torch.tensor(float("nan"))), "NaN, infinite or negative"),
}


@pytest.mark.parametrize("what", AMBIGUOUS)
def test_what_is_ambiguous_is_refused(tmp_path, what):
    state, message = AMBIGUOUS[what]
    path = tiny.write_original(tmp_path / "m.safetensors", state)
    with pytest.raises(InputError, match=f"m.safetensors: .*{LAYER}.*{message}"):
        open_checkpoint(path).read_weight(LAYER)


def test_the_shard_with_the_scale_is_read_too(tmp_path):
    place: Path = tiny.write_shards(tmp_path / "m", changed(), count=6)
    whole, part = open_checkpoint(place), open_checkpoint(place, layers=[LAYER])
    assert len(part.paths) < len(whole.paths)
    assert torch.equal(part.read_weight(LAYER), whole.read_weight(LAYER))
