"""Tiny Wan pipelines with real classes in every place, tokenizer and text encoder included; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WORDS = ["<pad>", "</s>", "<unk>", "a", "cat", "dog", "red", "ball", "rolls"]
CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 40,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}


def tiny_transformer(seed: int) -> WanTransformer3DModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return WanTransformer3DModel(**CONFIG)


def write_pipeline(folder: Path, transformer: WanTransformer3DModel, scheduler: SchedulerMixin | None = None) -> Path:
    """A whole pipeline without a VAE, which nothing here decodes with."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        )
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder.eval(),
        vae=None,
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer,
    )
    pipeline.save_pretrained(folder)
    return folder


def as_fastvideo(folder: Path, name: str = "WanDMDPipeline", gates: bool = True) -> Path:
    """The folder as FastVideo publishes it: its own class, gates of sparse attention, a scheduler that is not used."""
    index, weights = folder / "model_index.json", folder / "transformer" / "diffusion_pytorch_model.safetensors"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": name}))
    if gates:
        width = CONFIG["num_attention_heads"] * CONFIG["attention_head_dim"]
        more = {f"blocks.{block}.to_gate_compress.weight": torch.ones(width, width) for block in range(2)}
        save_file({**load_file(weights), **more}, weights)
    return folder


def drifted(transformer: WanTransformer3DModel, size: float = 0.2, seed: int = 5) -> WanTransformer3DModel:
    """The network after a distillation of sorts: its matrices moved by noise of a relative size."""
    moved = tiny_transformer(0)
    moved.load_state_dict(transformer.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in moved.parameters():
            if weight.ndim == 2:
                noise = torch.randn(weight.shape, generator=generator)
                weight += noise * (size * weight.norm() / noise.norm())
    return moved
