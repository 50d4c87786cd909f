"""WideResNet (Zagoruyko & Komodakis 2016)."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.layers.blocks import initialise, make_stages
from lightning_modules.layers.pooling import global_mean
from lightning_modules.layers.routing import Gate, Routing, make_gate, skips


class StochasticDepth(nn.Module):
    """Zeroes an image's features (N, C, H, W) with probability p in training.

    Other features are divided by 1 - p (Huang et al. 2016). It equals
    torchvision.ops.StochasticDepth(p, "row").
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - self.p).div_(1 - self.p)


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv, BN-ReLU-dropout-conv, plus the shortcut (He et al. 2016).

    Shapes are (N, in_channels, H, W) -> (N, channels, H / stride, W / stride). If the width or the
    stride changes, the shortcut is a 1x1 convolution of the first activation, without BatchNorm.
    `drop` is the probability of `StochasticDepth` in the residual branch. An image with a closed
    `gate` gets the shortcut alone.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        dropout: float = 0.0,
        drop: float = 0.0,
        gate: Gate | None = None,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.drop = StochasticDepth(drop) if drop > 0 else nn.Identity()
        self.shortcut = (
            None
            if stride == 1 and in_channels == channels
            else nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        gates = None if self.gate is None else self.gate(x)
        skipped = skips(gates, self.training)
        if skipped and self.shortcut is None:
            return x
        activated = F.relu(self.bn1(x), inplace=True)
        if skipped and self.shortcut is not None:
            return self.shortcut(activated)
        out = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        out = self.drop(self.conv2(self.dropout(out)))
        if gates is not None:
            out = out * gates
        out += x if self.shortcut is None else self.shortcut(activated)
        return out


class WideResNet(nn.Module):
    """WRN-depth-widen_factor: three stages of (depth - 4) / 6 pre-activation blocks.

    Maps normalised images (N, 3, H, W) to logits (N, classes). The stem has 16 channels, the stages
    `widen_factor` times 16, 32 and 64, rounded, and the strides 1, 2, 2. `dropout` in [0, 1) acts
    between the convolutions of a block. `stochastic_depth` in [0, 1) is the probability of skipping
    the last block for an image, and falls linearly to earlier blocks. With `routing` "gates" each
    image chooses its blocks. WRN-16-4 has 2,748,890 parameters, WRN-28-4 5,849,050.
    """

    def __init__(
        self,
        depth: int = 16,
        widen_factor: float = 4.0,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        routing: Routing = "none",
        classes: int = 10,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 10, 16, 22, ... (6n + 4), got {depth}")
        if not 1 / 16 <= widen_factor < math.inf:
            raise ValueError(
                f"widen_factor must be at least 1/16 (one channel) and finite, got {widen_factor}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if not 0 <= stochastic_depth < 1:
            raise ValueError(f"stochastic_depth must be in [0, 1), got {stochastic_depth}")
        widths = [round(widen_factor * width) for width in (16, 32, 64)]
        blocks = [(depth - 4) // 6] * 3
        drops = (stochastic_depth * i / sum(blocks) for i in range(1, sum(blocks) + 1))

        def make_block(in_channels: int, channels: int, stride: int) -> nn.Module:
            gate = make_gate(routing, in_channels)
            return PreActivationBlock(in_channels, channels, stride, dropout, next(drops), gate)

        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.stages = make_stages(make_block, 16, widths, strides=(1, 2, 2), blocks=blocks)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn(self.stages(self.stem(images))), inplace=True)
        return self.head(global_mean(features).flatten(1))
