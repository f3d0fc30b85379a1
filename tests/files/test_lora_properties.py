"""Files that mix what dialects differ in, drawn at random: they are read as the updates that they were built from."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from loraport.conversion import convert
from loraport.files.adapters.updates import exact_update
from loraport.files.lora.read import Lora, read_lora
from loraport.files.names.dialects import KOHYA_PAIR, PAIRS, PEFT_PAIR, Pair
from loraport.files.names.families import FAMILIES, Naming, RowSlice, flattened
from tests.dialects import FORMATS
from tests.families import HEADERS

OUT, IN = 6, 4
LAYERS = {
    "wan": ("blocks.0.self_attn.q", "blocks.0.cross_attn.o", "blocks.11.ffn.2", "head.head"),
    "hunyuanvideo-1.5": (
        *("transformer_blocks.0.attn.to_q", "transformer_blocks.53.attn.add_v_proj", "transformer_blocks.7.ff.net.2"),
        *("context_embedder.token_refiner.refiner_blocks.1.attn.to_k", "norm_out.linear"),
    ),
    "minimax-h3": (
        *("transformer_blocks.0.attn.to_out.0", "transformer_blocks.49.adaln_proj.linear", "norm_out.linear"),
        *("token_refiner.refiner_blocks.1.ff.net.0.proj", "time_embedder.linear_1"),
    ),
    "ltx-2": (
        *("transformer_blocks.0.attn1.to_q", "transformer_blocks.47.audio_ff.net.0.proj", "audio_time_embed.linear"),
        *(
            "transformer_blocks.3.video_to_audio_attn.to_gate_logits",
            "audio_proj_in",
            "prompt_adaln.linear",
        ),
    ),
    "flux.2": (
        *("transformer_blocks.7.attn.add_k_proj", "transformer_blocks.0.ff_context.linear_out"),
        *(
            "single_transformer_blocks.47.attn.to_qkv_mlp_proj",
            "double_stream_modulation_img.linear",
            "norm_out.linear",
        ),
    ),
    "flux.1": (
        *("transformer_blocks.0.attn.to_q", "transformer_blocks.18.attn.add_v_proj", "transformer_blocks.7.ff.net.2"),
        *("single_transformer_blocks.37.attn.to_k", "single_transformer_blocks.0.proj_out", "norm_out.linear"),
    ),
    "sd1.5": (
        *("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q", "up_blocks.3.resnets.2.time_emb_proj"),
        *(
            "down_blocks.2.attentions.1.transformer_blocks.0.ff.net.2",
            "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_v",
        ),
    ),
    "sdxl": (
        *("down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_q", "add_embedding.linear_2"),
        *(
            "up_blocks.0.attentions.2.transformer_blocks.8.ff.net.2",
            "mid_block.attentions.0.transformer_blocks.3.attn2.to_v",
        ),
    ),
    "krea2": (
        *("transformer_blocks.0.attn.to_k", "transformer_blocks.27.attn.to_gate", "transformer_blocks.9.ff.gate"),
        *("text_fusion.refiner_blocks.1.attn.to_out.0", "text_fusion.projector", "time_mod_proj"),
    ),
    "qwen-image": (
        *("transformer_blocks.0.attn.add_k_proj", "transformer_blocks.59.img_mod.1", "norm_out.linear"),
        *("transformer_blocks.7.txt_mlp.net.0.proj", "transformer_blocks.30.img_mlp.net.2"),
    ),
    "qwen-image-2.1": (
        *("transformer_blocks.0.img_mlp.gate_layer", "transformer_blocks.0.attn.to_out.0", "modulation.1"),
        *("transformer_blocks.31.img_mlp.out", "txt_in.in_layer"),
    ),
    "z-image": (
        *("layers.0.feed_forward.w3", "layers.29.attention.to_out.0", "context_refiner.1.feed_forward.w2"),
        *("noise_refiner.0.adaLN_modulation.0", "cap_embedder.1"),
    ),
}
"""Of each family a few layers; a module that fuses three of them counts for the three."""
FUSED = ("hunyuanvideo-1.5", "flux.1", "flux.2", "minimax-h3")
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

    def stem(self, rows: RowSlice) -> str:
        """The module's key."""
        return self.prefix + (flattened(rows.name) if self.flat else rows.name)


def drawn(seed: int, *shape: int) -> Tensor:
    """Multiples of 1/16 below 2: exact in every dtype."""
    return torch.randint(-31, 32, shape, generator=torch.Generator().manual_seed(seed)) / 16


parts = st.builds(
    Part,
    prefix=st.sampled_from(
        (
            *(
                "",
                "transformer.",
                "unet.",
                "diffusion_model.",
                "model.diffusion_model.",
                "generator.",
                "base_model.model.",
            ),
            *("lora_unet_", "lora_unet__", "lycoris_", "lora_transformer_"),
        )
    ),
    naming=st.just("original"),
    pair=st.sampled_from([*PAIRS, (".lora_A.default.weight", ".lora_B.default.weight")]),
    kind=st.sampled_from(["LoRA", "LoRA", "LoHa", "LoKr", "LoKr, whole"]),
    rank=st.integers(1, 3),
    alpha=st.none() | st.sampled_from([0.5, 1.0, 3.0, 8.0]),
    alpha_key=st.sampled_from([".alpha", ".lora_alpha"]),
    dtype=st.sampled_from(DTYPES),
    diff_b=st.booleans(),
)


