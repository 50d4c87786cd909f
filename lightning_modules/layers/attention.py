"""Attention over channels and over positions.

Each module multiplies feature maps (N, C, H, W) by weights in (0, 1), and keeps shape and dtype.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.layers.blocks import Activation, make_activation
from lightning_modules.layers.pooling import global_mean, mean


class SqueezeExcitation(nn.Module):
    """Weights channels by their mean over all positions (Hu et al. 2018).

    Two 1x1 convolutions with bias map C -> max(1, C // reduction) -> C, with `activation` between.
    """

    def __init__(self, channels: int, reduction: int = 16, activation: Activation = "relu") -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.activation = make_activation(activation)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = global_mean(x)
        return x * self.fc2(self.activation(self.fc1(squeezed))).sigmoid()


class ChannelAttention(nn.Module):
    """Weights channels by their mean and maximum over all positions (Woo 2018).

    Both use one MLP without bias, C -> max(4, C // reduction) -> C. If several positions have the
    maximum, one of them gets the gradient, as in the published code.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, channels, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        # Not amax, whose gradient takes a quarter of the whole network's step.
        average, maximum = global_mean(x).flatten(1), F.adaptive_max_pool2d(x, 1).flatten(1)
        weights = (self.mlp(average) + self.mlp(maximum)).sigmoid()
        return x * weights[:, :, None, None]


class SpatialAttention(nn.Module):
    """Weights positions by the mean and maximum over channels (Woo et al. 2018).

    A 7x7 convolution without bias maps 2 -> 1 channels (98 parameters). As in the paper, but not in
    CBAM's published code, no BatchNorm follows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat((mean(x, 1), x.amax(1, keepdim=True)), dim=1)
        return x * self.conv(pooled).sigmoid()


class CBAM(nn.Sequential):
    """Channel attention, then spatial attention (Woo et al. 2018)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__(ChannelAttention(channels, reduction), SpatialAttention())


class CoordinateAttention(nn.Module):
    """Weights channels and positions by row and column means (Hou 2021).

    One 1x1 convolution maps the means of all rows and columns to max(8, C // reduction) channels,
    with BatchNorm and Hardswish. Two others map rows and columns back to C channels. The weight of
    a position is the product of its row's weight and its column's weight.
    """

    def __init__(self, channels: int, reduction: int = 32) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)
        self.squeeze = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.Hardswish()
        )
        self.rows = nn.Conv2d(hidden, channels, 1)
        self.columns = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        means = torch.cat((mean(x, 3), mean(x, 2).mT), dim=2)
        rows, columns = self.squeeze(means).split([height, width], dim=2)
        return x * self.rows(rows).sigmoid() * self.columns(columns.mT).sigmoid()
