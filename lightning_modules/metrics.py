"""Loss and accuracy over the images of an epoch."""

import torch
from torch import Tensor
from torchmetrics import Metric


class LossAndAccuracy(Metric):
    """Mean loss and accuracy over images, in one update and without a synchronisation."""

    loss: Tensor
    correct: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        # In 32 bits, as Apple's GPUs have no more: counts of images are exact up to 16 million.
        for name in ("loss", "correct", "images"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, mean_loss: Tensor, correct: Tensor) -> None:
        """Add a batch: its mean loss, and for each image (N,) how right its prediction was."""
        self.loss += mean_loss.detach() * len(correct)
        self.correct += correct.sum()
        self.images += len(correct)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy over all batches since the last reset."""
        return self.loss / self.images, self.correct / self.images


def accuracy_per_image(logits: Tensor, targets: Tensor) -> Tensor:
    """The target's weight on the predicted class, float (N,), of logits (N, C).

    For int64 labels (N,) that is 1 where the prediction is right. For soft targets (N, C), as MixUp
    makes them, it is the share of the target that the prediction names, which is how a training
    accuracy under mixing is counted (Zhang et al. 2018).
    """
    predicted = logits.argmax(dim=1)
    if targets.is_floating_point():
        return targets.gather(1, predicted[:, None]).squeeze(1)
    return (predicted == targets).float()
