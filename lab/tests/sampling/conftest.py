"""An untrained embedded family, and an adapter on it."""

import pytest
import torch

PAIRED = ("one-step", "few-step", "causal", "matched")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """An untrained base, and students that are the base moved by noise."""
    pytest.importorskip("diffusers")
    from loraport_lab.family.family import student_path
    from loraport_lab.family.model import Size, new_model

    folder = tmp_path_factory.mktemp("family")
    new_model(0, Size(width=64)).save_pretrained(folder / "base" / "transformer")
    for name in PAIRED:
        model, generator = new_model(0, Size(width=64)), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:
                    noise = torch.randn(weight.shape, generator=generator)
                    weight += noise * (0.2 * weight.norm() / noise.norm())
        model.save_pretrained(student_path(name, folder) / "transformer")
    return folder


@pytest.fixture(scope="module")
def adapter():
    from loraport.sampling.hooks import linear_layers
    from loraport.spectral.low_rank import LowRank
    from loraport_lab.family.model import Size, new_model

    generator = torch.Generator().manual_seed(2)
    updates = {}
    for name, layer in linear_layers(new_model(0, Size(width=64))).items():
        if name.startswith("blocks."):
            A = torch.randn(2, layer.in_features, generator=generator) / layer.in_features**0.5
            updates[name] = LowRank(0.2 * torch.randn(layer.out_features, 2, generator=generator), A)
    return updates
