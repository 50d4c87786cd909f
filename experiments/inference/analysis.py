"""Pure analysis of predictions: reliability, confusion, and the hardest images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.prediction import log_probabilities


@dataclass(frozen=True)
class Reliability:
    """Equally wide bins of confidence from 0 to 1; the means of an empty bin are 0."""

    counts: Tensor  # int64 (bins,): how many predictions fall into it
    confidence: Tensor  # float64 (bins,): their mean probability
    accuracy: Tensor  # float64 (bins,): the share of them that is right

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance of the two, weighted by the counts."""
        gaps = (self.confidence - self.accuracy).abs() * self.counts
        return (gaps.sum() / self.counts.sum()).item()


def reliability(
    logits: Tensor, labels: Tensor, temperature: float = 1.0, bins: int = 15
) -> Reliability:
    """Bin predictions by the probability of the predicted class (Guo et al. 2017).

    `logits` (N, C) are divided by the temperature first; `labels` are int64 (N,). A bin holds its
    lower edge and not its upper one, except for the last, as in torchmetrics, whose ECE of 15 bins
    the records hold.
    """
    confidence, predicted = log_probabilities(logits, temperature).double().exp().max(dim=1)
    index = (confidence * bins).long().clamp_(max=bins - 1)
    counts = index.bincount(minlength=bins)
    right = (predicted == labels).double()
    means = [torch.bincount(index, x, bins) / counts.clamp(min=1) for x in (confidence, right)]
    return Reliability(counts, *means)


def wilson_interval(shares: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """95% interval of shares that were counted in so many trials each (Wilson 1927).

    It stays within [0, 1], and has a width where all or none of few trials succeeded.
    """
    z = 1.96
    middle = (shares + z**2 / (2 * counts)) / (1 + z**2 / counts)
    spread = shares * (1 - shares) / counts + (z / (2 * counts)) ** 2
    half = z / (1 + z**2 / counts) * spread.sqrt()
    return middle - half, middle + half


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """How many images of each class (rows) were taken for each class (columns), int64 (C, C).

    Of logits (N, C) and labels int64 (N,).
    """
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(dim=1)
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def hardest(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Indices int64 of the images whose own class got the least probability, hardest first."""
    own = log_probabilities(logits).gather(1, labels[:, None]).squeeze(1)
    return own.argsort(stable=True)[:count]
