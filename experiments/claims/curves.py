"""Rules for claims about a curve: its breaks, its fluctuation, and the best number of views."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import log, sqrt

import numpy as np

#: a curve with fewer validations is not judged
FEWEST = 10
#: squared error of an accuracy of 5,000 images, from rounding alone
ROUNDING = (1 / 5_000) ** 2 / 12


def find_breaks(curve: Sequence[float]) -> tuple[float, float] | None:
    """The two breaks of a validation curve, as shares of training.

    Three connected straight lines are fitted to the curve by least squares; each is at least a
    twentieth of training long. None if the curve has fewer than `FEWEST` validations, or if fewer
    lines describe it as well by the Bayesian information criterion (Schwarz 1978).
    """
    n = len(curve)
    if n < FEWEST:
        return None
    shortest = max(2, n // 20)  # validations of a piece
    x, y = np.arange(1, n + 1) / n, np.asarray(curve) - np.mean(curve)
    inner = x[shortest - 1 : n - shortest]
    columns = np.stack([np.ones(n), x, *(np.maximum(x - position, 0) for position in inner)])
    products, targets = columns @ columns.T, columns @ y

    def fit(breaks: Iterable[tuple[int, ...]]) -> tuple[float, tuple[int, ...]]:
        """The least criterion of lines with these breaks, and its breaks."""
        found = list(breaks)
        chosen = np.array([(0, 1, *(2 + i for i in of_line)) for of_line in found])
        right = targets[chosen]
        left = products[chosen[:, :, None], chosen[:, None, :]]
        solved = np.linalg.solve(left, right[:, :, None])[:, :, 0]
        errors = np.maximum((y @ y - (right * solved).sum(axis=1)) / n, ROUNDING)
        best = int(errors.argmin())
        return n * log(errors[best]) + (2 + 2 * len(found[best])) * log(n), found[best]

    indices = range(len(inner))
    none, _ = fit([()])
    one, _ = fit((i,) for i in indices)
    two, best = fit(pair for pair in combinations(indices, 2) if pair[1] - pair[0] >= shortest)
    if two >= min(none, one):
        return None
    return float(inner[best[0]]), float(inner[best[1]])


def late_fluctuation(curve: Sequence[float]) -> float | None:
    """Standard deviation around the trend in the last tenth of training.

    The trend is a straight line, because accuracy still rises. None for fewer than four
    validations in that tenth.
    """
    last = np.asarray(curve)[len(curve) - len(curve) // 10 :]
    if len(last) < 4:
        return None
    x = np.arange(len(last))
    residuals = last - np.polyval(np.polyfit(x, last, 1), x)
    return sqrt(float(residuals @ residuals) / (len(last) - 2))


def best_balance(measured: Mapping[int, tuple[float, float]]) -> int | None:
    """The number of views with the best balance of accuracy and time.

    `measured` maps a number of views to seconds and accuracy. The best number has the largest share
    of the gain that is possible minus its share of the additional seconds (the knee of Satopaa et
    al. 2011). None if more views gain nothing.
    """
    fewest, most = min(measured), max(measured)
    first_seconds, first_accuracy = measured[fewest]
    gain = max(accuracy for _, accuracy in measured.values()) - first_accuracy
    longer = measured[most][0] - first_seconds
    if gain <= 0 or longer <= 0:
        return None

    def balance(views: int) -> float:
        seconds, accuracy = measured[views]
        return (accuracy - first_accuracy) / gain - (seconds - first_seconds) / longer

    return max(measured, key=balance)
