"""Where a classifier errs: which classes it confuses, and which images are hardest for it."""

import torch
from torch import Tensor

from lightning_modules.prediction import log_probabilities


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
