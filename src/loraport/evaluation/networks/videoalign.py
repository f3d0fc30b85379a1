"""VideoAlign, how good people find a clip: Qwen2-VL-2B with a LoRA and a head that reads a score at three tokens.

Its authors' program runs with transformers 4.45.2 and gives the network plain positions, one after another, for frames
too: their forward pass leaves out the call that would lay frames on a grid of time, height and width, so the network
was trained without. Newer transformers lay the grid unasked; positions are therefore given here.

The LoRA is merged at load, in the file's bfloat16; the authors keep it beside, which rounds differently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor, nn

from loraport.errors import FileFormatError, InputError
from loraport.evaluation.networks.folders import quiet
from loraport.evaluation.networks.texts import read_vocabulary
from loraport.evaluation.networks.videoalign_input import (
    SCORE_TOKENS,
    SCORES,
    TOGETHER,
    VIDEO_TOKEN,
    chosen_frames,
    pixels_of,
    question,
)
from loraport.evaluation.networks.weight_files import check_names, stored_weights
from loraport.files.formats.safetensors_read import StoredTensor

_OUTER = "base_model.model."
_PLACES = {"visual.": _OUTER + "visual.", "language_model.": _OUTER + "model."}
"""Where transformers 5 and the file have the two halves of the network."""
_HEAD = _OUTER + "rm_head.weight"
_WORDS, _LAST_WORDS = _OUTER + "model.embed_tokens.weight", _OUTER + "lm_head.weight"
"""One tensor in the authors' program, into which the second is loaded last."""


@dataclass(frozen=True)
class Settings:
    """What `model_config.json` says."""

    rate: float
    """Frames shown of a second."""
    most_pixels: int
    """Of a frame."""
    lora_scale: float
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    """Of the scores in training, for normalising."""


def read_settings(path: Path) -> Settings:
    """Return the settings of a `model_config.json`. Raises InputError and FileFormatError."""
    if not path.is_file():
        raise InputError(f"{path} is not there; fetch the file that `loraport evaluate --list` names for this metric")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        clips, network, lora, last = (
            said[name] for name in ("data_config", "model_config", "peft_lora_config", "inference_config")
        )
        other = {
            "sample_type": clips["sample_type"] != "uniform",
            "num_frames": clips["num_frames"] is not None,
            "prompt_template_type": clips["prompt_template_type"] != "detailed_special",
            "eval_dim": list(clips["eval_dim"]) != list(SCORES),
            "output_dim": network["output_dim"] != 1,
            "use_rslora": bool(lora["use_rslora"]),
        }
        settings = Settings(
            rate=float(clips["fps"]),
            most_pixels=int(clips["max_frame_pixels"]),
            lora_scale=lora["lora_alpha"] / lora["lora_r"],
            means=tuple(float(last[f"{name}_mean"]) for name in SCORES),
            spreads=tuple(float(last[f"{name}_std"]) for name in SCORES),
        )
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise FileFormatError(
            f"{path} is not VideoReward's model_config.json ({error!r}); download it again"
        ) from error
    if wrong := [name for name, is_wrong in other.items() if is_wrong]:
        raise FileFormatError(f"{path} says of {wrong[0]!r} something else than the published VideoReward; fetch that")
    return settings


