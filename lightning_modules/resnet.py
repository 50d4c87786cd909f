"""ResNet as a LightningModule."""

from typing import Any, ClassVar

from lightning_modules.classifier import ImageClassifier
from lightning_modules.layers.blocks import Activation
from lightning_modules.networks.resnet import ResNet


class ResNetClassifier(ImageClassifier):
    """ResNet with ImageClassifier's flags as `training`."""

    quick: ClassVar = {"base_width": 8}

    def __init__(
        self,
        base_width: int = 64,
        blocks: tuple[int, int, int] = (4, 4, 3),
        activation: Activation = "silu",
        classes: int = 10,
        **training: Any,
    ) -> None:
        """
        Args:
            base_width: channels of the first stage; the others have twice and four times as many.
            blocks: residual blocks in each of the three stages.
            activation: nonlinearity of the stem and the blocks.
            classes: classes of the data set, which run.py counts.
        """
        super().__init__(ResNet(base_width, blocks, activation, classes), **training)
