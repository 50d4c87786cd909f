"""SEResNet: squeeze-and-excitation as in its paper (Hu et al. 2018)."""

from collections.abc import Sequence

from torch import nn

from lightning_modules.layers.attention import SqueezeExcitation
from lightning_modules.layers.blocks import BasicBlock, Stages, check_positive


class SEResNet(Stages):
    """Three stages of ReLU basic blocks with SE before the sum.

    Maps normalised images (N, 3, H, W) to logits (N, classes). The widths are 1, 2 and 4 times
    `base_width`, the strides 1, 2, 2. By default SEResNet has the depth, the widths and the
    4,733,610 parameters of SAMResNet. Only the activation and the position of SE differ.
    """

    def __init__(
        self,
        base_width: int = 64,
        blocks: Sequence[int] = (4, 4, 3),
        se_reduction: int = 16,
        classes: int = 10,
    ) -> None:
        check_positive(se_reduction=se_reduction)

        def make_block(in_channels: int, channels: int, stride: int) -> nn.Module:
            se = SqueezeExcitation(channels, se_reduction)
            return BasicBlock(in_channels, channels, stride, after_bn2=se)

        super().__init__(make_block, base_width, blocks, classes=classes)
