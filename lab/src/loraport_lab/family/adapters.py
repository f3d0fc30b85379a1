"""LoRA files and the tiny Wan: made by PEFT, saved and loaded by the loaders that real users have."""

from pathlib import Path

from diffusers import WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from loraport.errors import FileFormatError, MismatchError

PEFT_PREFIX, DIFFUSERS_PREFIX = "base_model.model.", "transformer."
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]


def new_adapter(model: WanTransformer3DModel, rank: int, alpha: int) -> PeftModel:
    """`model` with fresh, trainable LoRA factors on every attention and feed-forward layer, all else frozen."""
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=LAYERS))


def save_peft_folder(adapter: PeftModel, folder: Path) -> None:
    """PEFT's own form: `adapter_config.json` and `adapter_model.safetensors`."""
    adapter.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def save_diffusers_file(adapter: PeftModel, path: Path) -> None:
    """Diffusers' own form: one fp16 file, keys `transformer.….lora_A.weight`, alpha in the header's metadata."""
    factors = {key.removeprefix(PEFT_PREFIX): value.half() for key, value in _factors(adapter).items()}
    settings = adapter.peft_config["default"].to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    WanLoraLoaderMixin.save_lora_weights(
        path.parent,
        transformer_lora_layers=factors,
        weight_name=path.name,
        transformer_lora_adapter_metadata=plain,
    )


def restart_from(adapter: PeftModel, path: Path) -> None:
    """Replace fresh factors by those of a file of either form, made with the same rank and alpha."""
    if path.is_dir():
        saved = load_file(path / "adapter_model.safetensors")
    else:
        saved = {PEFT_PREFIX + key.removeprefix(DIFFUSERS_PREFIX): value for key, value in load_file(path).items()}
    left = set_peft_model_state_dict(adapter, {key: value.float() for key, value in saved.items()})
    if left.unexpected_keys:
        raise MismatchError(f"{path}: {left.unexpected_keys[0]} fits no layer of the tiny Wan; was it made for it?")


def _factors(adapter: PeftModel) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in get_peft_model_state_dict(adapter).items()}


def attach(model: WanTransformer3DModel, path: Path) -> WanTransformer3DModel:
    """Load a LoRA (a PEFT folder or a safetensors file of a dialect that diffusers reads) into `model`, in place.

    Raises FileFormatError for a file that holds no LoRA, MismatchError when some of its keys find no layer.
    """
    if path.is_dir():
        PeftModel.from_pretrained(model, path)
        return model.requires_grad_(False).eval()
    with safe_open(path, framework="pt") as header:
        keys = list(header.keys())
    if not any(".lora_" in key for key in keys):
        raise FileFormatError(f"{path} holds no LoRA factors that diffusers can load; write the LoRA with --as lora")
    loaded = WanLoraLoaderMixin.lora_state_dict(path, return_lora_metadata=True)
    state, metadata = loaded[0], loaded[-1]
    model.load_lora_adapter(state, metadata=metadata)
    attached = sum(".lora_" in name for name, _ in model.named_parameters())
    expected = sum(".alpha" not in key for key in state)
    if attached != expected:
        raise MismatchError(f"{path}: {attached} of its {expected} tensors fit the tiny Wan; was it made for it?")
    return model.requires_grad_(False).eval()


def fuse(model: WanTransformer3DModel) -> WanTransformer3DModel:
    """Make a model with a loaded LoRA a plain model again, with the update added to its weights."""
    model.fuse_lora()
    model.unload_lora()
    return model
