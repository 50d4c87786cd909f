"""EnhancedEfficientResNet as a LightningModule."""

from typing import Any, ClassVar

from lightning_modules.layers.routing import Routing
from lightning_modules.networks.enhanced_efficient_resnet import (
    Attention,
    EnhancedEfficientResNet,
    ExtraConv,
)
from lightning_modules.routed import RoutedClassifier


class EnhancedEfficientResNetClassifier(RoutedClassifier):
    """EnhancedEfficientResNet with ImageClassifier's flags as `training`."""

    quick: ClassVar = {"base_width": 4, "dropout": 0.0}

    def __init__(
        self,
        base_width: int = 31,
        channel_attention: bool = True,
        spatial_attention: bool = True,
        extra_conv: ExtraConv = "separable",
        relu_after_sum: bool = True,
        dropout: float = 0.3,
        attention: Attention = "dual",
        routing: Routing = "none",
        target_rate: float = 0.6,
        classes: int = 10,
        **training: Any,
    ) -> None:
        """
        Args:
            base_width: channels of the stem; the four stages have 2, 4, 8 and 8 times as many.
            channel_attention: weight channels by their mean and maximum over all positions.
            spatial_attention: weight positions by their mean and maximum over all channels.
            extra_conv: kind of convolution after the last stage.
            relu_after_sum: apply a ReLU after each residual sum.
            dropout: probability of dropping a pooled feature before the linear layer.
            attention: both modules of the paper, or coordinate attention instead of them.
            routing: gates let each image skip blocks.
            target_rate: wanted share of open gates, in (0, 1].
            classes: classes of the data set, which run.py counts.
        """
        network = EnhancedEfficientResNet(
            base_width,
            channel_attention,
            spatial_attention,
            extra_conv,
            relu_after_sum,
            dropout,
            attention,
            routing,
            classes,
        )
        super().__init__(network, target_rate, **training)
