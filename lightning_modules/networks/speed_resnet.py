"""SpeedResNet: a network for fast training (Jordan 2024, Page 2019)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.layers.blocks import check_positive
from lightning_modules.layers.whitening import PatchWhitening

#: factor of the logits, so that initial predictions are unsure
LOGIT_SCALE = 1 / 9


def batch_norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    """Return BatchNorm with scale 1 and a batch's share `momentum` of statistics."""
    norm = nn.BatchNorm2d(channels, momentum=momentum)
    norm.weight.requires_grad_(False)
    return norm


def conv3x3(in_channels: int, channels: int, dirac: bool) -> nn.Conv2d:
    """Return a 3x3 convolution without bias.

    With `dirac` the first `in_channels` filters start as the identity. The other filters keep
    torch's initial weights.
    """
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    if dirac:
        with torch.no_grad():
            nn.init.dirac_(conv.weight[:in_channels])
    return conv


class ConvGroup(nn.Module):
    """conv-pool-norm-GELU, then (convs - 1) times conv-norm-GELU, all 3x3.

    Shapes are (N, in_channels, H, W) -> (N, channels, H // 2, W // 2). With `residual`, the output
    of the first convolution is added before the last activation.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        convs: int,
        residual: bool,
        dirac: bool,
        bn_momentum: float,
    ) -> None:
        super().__init__()
        widths = [in_channels, *[channels] * convs]
        self.residual = residual
        self.convs = nn.ModuleList(conv3x3(i, o, dirac) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(batch_norm(channels, bn_momentum) for _ in range(convs))

    def forward(self, x: Tensor) -> Tensor:
        x = first = F.gelu(self.norms[0](F.max_pool2d(self.convs[0](x), 2)))
        for i in range(1, len(self.convs)):
            x = self.norms[i](self.convs[i](x))
            if self.residual and i == len(self.convs) - 1:
                x = x + first
            x = F.gelu(x)
        return x


class SpeedResNet(nn.Module):
    """A whitening layer and three groups of convolutions.

    Maps normalised images (N, 3, H, W) to logits (N, classes). Each group has `base_width` times
    `widths` channels and `convs` convolutions, and halves the resolution. The default, with
    1,971,352 trainable parameters, is the network of "94% on CIFAR-10 in 3.29 Seconds". Its network
    for 96% has three convolutions per group, `residual`, and more than 5,000,000 parameters; with
    `widths` (1, 4, 6) it has 4,959,576.
    """

    def __init__(
        self,
        base_width: int = 64,
        widths: Sequence[int] = (1, 4, 4),
        convs: int = 2,
        residual: bool = False,
        whitening: bool = True,
        dirac: bool = True,
        bn_momentum: float = 0.4,
        classes: int = 10,
    ) -> None:
        super().__init__()
        check_positive(base_width=base_width, convs=convs, classes=classes)
        if len(widths) != 3 or min(widths) < 1:
            raise ValueError(f"widths must be 3 positive multiples, got {list(widths)}")
        if residual and convs < 2:
            raise ValueError(f"convs must be 2 or more if residual is on, got {convs}")
        if not 0 < bn_momentum <= 1:
            raise ValueError(f"bn_momentum must be in (0, 1], got {bn_momentum}")
        self.stem = PatchWhitening(3, 2) if whitening else nn.Conv2d(3, 24, 2)
        channels = [self.stem.out_channels, *(base_width * factor for factor in widths)]
        self.groups = nn.Sequential(
            *(ConvGroup(i, o, convs, residual, dirac, bn_momentum) for i, o in pairwise(channels))
        )
        self.head = nn.Linear(channels[-1], classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.groups(F.gelu(self.stem(images)))
        return self.head(features.amax((2, 3))) * LOGIT_SCALE
