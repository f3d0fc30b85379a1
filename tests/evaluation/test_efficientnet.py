"""The network that comes as a package: its weights are real, and it is what its package's own program makes of them."""

import pytest
import torch

from loraport.errors import FileFormatError
from loraport.evaluation.metrics import efficientnet
from loraport.evaluation.metrics.efficientnet import EfficientNetLite0, load_efficientnet


def test_the_network_gives_what_the_packages_own_program_gives():
    waves = (40 * torch.linspace(-1, 1, 3 * 64 * 96).reshape(1, 3, 64, 96)).sin()
    with torch.no_grad():
        network = load_efficientnet()
        content, look = network(waves * torch.tensor([1.0, -1.0, 0.5])[:, None, None])
        scores = network.classify(content)
    assert content.shape == (1, 1280) and look.shape == (1, 48)
    # made once with efficientnet_lite_pytorch 0.1.0, which gives the same to the bit on one machine
    assert scores[0, :4].tolist() == pytest.approx([-0.1910, 3.8640, 1.2236, -5.4537], abs=1e-3)
    assert (int(scores.argmax()), float(scores.max())) == (905, pytest.approx(19.2298, abs=1e-3))


def test_other_weights_are_refused(monkeypatch):
    weights = EfficientNetLite0().state_dict()
    weights["_fc.weight"] = weights["_fc.weight"][:10]
    monkeypatch.setattr(efficientnet.torch, "load", lambda *_, **__: weights)
    with pytest.raises(FileFormatError, match=r"other weights than its version 0\.1\.0"):
        load_efficientnet()