class VideoAlign:
    """The network, its head, and the words it reads."""

    def __init__(self, network: Any, head: Float[Tensor, "1 width"], tokenizer: Any, settings: Settings) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._network, self._head, self._tokenizer = network, head, tokenizer
        self.settings = settings
        self._score_tokens = torch.tensor([tokenizer.token_to_id(token) for token in SCORE_TOKENS])

    @torch.inference_mode()
    def scores(self, frames: UInt8[ndarray, "t h w 3"], fps: float, prompt: str | None) -> Float[Tensor, " s"]:
        """Return the raw scores of a clip: of its looks, its motion and, with a prompt, how well it shows that."""
        if len(frames) < TOGETHER:
            raise InputError("VideoAlign looks at motion and needs a clip of at least two frames")
        shown = frames[chosen_frames(len(frames), fps, self.settings.rate)]
        pixels = pixels_of(shown, self.settings.most_pixels)
        if reserved := [token for token in (VIDEO_TOKEN, *SCORE_TOKENS) if token in (prompt or "")]:
            raise InputError(f"the prompt holds {reserved[0]}, which VideoAlign takes for more than text; leave it out")
        ids = torch.tensor(self._tokenizer.encode(question(prompt, pixels.tokens), add_special_tokens=False).ids)
        device, dtype = self._head.device, self._head.dtype
        hidden = self._network(
            input_ids=ids[None].to(device),
            position_ids=torch.arange(len(ids), device=device).expand(3, 1, -1),
            pixel_values_videos=pixels.values.to(device, dtype),
            video_grid_thw=torch.tensor([pixels.grid], device=device),
            use_cache=False,
        ).last_hidden_state[0]
        places = torch.isin(ids, self._score_tokens).nonzero()[:, 0]
        return (hidden[places.to(device)] @ self._head.T)[:, 0].float().cpu()

    def normalized(self, scores: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
        """Return raw scores as the authors' program prints them: less the mean and over the spread of training."""
        means, spreads = torch.tensor(self.settings.means), torch.tensor(self.settings.spreads)
        return (scores - means[: len(scores)]) / spreads[: len(scores)]


def real_configuration() -> Any:
    """Return the size of Qwen2-VL-2B with VideoAlign's three words added."""
    from transformers import Qwen2VLConfig

    eye = dict(depth=32, embed_dim=1280, hidden_size=1536, num_heads=16, mlp_ratio=4, in_channels=3)
    return Qwen2VLConfig(
        vision_config=eye | dict(patch_size=14, spatial_merge_size=2, temporal_patch_size=2),
        text_config=dict(
            vocab_size=151_660,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            max_position_embeddings=32_768,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        ),
        vision_start_token_id=151_652,
        vision_end_token_id=151_653,
        image_token_id=151_655,
        video_token_id=151_656,
    )


def load_videoalign(
    weights: Path, settings: Path, vocabulary: Path, device: torch.device, configuration: Any = None
) -> VideoAlign:
    """Return the network of `model.pth`, with `model_config.json` and the `tokenizer.json` of Qwen2-VL-2B-Instruct."""
    configuration = real_configuration() if configuration is None else configuration
    said = read_settings(settings)
    tokenizer = _with_score_tokens(vocabulary, configuration)
    stored = stored_weights(weights)
    network = _network(configuration, stored, weights, said.lora_scale)
    head = stored[_HEAD].read().to(network.dtype)
    return VideoAlign(network.to(device), head.to(device), tokenizer, said)


def _with_score_tokens(vocabulary: Path, configuration: Any) -> Any:
    tokenizer = read_vocabulary(vocabulary)
    words = configuration.text_config.vocab_size
    first = words - len(SCORE_TOKENS)
    tokenizer.add_special_tokens(list(SCORE_TOKENS))
    found = [tokenizer.token_to_id(token) for token in (VIDEO_TOKEN, *SCORE_TOKENS)]
    if found != [configuration.video_token_id, *range(first, words)]:
        raise FileFormatError(
            f"{vocabulary} is not the tokenizer of Qwen2-VL-2B-Instruct: it numbers {VIDEO_TOKEN} and the three words "
            f"that VideoAlign adds {found}; download it again"
        )
    return tokenizer


def _network(configuration: Any, stored: Mapping[str, StoredTensor], path: Path, scale: float) -> Any:
    from transformers import Qwen2VLModel

    with torch.device("meta"):
        empty = Qwen2VLModel(configuration)
    low_rank = {name for name, module in empty.language_model.named_modules() if isinstance(module, nn.Linear)}
    rank = next((one.shape[0] for key, one in stored.items() if ".lora_A." in key), 1)
    names = {name: _stored_name(name, low_rank) for name in empty.state_dict()}
    expected = {names[name]: tensor for name, tensor in empty.state_dict().items()}
    expected[_LAST_WORDS] = expected[_WORDS]
    with torch.device("meta"):
        expected[_HEAD] = torch.empty(1, configuration.text_config.hidden_size)
        for name in low_rank:
            rows, columns = empty.language_model.get_submodule(name).weight.shape
            start = f"{_PLACES['language_model.']}{name}.lora_"
            expected |= {f"{start}A.default.weight": torch.empty(rank, columns)}
            expected |= {f"{start}B.default.weight": torch.empty(rows, rank)}
    check_names(expected, stored, path, "VideoReward")
    with quiet():
        network: Any = Qwen2VLModel.from_pretrained(
            None,
            config=configuration,
            state_dict={name: _merged(stored, key, scale) for name, key in names.items()},
            dtype=stored[_HEAD].dtype,
        )
    return network.requires_grad_(False).eval()


def _stored_name(name: str, low_rank: set[str]) -> str:
    half = next(half for half in _PLACES if name.startswith(half))
    module, _, kind = name.removeprefix(half).rpartition(".")
    beside_lora = half == "language_model." and module in low_rank
    return f"{_PLACES[half]}{module}.{'base_layer.' if beside_lora else ''}{kind}"


def _merged(stored: Mapping[str, StoredTensor], key: str, scale: float) -> Tensor:
    """Return a weight of the file with its LoRA added, if it has one."""
    weight = stored[_LAST_WORDS if key == _WORDS else key].read()
    module, _, kind = key.rpartition(".base_layer.")
    if kind != "weight":
        return weight
    down, up = (stored[f"{module}.lora_{side}.default.weight"].read().float() for side in "AB")
    return (weight.float() + scale * (up @ down)).to(weight.dtype)
