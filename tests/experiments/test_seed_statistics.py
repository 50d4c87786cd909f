import math

import numpy as np
import pytest
from scipy import stats

from experiments.claims.seed_statistics import (
    USUAL_SD,
    mean_of,
    needed_seeds,
    paired_difference,
    sd_ratio,
    welch_difference,
)
from experiments.claims.verdicts import MEANING, judge

# Quantiles from tables at 97.5%: t with 2 and 4 degrees of freedom, F with (2, 2).
T2, T4, F22 = 4.30265, 2.77645, 39.0


def test_the_interval_of_a_mean_is_students():
    estimate = mean_of([1.0, 2.0, 3.0])
    assert (estimate.value, estimate.sd, estimate.n) == (2.0, 1.0, (3,))
    half = T2 / math.sqrt(3)
    assert estimate.interval == pytest.approx((2 - half, 2 + half), abs=1e-4)


def test_a_paired_interval_is_computed_from_differences():
    # The differences 1, 2, 3 do not contain the common part of each pair.
    estimate = paired_difference([11.0, 52.0, 93.0], [10.0, 50.0, 90.0])
    assert estimate == mean_of([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0, 2.0], [1.0])


def test_welchs_interval_of_equal_variances_and_sizes_is_the_pooled_one():
    estimate = welch_difference([11.0, 12.0, 13.0], [1.0, 2.0, 3.0])
    half = T4 * math.sqrt(1 / 3 + 1 / 3)
    assert estimate.value == 10
    assert estimate.sd == 1
    assert estimate.n == (3, 3)
    assert estimate.interval == pytest.approx((10 - half, 10 + half), abs=1e-4)


@pytest.mark.parametrize("sizes", [(3, 3), (2, 7), (10, 4)])
def test_an_interval_excludes_zero_exactly_if_the_test_rejects(sizes):
    rng = np.random.default_rng(0)
    decisions = set()
    for _ in range(40):
        ours, theirs = rng.normal(0.2, 0.1, sizes[0]), rng.normal(0, 0.3, sizes[1])
        low, high = welch_difference(ours, theirs).interval
        rejects = stats.ttest_ind(ours, theirs, equal_var=False).pvalue < 0.05
        assert (low > 0 or high < 0) == rejects
        decisions.add(rejects)
        n = min(sizes)
        low, high = paired_difference(ours[:n], theirs[:n]).interval
        assert (low > 0 or high < 0) == (stats.ttest_rel(ours[:n], theirs[:n]).pvalue < 0.05)
    assert decisions == {True, False}


def test_a_ratio_of_spreads_has_the_interval_of_the_f_test():
    estimate = sd_ratio([0.0, 2.0, 4.0], [0.0, 1.0, 2.0])
    assert estimate.value == pytest.approx(2.0)
    expected = 2 / math.sqrt(F22), 2 * math.sqrt(F22)
    assert estimate.interval == pytest.approx(expected, rel=1e-6)
    estimate = sd_ratio([0.0, 6.0, 12.0], [2.0, 4.0, 4.0, 2.0])
    assert (estimate.value, estimate.n) == (pytest.approx(6 / math.sqrt(4 / 3)), (3, 4))
    # Quantiles of F with (2, 3) and with (3, 2).
    expected = estimate.value / math.sqrt(16.0441), estimate.value * math.sqrt(39.1655)
    assert estimate.interval == pytest.approx(expected, rel=1e-5)


def test_intervals_have_their_stated_coverage():
    draws = np.random.default_rng(0).normal(93, 0.14, (400, 2, 3))
    intervals = [welch_difference(*draw).interval for draw in draws]
    # Welch's interval is slightly too wide for three runs per side.
    assert 0.94 < np.mean([low <= 0 <= high for low, high in intervals]) < 0.99


def test_one_run_has_a_value_and_no_interval():
    for estimate, value, n in (
        (mean_of([92.5]), 92.5, (1,)),
        (paired_difference([92.5], [92.0]), 0.5, (1,)),
        (welch_difference([92.5], [92.0, 92.5, 93.0]), 0.0, (1, 3)),
        (welch_difference([92.0, 92.5, 93.0], [92.0]), 0.5, (3, 1)),
    ):
        assert (estimate.value, estimate.n) == (value, n)
        assert estimate.interval is None
        assert estimate.sd is None


def test_equal_runs_have_an_interval_of_one_point():
    assert mean_of([92.1, 92.1, 92.1]).interval == pytest.approx((92.1, 92.1), abs=1e-9)
    assert welch_difference([2.0, 2.0], [1.0, 1.0]).interval == (1.0, 1.0)


def test_equal_runs_on_one_side_leave_the_interval_of_the_other():
    # Means 3 and 1. t with 1 degree of freedom is 12.7062; the standard error is 0.1.
    for ours, theirs in (([3.0, 3.0], [0.9, 1.1]), ([2.9, 3.1], [1.0, 1.0])):
        low, high = welch_difference(ours, theirs).interval
        assert (low, high) == pytest.approx((2 - 1.27062, 2 + 1.27062), abs=1e-4)


