"""Tiny pipelines of the real classes, whole: tokenizers, text encoders, VAE, networks; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    AutoencoderKL,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLWan,
    ClassifierFreeGuidance,
    EulerDiscreteScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.sampling.pipelines import CONFIG, drifted, tiny_transformer

WORDS = ["<pad>", "</s>", "<unk>", "a", "cat", "dog", "red", "ball", "rolls", "style"]


def seeded(make, seed=7):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval().requires_grad_(False)


def word_tokenizer(length=16, **more) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length, **more
    )


def umt5() -> UMT5EncoderModel:
    config = UMT5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    return seeded(lambda: UMT5EncoderModel(config))


def wan_vae() -> AutoencoderKLWan:
    return seeded(
        lambda: AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.0, 0.3], latents_std=[1.1, 0.9, 1.3, 0.7],
        )
    )  # fmt: skip


def with_vae(folder: Path) -> Path:
    """A pipeline of Wan that was written without its VAE, with one."""
    wan_vae().save_pretrained(folder / "vae")
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "vae": ["diffusers", "AutoencoderKLWan"]}))
    return folder


def wan_scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def write_wan(folder: Path, transformer: Any, scheduler: Any = None, second: Any = None) -> Path:
    more = {} if second is None else {"transformer_2": second, "boundary_ratio": 0.6}
    WanPipeline(
        tokenizer=word_tokenizer(), text_encoder=umt5(), vae=wan_vae(), scheduler=scheduler or wan_scheduler(),
        transformer=transformer, **more,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def anyflow_transformer(seed: int) -> AnyFlowTransformer3DModel:
    own = {name: value for name, value in CONFIG.items() if name != "qk_norm"}
    return seeded(lambda: AnyFlowTransformer3DModel(**own), seed)


def write_anyflow(folder: Path, transformer: Any) -> Path:
    AnyFlowPipeline(
        tokenizer=word_tokenizer(), text_encoder=umt5(), vae=wan_vae(), scheduler=FlowMapEulerDiscreteScheduler(),
        transformer=transformer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def moved(network: nn.Module, make, size: float = 0.2, seed: int = 5) -> Any:
    """The network after a distillation of sorts: its matrices moved by noise of a relative size."""
    other = make()
    other.load_state_dict(network.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.ndim >= 2:
                noise = torch.randn(weight.shape, generator=generator)
                weight += noise * (size * weight.norm() / noise.norm())
    return other


def hunyuan_transformer(seed: int = 0) -> HunyuanVideo15Transformer3DModel:
    return seeded(
        lambda: HunyuanVideo15Transformer3DModel(
            in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
            num_refiner_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=8,
            image_embed_dim=8, rope_axes_dim=(2, 2, 4), target_size=16,
        ),
        seed,
    )  # fmt: skip


def write_hunyuan(folder: Path, transformer: Any) -> Path:
    qwen = Qwen2_5_VLTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, rope_scaling={"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    )  # fmt: skip
    byt5 = T5Config(vocab_size=384, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    vae = seeded(
        lambda: AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(8, 8), layers_per_block=1, spatial_compression_ratio=2,
            temporal_compression_ratio=1, scaling_factor=0.9,
        )
    )  # fmt: skip
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    HunyuanVideo15Pipeline(
        text_encoder=seeded(lambda: Qwen2_5_VLTextModel(qwen)), tokenizer=word_tokenizer(64, chat_template=template),
        text_encoder_2=seeded(lambda: T5EncoderModel(byt5)), tokenizer_2=ByT5Tokenizer(), transformer=transformer,
        vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        guider=ClassifierFreeGuidance(guidance_scale=2.0),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def unet(seed: int = 0) -> UNet2DConditionModel:
    return seeded(
        lambda: UNet2DConditionModel(
            block_out_channels=(8, 16), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=8, transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=64,
            cross_attention_dim=32, norm_num_groups=4,
        ),
        seed,
    )  # fmt: skip


def write_sdxl(folder: Path, network: Any) -> Path:
    clip = CLIPTextConfig(
        bos_token_id=0, eos_token_id=1, hidden_size=16, intermediate_size=24, num_attention_heads=2,
        num_hidden_layers=3, pad_token_id=0, vocab_size=len(WORDS), projection_dim=16, max_position_embeddings=16,
    )  # fmt: skip
    vae = seeded(
        lambda: AutoencoderKL(
            block_out_channels=(8, 16), in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=32,
        )
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=vae, text_encoder=seeded(lambda: CLIPTextModel(clip)),
        text_encoder_2=seeded(lambda: CLIPTextModelWithProjection(clip)), tokenizer=word_tokenizer(),
        tokenizer_2=word_tokenizer(), unet=network,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def write_pairs(folder: Path, only: tuple[str, ...] = ()) -> dict[str, tuple[Path, Path]]:
    """A source and a distilled target of every family, by its name."""
    wan, low, hunyuan, images = tiny_transformer(0), tiny_transformer(1), hunyuan_transformer(), unet()
    flow = anyflow_transformer(0)
    flow.load_state_dict(drifted(wan).state_dict(), strict=False)
    pairs = {
        "wan": (lambda: write_wan(folder / "wan", wan), lambda: write_wan(folder / "few", drifted(wan))),
        "wan2.2": (
            lambda: write_wan(folder / "two", wan, second=low),
            lambda: write_wan(folder / "two-few", drifted(wan), second=drifted(low)),
        ),
        "anyflow": (lambda: folder / "wan", lambda: write_anyflow(folder / "anyflow", flow)),
        "hunyuan": (
            lambda: write_hunyuan(folder / "hunyuan", hunyuan),
            lambda: write_hunyuan(folder / "hunyuan-few", moved(hunyuan, hunyuan_transformer)),
        ),
        "sdxl": (lambda: write_sdxl(folder / "sdxl", images), lambda: write_sdxl(folder / "ssd", moved(images, unet))),
    }
    return {name: (source(), target()) for name, (source, target) in pairs.items() if not only or name in only}
