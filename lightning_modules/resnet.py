"""ResNet: SAMResNet without attention, the baseline of its paper."""

from collections.abc import Sequence
from typing import Any, ClassVar

from lightning_modules.classifier import ImageClassifier
from lightning_modules.layers.blocks import Activation
from lightning_modules.sam_resnet import SAMResNet


class ResNet(SAMResNet):
    """Three stages of plain basic blocks, 4,697,162 parameters: SAMResNet with `se` off.

    Normalised images (N, 3, 32, 32) to logits (N, 10).
    """

    def __init__(
        self,
        base_width: int = 64,
        blocks: Sequence[int] = (4, 4, 3),
        activation: Activation = "silu",
    ) -> None:
        super().__init__(base_width, blocks, se=False, activation=activation)


class ResNetClassifier(ImageClassifier):
    """ResNet as an image classifier; `training` are ImageClassifier's arguments."""

    grows = "base_width"
    quick: ClassVar = {"base_width": 8}

    def __init__(
        self,
        base_width: int = 64,
        blocks: tuple[int, int, int] = (4, 4, 3),
        activation: Activation = "silu",
        **training: Any,
    ) -> None:
        """
        Args:
            base_width: channels of the first stage; the others have twice and four times as many.
            blocks: residual blocks in each of the three stages.
            activation: nonlinearity of the stem and the blocks.
        """
        super().__init__(ResNet(base_width, blocks, activation), **training)
