"""Files that mix what dialects differ in, drawn at random: they are read as the updates that they were built from."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from loraport.runs.convert import convert
from loraport.weights.dialects import KOHYA_PAIR, PAIRS, PEFT_PAIR, Pair
from loraport.weights.families import Naming, flattened
from loraport.weights.lora import Lora, read_lora
from loraport.weights.names import layer_in
from loraport.weights.variants import exact_update
from tests.dialects import FORMATS

OUT, IN = 6, 4
LAYERS = ("blocks.0.self_attn.q", "blocks.0.cross_attn.o", "blocks.11.ffn.2", "head.head")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Part:
    """How one layer is written."""

    prefix: str
    naming: Naming
    pair: Pair
    kind: str
    rank: int
    alpha: float | None
    alpha_key: str
    dtype: torch.dtype
    diff_b: bool

    @property
    def flat(self) -> bool:
        """Whether the dots are lost."""
        return self.prefix.endswith("_")

    def stem(self, layer: str) -> str:
        """The module's key."""
        name = layer_in(layer, self.naming)
        assert name is not None
        return self.prefix + (flattened(name) if self.flat else name)


def drawn(seed: int, *shape: int) -> Tensor:
    """Multiples of 1/16 below 2: exact in every dtype."""
    return torch.randint(-31, 32, shape, generator=torch.Generator().manual_seed(seed)) / 16


parts = st.builds(
    Part,
    prefix=st.sampled_from(
        (
            *("", "transformer.", "diffusion_model.", "model.diffusion_model.", "generator.", "base_model.model."),
            *("lora_unet_", "lora_unet__", "lycoris_", "lora_transformer_"),
        )
    ),
    naming=st.sampled_from(["original", "diffusers", "fastvideo"]),
    pair=st.sampled_from([*PAIRS, (".lora_A.default.weight", ".lora_B.default.weight")]),
    kind=st.sampled_from(["LoRA", "LoRA", "LoHa", "LoKr", "LoKr, whole"]),
    rank=st.integers(1, 3),
    alpha=st.none() | st.sampled_from([0.5, 1.0, 3.0, 8.0]),
    alpha_key=st.sampled_from([".alpha", ".lora_alpha"]),
    dtype=st.sampled_from(DTYPES),
    diff_b=st.booleans(),
)


