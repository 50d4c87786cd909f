"""SEResNet as a LightningModule."""

from typing import Any, ClassVar

from lightning_modules.classifier import ImageClassifier
from lightning_modules.networks.se_resnet import SEResNet


class SEResNetClassifier(ImageClassifier):
    """SEResNet with ImageClassifier's flags as `training`."""

    quick: ClassVar = {"base_width": 8}

    def __init__(
        self,
        base_width: int = 64,
        blocks: tuple[int, int, int] = (4, 4, 3),
        se_reduction: int = 16,
        classes: int = 10,
        **training: Any,
    ) -> None:
        """
        Args:
            base_width: channels of the first stage; the others have twice and four times as many.
            blocks: residual blocks in each of the three stages.
            se_reduction: channels divided by the hidden channels of SE.
            classes: classes of the data set, which run.py counts.
        """
        super().__init__(SEResNet(base_width, blocks, se_reduction, classes), **training)
