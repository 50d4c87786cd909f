"""Training of networks with gates: the loss of their target rate."""

from typing import Any

from torch import Tensor, nn

from lightning_modules.classifier import ImageClassifier
from lightning_modules.layers.routing import gates_of, target_rate_loss

#: weight of the target-rate loss in the code of its authors (Veit & Belongie 2018)
WEIGHT = 2.0


class RoutedClassifier(ImageClassifier):
    """ImageClassifier that adds the target-rate loss if its network has gates."""

    def __init__(self, network: nn.Module, target_rate: float, **training: Any) -> None:
        """
        Args:
            network: module that returns logits.
            target_rate: wanted share of open gates, in (0, 1].
        """
        if not 0 < target_rate <= 1:
            raise ValueError(f"target_rate must be above 0 and at most 1, got {target_rate}")
        super().__init__(network, **training)

    def loss(self, logits: Tensor, targets: Tensor, soft: Tensor | None = None) -> Tensor:
        loss = super().loss(logits, targets, soft)
        gates = gates_of(self.network)
        rates = [gate.rate for gate in gates if gate.rate is not None]
        for gate in gates:
            gate.rate = None  # its graph would prevent copies of the network
        if not rates:
            return loss
        return loss + WEIGHT * target_rate_loss(rates, self.hparams["target_rate"])
