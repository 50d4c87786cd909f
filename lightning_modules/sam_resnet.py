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
        blocks: tuple[int, ...] = (4, 4, 3),
        se: bool = True,
        se_reduction: int = 16,
        activation: Activation = "silu",
        attention: Attention = "se",
        stem_se: bool = False,
        dropout: float = 0.0,
        classes: int = 10,
        **training: Any,
    ) -> None:
        """
        Args:
            base_width: channels of the first stage; each further stage has twice as many.
            blocks: residual blocks of each stage.
            se: use attention in every block; without it the network is `resnet`.
            se_reduction: channels divided by the hidden channels of SE or CBAM.
            activation: nonlinearity of the stem, the blocks and SE.
            attention: squeeze-and-excitation, CBAM, or coordinate attention.
            stem_se: use squeeze-and-excitation after the stem.
            dropout: probability of dropout after every block and before the head.
            classes: classes of the data set, which run.py counts.
        """
        network = SAMResNet(
            base_width, blocks, se, se_reduction, activation, attention, stem_se, dropout, classes
        )
        super().__init__(network, **training)
