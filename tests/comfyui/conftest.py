import pytest

from tests import tiny
from tests.comfyui.stand_in import Comfy


@pytest.fixture
def comfy(tmp_path):
    """A stand-in of ComfyUI with two models and two LoRAs in its folders."""
    models, state = tmp_path / "models", tiny.tiny_state(0, blocks=1)
    for folder in ("loras", "diffusion_models", "checkpoints"):
        (models / folder).mkdir(parents=True)
    tiny.write_original(models / "diffusion_models" / "wan.safetensors", state)
    tiny.write_original(models / "diffusion_models" / "fast.safetensors", tiny.drifted(state))
    tiny.write_lora(models / "loras" / "style.safetensors", tiny.lora_factors(state))
    tiny.write_lora(models / "loras" / "accelerator.safetensors", tiny.lora_factors(state, 3))
    with Comfy(tmp_path) as comfy:
        yield comfy
