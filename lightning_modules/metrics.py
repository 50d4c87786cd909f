"""Loss and accuracy of an epoch, and the steps that evaluate a network."""

from contextlib import nullcontext

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from lightning_modules.networks import borrowed

Batch = tuple[Tensor, Tensor]


class LossAndAccuracy(Metric):
    """Mean loss and accuracy over images, without a synchronisation."""

    loss: Tensor
    correct: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        # In 32 bits, because Apple's GPUs have no 64 bits. Counts are exact up to 16 million.
        for name in ("loss", "correct", "images"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, mean_loss: Tensor, correct: Tensor) -> None:
        """Add a batch's mean loss and the accuracy of each image (N,)."""
        self.loss += mean_loss.detach() * len(correct)
        self.correct += correct.sum()
        self.images += len(correct)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the mean loss and accuracy of all images since the last reset."""
        return self.loss / self.images, self.correct / self.images


def accuracy_per_image(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the target's weight on the predicted class, float (N,).

    For labels int64 (N,) this is 1 for a correct prediction and 0 for a wrong one. Soft targets
    (N, C) come from MixUp and CutMix (Zhang et al. 2018).
    """
    predicted = logits.argmax(dim=1)
    if targets.is_floating_point():
        return targets.gather(1, predicted[:, None]).squeeze(1)
    return (predicted == targets).float()


class EvaluationModule(LightningModule):
    """Validates, tests and predicts with `network`, whose logits `forward` returns."""

    network: nn.Module
    #: whether the network is compiled
    compiled: bool

    def __init__(self) -> None:
        super().__init__()
        self.eval_metrics: dict[str, LossAndAccuracy] = {}
        self._largest_batch = 0

    def evaluate(self, network: nn.Module, batch: Batch, suffix: str) -> None:
        """Add a batch to the loss and accuracy of `network` or an average of it.

        They are logged at the epoch's end as `val/loss{suffix}` and `val/acc{suffix}`. The loss has
        no label smoothing.
        """
        images, labels = batch
        with nullcontext() if network is self.network else borrowed(self.network, network):
            logits = self._evaluated(images)
        if suffix not in self.eval_metrics:
            self.eval_metrics[suffix] = LossAndAccuracy().to(self.device)
        self.eval_metrics[suffix].update(
            F.cross_entropy(logits, labels), accuracy_per_image(logits, labels)
        )

    def _evaluated(self, images: Tensor) -> Tensor:
        """Return logits in 32 bits; a compiled network gets batches of one size."""
        count = len(images)
        self._largest_batch = max(self._largest_batch, count)
        missing = self._largest_batch - count
        if self.compiled and missing:
            # Otherwise the network would be compiled again for the last batch of a data set.
            images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        return self(images)[:count].float()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(self.network, batch, "")

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        split = "test" if self.trainer.testing else "val"
        for suffix, metric in self.eval_metrics.items():
            loss, accuracy = metric.compute()
            self.log_dict({f"{split}/loss{suffix}": loss, f"{split}/acc{suffix}": accuracy})
        self.eval_metrics = {}

    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluated(batch[0])
