"""SEResNet: squeeze-and-excitation as in its paper (Hu et al. 2018)."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_modules.layers.attention import SqueezeExcitation
from lightning_modules.layers.blocks import (
    BasicBlock,
    check_positive,
    conv_bn,
    initialise,
    make_stages,
)
from lightning_modules.layers.pooling import global_mean


class SEResNet(nn.Module):
    """Three stages of ReLU basic blocks with SE before the sum.

    Maps normalised images (N, 3, 32, 32) to logits (N, 10). The widths are 1, 2 and 4 times
    `base_width`, the strides 1, 2, 2. By default SEResNet has the depth, the widths and the
    4,733,610 parameters of SAMResNet. Only the activation and the position of SE differ.
    """

    def __init__(
        self, base_width: int = 64, blocks: Sequence[int] = (4, 4, 3), se_reduction: int = 16
    ) -> None:
        super().__init__()
        check_positive(base_width=base_width, se_reduction=se_reduction)

        def make_block(in_channels: int, channels: int, stride: int) -> nn.Module:
            se = SqueezeExcitation(channels, se_reduction)
            return BasicBlock(in_channels, channels, stride, after_bn2=se)

        widths = [base_width, 2 * base_width, 4 * base_width]
        self.stem = nn.Sequential(conv_bn(3, base_width), nn.ReLU(inplace=True))
        self.stages = make_stages(make_block, base_width, widths, strides=(1, 2, 2), blocks=blocks)
        self.head = nn.Linear(widths[-1], 10)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(self.stem(images))
        return self.head(global_mean(features).flatten(1))
