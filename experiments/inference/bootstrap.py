"""How sure a difference between two predictors on the same images is."""

import numpy as np
from torch import Tensor


def paired_bootstrap(
    correct: Tensor, baseline: Tensor, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of `correct - baseline`, by resampling images.

    `correct` and `baseline` are bool (N,): whether each image was classified rightly. Both are of
    the same images in the same order, so that what is hard for both cancels out (Efron and
    Tibshirani 1993). The interval is about other test images, not about other training runs.
    """
    difference = correct.numpy().astype(np.int64) - baseline.numpy()
    values, counts = np.unique(difference, return_counts=True)
    # N draws with replacement from N images hit the three values as often as a multinomial draw
    # says: the same distribution, without ten thousand times N random numbers.
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(difference), counts / len(difference), size=resamples)
    tail = (1 - level) / 2
    low, high = np.quantile(draws @ values / len(difference), [tail, 1 - tail])
    return float(low), float(high)
