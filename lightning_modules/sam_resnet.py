"""SAMResNet as a LightningModule."""

from typing import Any, ClassVar

from lightning_modules.classifier import ImageClassifier
from lightning_modules.layers.blocks import Activation
from lightning_modules.networks.sam_resnet import Attention, SAMResNet


class SAMResNetClassifier(ImageClassifier):
    """SAMResNet with ImageClassifier's flags as `training`."""

    quick: ClassVar = {"base_width": 8}

    def __init__(
        self,
        base_width: int = 64,
        blocks: tuple[int, int, int] = (4, 4, 3),
        se: bool = True,
        se_reduction: int = 16,
        activation: Activation = "silu",
        attention: Attention = "se",
        **training: Any,
    ) -> None:
        """
        Args:
            base_width: channels of the first stage; the others have twice and four times as many.
            blocks: residual blocks in each of the three stages.
            se: use attention in every block; without it the network is `resnet`.
            se_reduction: channels divided by the hidden channels of SE or CBAM.
            activation: nonlinearity of the stem, the blocks and SE.
            attention: squeeze-and-excitation, CBAM, or coordinate attention.
        """
        network = SAMResNet(base_width, blocks, se, se_reduction, activation, attention)
        super().__init__(network, **training)
