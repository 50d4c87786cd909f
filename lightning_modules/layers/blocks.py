"""Parts of residual networks: convolution with BatchNorm, basic block, stages."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from lightning_modules.layers.pooling import global_mean
from lightning_modules.layers.routing import Gate, skips

Activation = Literal["relu", "silu"]


def make_activation(name: Activation) -> nn.Module:
    """Return the activation of a name; raise ValueError for an unknown name."""
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name == "silu":
        # Not in place, because its gradient needs its input, which autograd would copy.
        return nn.SiLU()
    raise ValueError(f"activation must be 'relu' or 'silu', got {name!r}")


def conv_bn(
    in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1
) -> nn.Sequential:
    """Return a convolution without bias, padded to keep the size, and BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
        ),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016).

    The order is conv-BN-act, conv-BN, sum with the shortcut, act. Shapes are (N, in_channels, H, W)
    -> (N, channels, H / stride, W / stride). If the width or the stride changes, the shortcut is a
    1x1 convolution with BatchNorm. Attention may follow the first activation (`after_act1`) or the
    second BatchNorm (`after_bn2`). An image with a closed `gate` gets the shortcut alone.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        activation: Activation = "relu",
        after_act1: nn.Module | None = None,
        after_bn2: nn.Module | None = None,
        act_after_sum: bool = True,
        gate: Gate | None = None,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.conv_bn1 = conv_bn(in_channels, channels, stride=stride)
        self.act1 = make_activation(activation)
        self.after_act1 = nn.Identity() if after_act1 is None else after_act1
        self.conv_bn2 = conv_bn(channels, channels)
        self.after_bn2 = nn.Identity() if after_bn2 is None else after_bn2
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == channels
            else conv_bn(in_channels, channels, kernel_size=1, stride=stride)
        )
        self.act2 = make_activation(activation) if act_after_sum else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        gates = None if self.gate is None else self.gate(x)
        if skips(gates, self.training):
            return self.act2(self.shortcut(x))
        out = self.after_act1(self.act1(self.conv_bn1(x)))
        out = self.after_bn2(self.conv_bn2(out))
        if gates is not None:
            out = out * gates
        # In place, because the gradients of BatchNorm and attention do not need this output.
        out += self.shortcut(x)
        return self.act2(out)


def make_stages(
    block: Callable[[int, int, int], nn.Module],
    in_channels: int,
    widths: Sequence[int],
    strides: Sequence[int],
    blocks: Sequence[int],
) -> nn.Sequential:
    """Return the stages; their first blocks change the width and have the stride.

    `block` makes a block from its input channels, output channels and stride. Raises ValueError if
    `blocks` is not one positive count per stage.
    """
    if len(blocks) != len(widths) or min(blocks) < 1:
        raise ValueError(f"blocks must be {len(widths)} positive counts, got {list(blocks)}")
    stages = []
    for width, stride, count in zip(widths, strides, blocks, strict=True):
        first = block(in_channels, width, stride)
        stages.append(nn.Sequential(first, *(block(width, width, 1) for _ in range(count - 1))))
        in_channels = width
    return nn.Sequential(*stages)


class Stages(nn.Module):
    """Stem, stages and head: images (N, 3, H, W) to logits (N, classes).

    `blocks` contains the number of blocks of each stage. The widths are 1, 2, 4, ... times
    `base_width`, and the strides 1, 2, 2, ... `block` makes a block from its input channels, output
    channels and stride. `after_stem` follows the stem's activation; `dropout` comes after every
    block and before the head.
    """

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        base_width: int,
        blocks: Sequence[int],
        activation: Activation = "relu",
        after_stem: nn.Module | None = None,
        dropout: float = 0.0,
        classes: int = 10,
    ) -> None:
        super().__init__()
        check_positive(base_width=base_width, classes=classes)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")

        def with_dropout(in_channels: int, channels: int, stride: int) -> nn.Module:
            made = block(in_channels, channels, stride)
            return nn.Sequential(made, nn.Dropout(dropout)) if dropout else made

        if len(blocks) not in (3, 4):
            raise ValueError(f"blocks must be 3 or 4 positive counts, got {list(blocks)}")
        widths = [base_width * 2**i for i in range(len(blocks))]
        strides = [1] + [2] * (len(blocks) - 1)
        stem = [conv_bn(3, base_width), make_activation(activation)]
        self.stem = nn.Sequential(*stem, *([after_stem] if after_stem else []))
        self.stages = make_stages(with_dropout, base_width, widths, strides, blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(self.stem(images))
        return self.head(self.dropout(global_mean(features).flatten(1)))


def initialise(network: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / fan_out), with zero bias (He et al. 2015).

    The reference code of ResNet and WRN does the same. BatchNorm (ones, zeros) and linear layers
    keep torch's defaults.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # Not by nn.init, which ignores groups in the fan_out of a depthwise filter.
            area = math.prod(module.kernel_size)
            fan_out = module.out_channels * area // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_positive(**arguments: int) -> None:
    """Raise ValueError for the first argument below 1, with its name."""
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