def tensors_of(rows: RowSlice, part: Part, seed: int) -> tuple[dict[str, Tensor], Tensor, float | None]:
    """(the keys of one module, its update without scale, the rank that a scale is divided by)."""
    stem, r, out = part.stem(rows), part.rank, OUT * rows.of
    if part.kind == "LoRA":
        A, B = drawn(seed, r, IN), drawn(seed + 1, out, r)
        return {stem + part.pair[0]: A, stem + part.pair[1]: B}, B.double() @ A.double(), r
    if part.kind == "LoHa":
        a1, b1, a2, b2 = drawn(seed, out, r), drawn(seed + 1, r, IN), drawn(seed + 2, out, r), drawn(seed + 3, r, IN)
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        delta = (a1.double() @ b1.double()) * (a2.double() @ b2.double())
        return {f"{stem}.{name}": value for name, value in zip(names, (a1, b1, a2, b2), strict=True)}, delta, r
    w1 = drawn(seed, 2, 2)
    if part.kind == "LoKr, whole":
        w2 = drawn(seed + 1, out // 2, 2)
        return {f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2": w2}, torch.kron(w1.double(), w2.double()), None
    a, b = drawn(seed + 1, out // 2, r), drawn(seed + 2, r, 2)
    keys = {f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2_a": a, f"{stem}.lokr_w2_b": b}
    return keys, torch.kron(w1.double(), a.double() @ b.double()), r


Mixture = tuple[str, dict[str, Part], dict[str, Any] | None, str | None]


@st.composite
def mixtures(draw: Any) -> Mixture:
    """Some layers of a family, each in its own way; perhaps a configuration in the header, or a trainer's alpha."""
    family = draw(st.sampled_from(sorted(LAYERS)))
    layers = draw(st.lists(st.sampled_from(LAYERS[family]), min_size=1, unique=True))
    ways = {layer: draw(parts) for layer in layers}
    spelled = [naming for naming in FAMILIES[family].namings if naming != "xlabs"]
    namings = {layer: draw(st.sampled_from(spelled)) for layer in layers}
    config = draw(
        st.none() | st.fixed_dictionaries({"lora_alpha": st.sampled_from([2, 5]), "use_rslora": st.booleans()})
    )
    ways = {layer: replace(part, naming=namings[layer]) for layer, part in ways.items()}
    return family, ways, config, draw(st.none() | st.just("6"))


def scale_of(part: Part, rank: float | None, config: dict[str, Any] | None) -> float:
    """The rules once more: the tensor's alpha, else the header's, else 1; whole LoKr has none."""
    if part.alpha is not None and rank is not None:
        return part.alpha / rank
    if config is not None:
        r = 8 if rank is None else rank
        return config["lora_alpha"] / (math.sqrt(r) if config["use_rslora"] else r)
    return 1.0


def build(mixture: Mixture, path: Any) -> dict[str, Tensor]:
    """Writes the file; the updates that it stands for."""
    family, layers, config, trainer = mixture
    tensors: dict[str, Tensor] = {}
    deltas = {}
    for number, (layer, part) in enumerate(layers.items()):
        rows = FAMILIES[family].rows(layer, part.naming)
        assert rows is not None
        keys, delta, rank = tensors_of(rows, part, 10 * number)
        tensors |= {key: value.to(part.dtype) for key, value in keys.items()}
        delta = scale_of(part, rank, config) * delta
        for name, piece in FAMILIES[family].pieces(rows.name, part.naming):
            parts = (
                delta.chunk(2)[::-1] if piece.swapped else delta.chunk(piece.of)[piece.part : piece.part + piece.span]
            )
            deltas[name] = torch.cat(parts)
        if part.alpha is not None:
            tensors[part.stem(rows) + part.alpha_key] = torch.tensor(part.alpha)
        if part.diff_b:
            tensors[part.stem(rows) + ".diff_b"] = drawn(5, OUT * rows.of)
    metadata = {"lora_adapter_metadata": json.dumps(config)} if config is not None else {}
    metadata |= HEADERS.get(family, {})
    save_file(tensors, path, metadata | ({"ss_network_alpha": trainer} if trainer is not None else {}))
    return deltas


def distance(lora: Lora, layer: str, delta: Tensor) -> float:
    update = exact_update(lora.updates[layer], None)
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
    assert len(lora.extras) == sum(part.diff_b for part in mixture[1].values()) and not lora.dropped
    assert {key for layer in lora.layers.values() for key in layer.keys}.isdisjoint(lora.extras)


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
    assert len({update.rank for update in lora.updates.values()}) == 1 or mixture[0] in FUSED


def test_a_changed_alpha_would_be_seen(tmp_path: Any) -> None:
    """The property can fail: the same factors with another alpha are another update."""
    one = Part("diffusion_model.", "original", PEFT_PAIR, "LoRA", 2, 3.0, ".alpha", torch.float32, False)
    other = Part("lora_unet_", "original", KOHYA_PAIR, "LoRA", 2, 1.0, ".alpha", torch.float32, False)
    layer = LAYERS["wan"][0]
    deltas = build(("wan", {layer: one}, None, None), tmp_path / "one.safetensors")
    build(("wan", {layer: other}, None, None), tmp_path / "other.safetensors")
    assert distance(read_lora(tmp_path / "one.safetensors"), layer, deltas[layer]) < 1e-6
    assert distance(read_lora(tmp_path / "other.safetensors"), layer, deltas[layer]) > 0.5
