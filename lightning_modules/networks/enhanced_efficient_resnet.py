"""EnhancedEfficientResNet (Attention-Enhanced ResNet for CIFAR-10)."""

from typing import Literal, get_args

from torch import Tensor, nn

from lightning_modules.layers.attention import (
    ChannelAttention,
    CoordinateAttention,
    SpatialAttention,
)
from lightning_modules.layers.blocks import (
    BasicBlock,
    check_positive,
    conv_bn,
    initialise,
    make_stages,
)
from lightning_modules.layers.pooling import global_mean
from lightning_modules.layers.routing import Routing, make_gate

ExtraConv = Literal["separable", "pointwise", "none"]
Attention = Literal["dual", "coordinate"]


class EnhancedEfficientResNet(nn.Module):
    """Four stages of two ReLU basic blocks with dual attention before the sum.

    Maps normalised images (N, 3, H, W) to logits (N, classes). The widths are 2, 4, 8 and 8 times
    `base_width`, the strides 1, 2, 2, 1. Dropout, in [0, 1), acts before the linear layer.

    The paper claims 4,913,705 parameters and does not describe its extra convolution. "separable"
    (depthwise 3x3, pointwise 1x1, BN, ReLU and another channel attention) has exactly this number.
    "pointwise" (1x1, BN, ReLU), as in the README of its authors, has 4,904,033. The paper does not
    say either whether a ReLU follows the sum (`relu_after_sum`).

    The paper's future work is a hybrid of channel and spatial attention. With "coordinate" one
    coordinate attention replaces both modules of each block: 4,914,353 parameters. Raises
    ValueError for it if `channel_attention` or `spatial_attention` is off. With `routing` "gates"
    each image chooses its blocks: 4,932,321 parameters.
    """

    def __init__(
        self,
        base_width: int = 31,
        channel_attention: bool = True,
        spatial_attention: bool = True,
        extra_conv: ExtraConv = "separable",
        relu_after_sum: bool = True,
        dropout: float = 0.3,
        attention: Attention = "dual",
        routing: Routing = "none",
        classes: int = 10,
    ) -> None:
        super().__init__()
        if attention not in get_args(Attention):
            raise ValueError(f"attention must be 'dual' or 'coordinate', got {attention!r}")
        if attention == "coordinate" and not (channel_attention and spatial_attention):
            raise ValueError(
                "attention must be 'dual', its default, if channel_attention or spatial_attention "
                "is off, got 'coordinate'"
            )
        check_positive(base_width=base_width)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")

        def make_block(in_channels: int, channels: int, stride: int) -> nn.Module:
            layers = nn.Sequential()
            if attention == "coordinate":
                layers.append(CoordinateAttention(channels))
            else:
                if channel_attention:
                    layers.append(ChannelAttention(channels))
                if spatial_attention:
                    layers.append(SpatialAttention())
            return BasicBlock(
                in_channels,
                channels,
                stride,
                after_bn2=layers,
                act_after_sum=relu_after_sum,
                gate=make_gate(routing, in_channels),
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
