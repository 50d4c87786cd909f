"""Statistics of a few training runs: means, differences and their intervals.

How sure one run is about other test images is another question:
`experiments.inference.evaluation.paired_bootstrap`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, nan, sqrt

import numpy as np
from scipy import stats

LEVEL = 0.95
#: usual standard deviation over seeds of CIFAR-10 test accuracy near 94%, in points; used if there
#: are no runs yet
USUAL_SD = 0.14


@dataclass(frozen=True)
class Estimate:
    """A mean, a difference or a ratio of spreads, with its interval at `LEVEL`.

    A single run, or an undefined value, has no interval. Equal runs have an interval of one point.
    """

    value: float  # nan if it is not defined
    sd: float | None  # of one run; pooled over both sides of a difference; None for n = 1
    interval: tuple[float, float] | None
    n: tuple[int, ...]  # number of runs, of both sides of a difference

    @property
    def margin(self) -> str:
        """Half the width of the interval, such as " ± 0.08"; empty without an interval."""
        if self.interval is None:
            return ""
        low, high = self.interval
        return f" ± {(high - low) / 2:.2f}"


def mean_of(values: Sequence[float]) -> Estimate:
    """Mean with its t-interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None, None, (len(values),))
    sd = float(np.std(values, ddof=1))
    low, high = mean, mean
    if np.ptp(values) > 0:
        interval = stats.ttest_1samp(values, 0.0).confidence_interval(LEVEL)
        low, high = float(interval.low), float(interval.high)
    return Estimate(mean, sd, (low, high), (len(values),))


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Mean of `ours - theirs`, in pairs, with the interval of the paired t-test.

    The interval excludes 0 exactly if the two-sided test at 5% finds a difference. `sd` is the
    standard deviation of the differences.
    """
    return mean_of([a - b for a, b in zip(ours, theirs, strict=True)])


def welch_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Difference of the means of independent runs (Welch 1947).

    The interval excludes 0 exactly if Welch's two-sided test at 5% finds a difference. `sd` is the
    root of the mean of both variances.
    """
    value = float(np.mean(ours) - np.mean(theirs))
    n = (len(ours), len(theirs))
    if min(n) < 2:
        return Estimate(value, None, None, n)
    variances = np.var(ours, ddof=1), np.var(theirs, ddof=1)
    low, high = value, value
    if np.ptp(ours) > 0 or np.ptp(theirs) > 0:
        interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(LEVEL)
        low, high = float(interval.low), float(interval.high)
    return Estimate(value, sqrt(sum(variances) / 2), (low, high), n)


def undefined(*n: int) -> Estimate:
    """An estimate without a value, because `n` runs (of each side) are too few."""
    return Estimate(nan, None, None, n)


def sd_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Ratio of two standard deviations, with the interval of the F-test.

    Undefined if one side is a single run, or has no spread.
    """
    n = (len(ours), len(theirs))
    if np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return undefined(*n)
    ratio = float(np.std(ours, ddof=1) / np.std(theirs, ddof=1))
    low, high = stats.f.interval(LEVEL, n[0] - 1, n[1] - 1)
    return Estimate(ratio, None, (ratio / sqrt(high), ratio / sqrt(low)), n)


def needed_seeds(difference: float, sd: float, paired: bool = False, power: float = 0.8) -> int:
    """Number of runs on each side, or of pairs, that a difference needs; 2 or more.

    With this number, the two-sided t-test at 5% finds the difference, with the right sign and
    with probability `power`. Exact for normal values with equal `sd` (noncentral t distribution):
    32 on each side for 0.1 points at sd 0.14. For pairs, `sd` belongs to their differences.
    """
    if difference == 0:
        raise ValueError("difference must not be 0")
    if sd == 0:
        return 2
    sides = 1 if paired else 2
    effect = abs(difference) / sd

    def found(n: int) -> float:
        degrees = sides * (n - 1)
        critical = stats.t.ppf((1 + LEVEL) / 2, degrees)
        return float(stats.nct.sf(critical, degrees, effect * sqrt(n / sides)))

    # The number for a known standard deviation is a lower bound.
    quantiles = stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(power)
    n = max(2, ceil(sides * (quantiles / effect) ** 2))
    while found(n) < power:
        n += 1
    return n
