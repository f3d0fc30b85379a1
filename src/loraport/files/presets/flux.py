"""FLUX.1 and FLUX.2 as published, and the accelerators for them."""

from __future__ import annotations

from loraport.files.presets.preset import AcceleratorPreset, Preset

_DEV = "flux.1-dev"
_LISTING = "the listing: the repository asks for a login; the file's name is the one that its makers' own code loads"
_KLEIN = "original names, one file beside the folders of diffusers"


def _klein(size: str, gigabytes: float) -> tuple[Preset, ...]:
    base = f"flux.2-klein-base-{size}"
    large = size.upper()
    where = f"black-forest-labs/FLUX.2-klein-base-{large}", f"black-forest-labs/FLUX.2-klein-{large}"
    unverified = "the listing; the file's name is the one that github.com/black-forest-labs/flux2 loads"
    return (
        Preset(base, "flux.2", where[0], f"flux-2-klein-base-{size}.safetensors", None, _KLEIN, unverified,
               gigabytes=gigabytes),
        Preset(f"flux.2-klein-{size}", "flux.2", where[1], f"flux-2-klein-{size}.safetensors", base,
               f"four steps, no guidance; {_KLEIN}", unverified, gigabytes=gigabytes),
    )  # fmt: skip


FLUX_MODELS: tuple[Preset, ...] = (
    Preset(_DEV, "flux.1", "black-forest-labs/FLUX.1-dev", "flux1-dev.safetensors",
           notes="original names, bf16 by the size; distilled to take guidance as an input, which schnell does not",
           unverified=_LISTING, gigabytes=23.8),
    Preset("flux.1-schnell", "flux.1", "black-forest-labs/FLUX.1-schnell", "flux1-schnell.safetensors", _DEV,
           "one to four steps, no guidance: it has no guidance_in, so what a LoRA adapts of that is left out",
           "whether it was distilled from dev or beside it: both come from FLUX.1 pro, says the card",
           gigabytes=23.8),
    Preset("flux.1-krea-dev", "flux.1", "black-forest-labs/FLUX.1-Krea-dev", "flux1-krea-dev.safetensors", _DEV,
           "dev, trained on for looks, by Krea", _LISTING),
    Preset("flux.1-kontext-dev", "flux.1", "black-forest-labs/FLUX.1-Kontext-dev", "flux1-kontext-dev.safetensors",
           _DEV, "edits pictures; the names and shapes of dev", _LISTING),
    *_klein("4b", 7.75),
    *_klein("9b", 18.2),
    Preset("flux.2-dev", "flux.2", "black-forest-labs/FLUX.2-dev", "flux2-dev.safetensors",
           notes="original names, bf16; distilled to take guidance as an input", unverified=_LISTING, gigabytes=64.4),
)  # fmt: skip

FLUX_ACCELERATORS: tuple[AcceleratorPreset, ...] = (
    AcceleratorPreset("hyper-flux.1-8-steps", "flux.1", (_DEV,),
                      (("ByteDance/Hyper-SD:Hyper-FLUX.1-dev-8steps-lora.safetensors", 0.125),), 8, 3.5,
                      unverified="the listing, the spelling of its keys and its rank"),
    AcceleratorPreset("hyper-flux.1-16-steps", "flux.1", (_DEV,),
                      (("ByteDance/Hyper-SD:Hyper-FLUX.1-dev-16steps-lora.safetensors", 0.125),), 16, 3.5,
                      unverified="the listing, the spelling of its keys and its rank"),
    AcceleratorPreset("flux.1-turbo-alpha", "flux.1", (_DEV,),
                      (("alimama-creative/FLUX.1-Turbo-Alpha:diffusion_pytorch_model.safetensors", 1.0),), 8, 3.5,
                      notes="strength and guidance are its card's",
                      unverified="the spelling of its keys and its rank", seen="2ae8ecc"),
    AcceleratorPreset("flux.2-dev-turbo", "flux.2", ("flux.2-dev",),
                      (("fal/FLUX.2-dev-Turbo:flux.2-turbo-lora.safetensors", 1.0),), 8, 2.5,
                      "with eight sigmas of its own, which its card lists",
                      unverified="the listing, the spelling of its keys and its rank"),
)  # fmt: skip