@pytest.mark.parametrize("side", [[92.5], [92.5, 92.5]])
def test_there_is_no_ratio_of_spreads_if_one_is_zero(side):
    others, n = [92.0, 92.1, 92.2], len(side)
    for ratio, sizes in ((sd_ratio(side, others), (n, 3)), (sd_ratio(others, side), (3, n))):
        assert math.isnan(ratio.value)
        assert ratio.n == sizes
        assert ratio.interval is None


@pytest.mark.parametrize(
    ("effect", "a_side", "pairs"),
    [(1.0, 17, 10), (-1.0, 17, 10), (0.5, 64, 34), (0.1 / 0.14, 32, 18), (70.0, 2, 2)],
)
def test_the_needed_runs_equal_the_textbooks(effect, a_side, pairs):
    # Cohen 1988, tables 2.4. The normal approximation would give 16 and 8 for an effect of 1.
    assert needed_seeds(effect, 1.0) == a_side
    assert needed_seeds(0.14 * effect, 0.14, paired=True) == pairs


def test_more_power_needs_more_runs_and_no_variance_needs_two():
    assert needed_seeds(0.1, 0.14, power=0.9) == 43
    assert needed_seeds(0.1, USUAL_SD) == 32
    assert needed_seeds(0.1, 0.0) == 2
    with pytest.raises(ValueError, match="difference must not be 0"):
        needed_seeds(0.0, 0.14)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("effect", [1.0, 2.5])
def test_the_needed_runs_have_the_promised_power_and_one_less_does_not(effect, paired):
    n = needed_seeds(effect, 1.0, paired)
    rng = np.random.default_rng(0)

    def found(n):
        ours = rng.normal(effect, 1, (20_000, n))
        theirs = rng.normal(0, 1, (20_000, n))
        if paired:
            return np.mean(stats.ttest_1samp(ours, 0, axis=1).pvalue < 0.05)
        return np.mean(stats.ttest_ind(ours, theirs, axis=1).pvalue < 0.05)

    # Three standard errors of this number of draws are 0.0085.
    assert found(n) > 0.7915
    assert found(n - 1) < 0.8085


MORE, NUMBER, LESS = (0.0, math.inf), (0.65, 0.75), (-1.25, -1.15)


@pytest.mark.parametrize(
    ("claimed", "measured", "threshold", "verdict"),
    [
        # a difference that is claimed as a number
        (NUMBER, (0.3, 0.9), 0.0, "reproduced"),
        (NUMBER, (0.74, 0.9), 0.0, "reproduced"),
        (NUMBER, (0.1, 0.4), 0.0, "direction only"),
        (NUMBER, (1.0, 2.0), 0.0, "direction only"),
        (NUMBER, (-0.2, 1.0), 0.0, "undecided"),
        (NUMBER, (-0.2, 0.3), 0.0, "contradicted"),
        (NUMBER, (-0.9, -0.5), 0.0, "contradicted"),
        (NUMBER, None, 0.0, "undecided"),
        # both intervals contain their ends
        (NUMBER, (0.75, 0.9), 0.0, "reproduced"),
        (NUMBER, (0.3, 0.65), 0.0, "reproduced"),
        (NUMBER, (0.0, 0.7), 0.0, "undecided"),
        (LESS, (-1.2, 0.0), 0.0, "undecided"),
        # a ratio: the side of the claim is the side of its middle
        ((0.85, 0.95), (0.8, 0.96), 1.0, "reproduced"),
        ((0.5, 1.1), (0.8, 0.9), 1.0, "reproduced"),
        ((1.1, 1.3), (1.05, 1.2), 1.0, "reproduced"),
        # a loss that is claimed as a number
        (LESS, (-1.5, -0.9), 0.0, "reproduced"),
        (LESS, (-0.9, -0.1), 0.0, "direction only"),
        (LESS, (-1.5, 0.1), 0.0, "undecided"),
        (LESS, (-0.3, 0.4), 0.0, "contradicted"),
        (LESS, (1.1, 1.3), 0.0, "contradicted"),
        # only a direction
        (MORE, (0.1, 0.2), 0.0, "reproduced"),
        (MORE, (-0.1, 0.2), 0.0, "undecided"),
        (MORE, (-0.3, -0.1), 0.0, "contradicted"),
        ((-math.inf, 1.0), (0.2, 0.9), 1.0, "reproduced"),
        ((-math.inf, 1.0), (0.2, 1.9), 1.0, "undecided"),
        ((1.0, math.inf), (0.7, 0.8), 1.0, "contradicted"),
        # a value by itself
        ((95.295, 95.305), (95.1, 95.4), None, "reproduced"),
        ((95.295, 95.305), (95.31, 95.4), None, "contradicted"),
        ((95.295, 95.305), None, None, "undecided"),
        # counts
        ((5_015_000, 5_025_000), (4_733_610, 4_733_610), None, "contradicted"),
        ((5_750_000, 5_850_000), (5_849_050, 5_849_050), None, "reproduced"),
    ],
)
def test_the_verdict_rule(claimed, measured, threshold, verdict):
    assert judge(claimed, measured, threshold) == verdict
    assert verdict in MEANING
