"""Loss that compares the predictions for several views of an image."""

from math import log

import torch
from torch import Tensor


def jensen_shannon(logits_clean: Tensor, logits_1: Tensor, logits_2: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of the predictions for three views.

    This is the mean Kullback-Leibler divergence of the three distributions from their mean, in
    nats, also averaged over images: float32 from 0 to log 3. Logits (N, C) may have any precision.
    AugMix adds it to the cross-entropy of the clean view with weight 12 (Hendrycks et al. 2020).
    """
    views = torch.stack([logits_clean, logits_1, logits_2]).float().log_softmax(2)
    # With logarithms no probability needs a lower limit.
    mean = views.logsumexp(0) - log(3)
    return (views.exp() * (views - mean)).sum(2).mean()
