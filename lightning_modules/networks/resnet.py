"""ResNet: SAMResNet without attention, the baseline of its paper."""

from collections.abc import Sequence

from lightning_modules.layers.blocks import Activation
from lightning_modules.networks.sam_resnet import SAMResNet


class ResNet(SAMResNet):
    """Three stages of plain basic blocks: SAMResNet without `se`.

    Maps normalised images (N, 3, H, W) to logits (N, classes), with 4,697,162 parameters.
    """

    def __init__(
        self,
        base_width: int = 64,
        blocks: Sequence[int] = (4, 4, 3),
        activation: Activation = "silu",
        classes: int = 10,
    ) -> None:
        super().__init__(base_width, blocks, se=False, activation=activation, classes=classes)
