"""Losses that compare a network's answers with each other."""

from math import log

import torch
from torch import Tensor


def jensen_shannon(logits_clean: Tensor, logits_1: Tensor, logits_2: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the answers to three views of each image.

    Logits (N, C) of any precision; the mean over images in nats, float32 from 0 to log 3: how far
    the three distributions are from their mean, by the Kullback-Leibler divergence. AugMix adds it
    to the cross-entropy of the clean view with weight 12 (Hendrycks et al. 2020).
    """
    views = torch.stack([logits_clean, logits_1, logits_2]).float().log_softmax(2)
    # In logarithms, so that no probability has to be kept away from 0.
    mean = views.logsumexp(0) - log(3)
    return (views.exp() * (views - mean)).sum(2).mean()
