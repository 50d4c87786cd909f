"""EnhancedEfficientResNet (Attention-Enhanced ResNet for CIFAR-10)."""

from typing import Literal

from torch import Tensor, nn

from lightning_modules.layers.attention import ChannelAttention, SpatialAttention
from lightning_modules.layers.blocks import (
    BasicBlock,
    check_positive,
    conv_bn,
    initialise,
    make_stages,
)
from lightning_modules.layers.pooling import global_mean

ExtraConv = Literal["separable", "pointwise", "none"]


class EnhancedEfficientResNet(nn.Module):
    """Four stages of two ReLU basic blocks with dual attention before the sum.

    Maps normalised images (N, 3, H, W) to logits (N, classes). The widths are 2, 4, 8 and 8 times
    `base_width`, the strides 1, 2, 2, 1. Dropout, in [0, 1), acts before the linear layer.

    The paper claims 4,913,705 parameters and does not describe its extra convolution. "separable"
    (depthwise 3x3, pointwise 1x1, BN, ReLU and another channel attention) has exactly this number.
    "pointwise" (1x1, BN, ReLU), as in the README of its authors, has 4,904,033. The paper does not
    say either whether a ReLU follows the sum (`relu_after_sum`).
    """

    def __init__(
        self,
        base_width: int = 31,
        channel_attention: bool = True,
        spatial_attention: bool = True,
        extra_conv: ExtraConv = "separable",
        relu_after_sum: bool = True,
        dropout: float = 0.3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        check_positive(base_width=base_width)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")

        def make_block(in_channels: int, channels: int, stride: int) -> nn.Module:
            attention = nn.Sequential()
            if channel_attention:
                attention.append(ChannelAttention(channels))
            if spatial_attention:
                attention.append(SpatialAttention())
            return BasicBlock(
                in_channels, channels, stride, after_bn2=attention, act_after_sum=relu_after_sum
            )

        widths = [base_width * factor for factor in (2, 4, 8, 8)]
        self.stem = nn.Sequential(conv_bn(3, base_width), nn.ReLU(inplace=True))
        self.stages = make_stages(
            make_block, base_width, widths, strides=(1, 2, 2, 1), blocks=(2, 2, 2, 2)
        )
        self.extra_conv = _make_extra_conv(extra_conv, widths[-1], channel_attention)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.extra_conv(self.stages(self.stem(images)))
        return self.head(self.dropout(global_mean(features).flatten(1)))


def _make_extra_conv(kind: ExtraConv, width: int, channel_attention: bool) -> nn.Sequential:
    """Return the convolution after the last stage, which keeps the shape."""
    if kind == "none":
        return nn.Sequential()
    pointwise = nn.Sequential(conv_bn(width, width, kernel_size=1), nn.ReLU(inplace=True))
    if kind == "pointwise":
        return pointwise
    if kind == "separable":
        depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        separable = nn.Sequential(depthwise, *pointwise)
        if channel_attention:
            separable.append(ChannelAttention(width))
        return separable
    raise ValueError(f"extra_conv must be 'separable', 'pointwise' or 'none', got {kind!r}")
