"""WideResNet as a LightningModule."""

from typing import Any, ClassVar

from lightning_modules.layers.routing import Routing
from lightning_modules.networks.wide_resnet import WideResNet
from lightning_modules.routed import RoutedClassifier


class WideResNetClassifier(RoutedClassifier):
    """WideResNet with ImageClassifier's flags as `training`."""

    grows = "widen_factor"
    grows_by = 1 / 16
    # The champions' rate is for batches of 512 images.
    quick: ClassVar = {"depth": 10, "widen_factor": 1.0, "lr": 0.2}

    def __init__(
        self,
        depth: int = 16,
        widen_factor: float = 4.0,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        routing: Routing = "none",
        target_rate: float = 0.6,
        classes: int = 10,
        **training: Any,
    ) -> None:
        """
        Args:
            depth: convolutional layers, shortcuts included: 6n + 4 for n blocks in each stage.
            widen_factor: width of the three stages in multiples of 16, 32 and 64 channels.
            dropout: probability of dropping an activation between the convolutions of a block.
            stochastic_depth: probability of skipping the last block; smaller for earlier blocks.
            routing: gates let each image skip blocks.
            target_rate: wanted share of open gates, in (0, 1].
            classes: classes of the data set, which run.py counts.
        """
        network = WideResNet(depth, widen_factor, dropout, stochastic_depth, routing, classes)
        super().__init__(network, target_rate, **training)
