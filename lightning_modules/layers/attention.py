"""Attention over channels and over positions.

Each module maps feature maps (N, C, H, W) to their product with weights in (0, 1): same shape, same
dtype.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.layers.blocks import Activation, make_activation
from lightning_modules.layers.pooling import global_mean, mean


class SqueezeExcitation(nn.Module):
    """Channels weighted by their mean over all positions (Hu et al. 2018).

    1x1 convolutions with bias, C -> max(1, C // reduction) -> C, `activation` between them.
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
    """Channels weighted by their mean and maximum over all positions (Woo et al. 2018).

    Both go through one shared MLP without bias, C -> max(4, C // reduction) -> C. The gradient of a
    maximum that several positions share goes to one of them, as in the published code.
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
        # Not amax, whose gradient alone takes a quarter of a step of the whole network.
        average, maximum = global_mean(x).flatten(1), F.adaptive_max_pool2d(x, 1).flatten(1)
        weights = (self.mlp(average) + self.mlp(maximum)).sigmoid()
        return x * weights[:, :, None, None]


class SpatialAttention(nn.Module):
    """Positions weighted by the mean and maximum over channels (Woo et al. 2018).

    A 7x7 convolution, 2 -> 1, without bias: 98 parameters. CBAM's published code has a BatchNorm
    after it, its paper has none, and nor has this.
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
    """Each position weighted, channel by channel, by its row's and its column's mean (Hou 2021).

    Channels and positions in one: the means over rows and over columns go through one shared 1x1
    convolution to max(8, C // reduction) channels with BatchNorm and Hardswish, then through one
    each back to C, and a position's weight is the product of its row's and its column's.
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