def tensors_of(layer: str, part: Part, seed: int) -> tuple[dict[str, Tensor], Tensor, float | None]:
    """(the keys of one layer, its update without scale, the rank that a scale is divided by)."""
    stem, r = part.stem(layer), part.rank
    if part.kind == "LoRA":
        A, B = drawn(seed, r, IN), drawn(seed + 1, OUT, r)
        return {stem + part.pair[0]: A, stem + part.pair[1]: B}, B.double() @ A.double(), r
    if part.kind == "LoHa":
        a1, b1, a2, b2 = drawn(seed, OUT, r), drawn(seed + 1, r, IN), drawn(seed + 2, OUT, r), drawn(seed + 3, r, IN)
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        delta = (a1.double() @ b1.double()) * (a2.double() @ b2.double())
        return {f"{stem}.{name}": value for name, value in zip(names, (a1, b1, a2, b2), strict=True)}, delta, r
    w1 = drawn(seed, 2, 2)
    if part.kind == "LoKr, whole":
        w2 = drawn(seed + 1, 3, 2)
        return {f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2": w2}, torch.kron(w1.double(), w2.double()), None
    a, b = drawn(seed + 1, 3, r), drawn(seed + 2, r, 2)
    keys = {f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2_a": a, f"{stem}.lokr_w2_b": b}
    return keys, torch.kron(w1.double(), a.double() @ b.double()), r


Mixture = tuple[dict[str, Part], dict[str, Any] | None, str | None]


@st.composite
def mixtures(draw: Any) -> Mixture:
    """Some layers, each in its own way; perhaps a configuration in the header, or a trainer's alpha."""
    layers = draw(st.lists(st.sampled_from(LAYERS), min_size=1, unique=True))
    config = draw(
        st.none() | st.fixed_dictionaries({"lora_alpha": st.sampled_from([2, 5]), "use_rslora": st.booleans()})
    )
    return {layer: draw(parts) for layer in layers}, config, draw(st.none() | st.just("6"))


def scale_of(part: Part, rank: float | None, config: dict[str, Any] | None, trainer: str | None) -> float:
    """The rules once more: the tensor's alpha, else the header's, else the trainer's, else 1; whole LoKr has none."""
    if part.alpha is not None and rank is not None:
        return part.alpha / rank
    if config is not None:
        r = 8 if rank is None else rank
        return config["lora_alpha"] / (math.sqrt(r) if config["use_rslora"] else r)
    return 1.0 if trainer is None or rank is None else float(trainer) / rank


def build(mixture: Mixture, path: Any) -> dict[str, Tensor]:
    """Writes the file; the updates that it stands for."""
    layers, config, trainer = mixture
    tensors: dict[str, Tensor] = {}
    deltas = {}
    for number, (layer, part) in enumerate(layers.items()):
        keys, delta, rank = tensors_of(layer, part, 10 * number)
        tensors |= {key: value.to(part.dtype) for key, value in keys.items()}
        deltas[layer] = scale_of(part, rank, config, trainer) * delta
        if part.alpha is not None:
            tensors[part.stem(layer) + part.alpha_key] = torch.tensor(part.alpha)
        if part.diff_b:
            tensors[part.stem(layer) + ".diff_b"] = drawn(5, OUT)
    metadata = {"lora_adapter_metadata": json.dumps(config)} if config is not None else {}
    save_file(tensors, path, metadata | ({"ss_network_alpha": trainer} if trainer is not None else {}))
    return deltas


def distance(lora: Lora, layer: str, delta: Tensor) -> float:
    update = exact_update(lora.layers[layer], None)
    got = update if isinstance(update, Tensor) else update.B.double() @ update.A.double()
    return float((got.double() - delta).norm() / delta.norm().clamp(min=1e-9))


@settings(deadline=None, max_examples=60)
@given(mixture=mixtures())
def test_any_mixture_is_read_as_it_was_built(mixture: Mixture, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("mixture") / "x.safetensors"
    deltas = build(mixture, path)
    lora = read_lora(path)
    assert set(lora.layers) == set(deltas)
    assert all(distance(lora, layer, delta) <= 1e-6 for layer, delta in deltas.items())
    assert len(lora.extras) == sum(part.diff_b for part in mixture[0].values()) and not lora.dropped
    assert {key for keys in lora.keys.values() for key in keys}.isdisjoint(lora.extras)


@settings(deadline=None, max_examples=30)
@given(mixture=mixtures(), format=st.sampled_from(sorted(FORMATS)))
def test_any_mixture_becomes_any_format(
    mixture: Mixture, format: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("mixture")
    deltas = build(mixture, folder / "x.safetensors")
    out = folder / ("out" if FORMATS[format].folder else "out.safetensors")
    convert(str(folder / "x.safetensors"), format, str(out), dtype="fp32")
    lora = read_lora(out)
    assert set(deltas) <= set(lora.layers)
    assert all(distance(lora, layer, delta) <= 1e-6 for layer, delta in deltas.items())
    assert {update.rank for update in lora.layers.values()} == {max(update.rank for update in lora.layers.values())}


def test_a_changed_alpha_would_be_seen(tmp_path: Any) -> None:
    """The property can fail: the same factors with another alpha are another update."""
    one = Part("diffusion_model.", "original", PEFT_PAIR, "LoRA", 2, 3.0, ".alpha", torch.float32, False)
    other = Part("lora_unet_", "original", KOHYA_PAIR, "LoRA", 2, 1.0, ".alpha", torch.float32, False)
    deltas = build(({LAYERS[0]: one}, None, None), tmp_path / "one.safetensors")
    build(({LAYERS[0]: other}, None, None), tmp_path / "other.safetensors")
    assert distance(read_lora(tmp_path / "one.safetensors"), LAYERS[0], deltas[LAYERS[0]]) < 1e-6
    assert distance(read_lora(tmp_path / "other.safetensors"), LAYERS[0], deltas[LAYERS[0]]) > 0.5
