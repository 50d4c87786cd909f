"""SAMResNet (SAMResNets: Small, Accurate and Modern)."""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from lightning_modules.layers.attention import CBAM, CoordinateAttention, SqueezeExcitation
from lightning_modules.layers.blocks import Activation, BasicBlock, Stages, check_positive

Attention = Literal["se", "cbam", "coordinate"]


class SAMResNet(Stages):
    """Stages of basic blocks with attention between the two convolutions.

    Maps normalised images (N, 3, H, W) to logits (N, classes). The widths are 1, 2 and 4 times
    `base_width`, the strides 1, 2, 2; a fourth stage would continue them. SAMResNet has 4,733,610
    parameters, and 4,697,162 without SE. The paper's numbers, 5.02M and 4.96M, follow from no
    reading of its text. The paper's future work replaces SE: CBAM has 4,733,056 parameters, and
    coordinate attention 4,737,362 with any `se_reduction`. Efficient ResNet (Thakur et al. 2023)
    has SE only after the stem, and ReLU: 4,697,742 parameters. Raises ValueError for another
    `attention` than SE if `se` is off.
    """

    def __init__(
        self,
        base_width: int = 64,
        blocks: Sequence[int] = (4, 4, 3),
        se: bool = True,
        se_reduction: int = 16,
        activation: Activation = "silu",
        attention: Attention = "se",
        stem_se: bool = False,
        dropout: float = 0.0,
        classes: int = 10,
    ) -> None:
        check_positive(se_reduction=se_reduction)
        if attention not in get_args(Attention):
            raise ValueError(f"attention must be 'se', 'cbam' or 'coordinate', got {attention!r}")
        if attention != "se" and not se:
            raise ValueError(
                f"attention must be 'se', its default, if se is off, got {attention!r}"
            )

        def make_block(in_channels: int, channels: int, stride: int) -> nn.Module:
            layer: nn.Module | None = None
            if se and attention == "se":
                layer = SqueezeExcitation(channels, se_reduction, activation)
            elif se and attention == "cbam":
                layer = CBAM(channels, se_reduction)
            elif se:
                layer = CoordinateAttention(channels)
            return BasicBlock(in_channels, channels, stride, activation, after_act1=layer)

        stem = SqueezeExcitation(base_width, se_reduction, activation) if stem_se else None
        super().__init__(make_block, base_width, blocks, activation, stem, dropout, classes)
