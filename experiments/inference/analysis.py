"""Pure analysis of predictions: reliability and the hardest images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.prediction import log_probabilities


@dataclass(frozen=True)
class Reliability:
    """Equally wide bins of confidence from 0 to 1; the means of an empty bin are 0."""

    counts: Tensor  # int64 (bins,): number of predictions
    confidence: Tensor  # float64 (bins,): mean probability of the predicted class
    accuracy: Tensor  # float64 (bins,): share of correct predictions

    @property
    def ece(self) -> float:
        """Expected calibration error: mean |confidence - accuracy| over predictions."""
        gaps = (self.confidence - self.accuracy).abs() * self.counts
        return (gaps.sum() / self.counts.sum()).item()


def reliability(
    logits: Tensor, labels: Tensor, temperature: float = 1.0, bins: int = 15
) -> Reliability:
    """Bin predictions by the probability of the predicted class (Guo et al. 2017).

    `logits` (N, C) are divided by the temperature first; `labels` are int64 (N,). As in
    torchmetrics, which computes the ECE of records, a bin contains its lower edge, and only the
    last one its upper edge.
    """
    confidence, predicted = log_probabilities(logits, temperature).double().exp().max(dim=1)
    index = (confidence * bins).long().clamp_(max=bins - 1)
    counts = index.bincount(minlength=bins)
    right = (predicted == labels).double()
    means = [torch.bincount(index, x, bins) / counts.clamp(min=1) for x in (confidence, right)]
    return Reliability(counts, *means)


def wilson_interval(shares: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 95% interval of shares of `counts` trials (Wilson 1927).

    It is within [0, 1], and its width is positive even if all or no trials succeeded.
    """
    z = 1.96
    middle = (shares + z**2 / (2 * counts)) / (1 + z**2 / counts)
    spread = shares * (1 - shares) / counts + (z / (2 * counts)) ** 2
    half = z / (1 + z**2 / counts) * spread.sqrt()
    return middle - half, middle + half


def hardest(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the indices of images whose true class has the lowest probability."""
    own = log_probabilities(logits).gather(1, labels[:, None]).squeeze(1)
    return own.argsort(stable=True)[:count]
