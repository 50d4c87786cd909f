import numpy as np
import pytest

from experiments.claims.curves import best_balance, find_breaks, late_fluctuation


def curve(*corners, epochs=200, noise=0.0):
    """Straight lines between corners (share of training, accuracy), with noise."""
    x = np.arange(1, epochs + 1) / epochs
    exact = np.interp(x, *zip(*corners, strict=True))
    return list(exact + noise * np.random.default_rng(0).standard_normal(epochs))


@pytest.mark.parametrize("epochs", [40, 200, 500])
@pytest.mark.parametrize(("first", "second"), [(0.2, 0.8), (0.1, 0.5), (0.5, 0.9)])
def test_the_breaks_of_a_curve_of_three_lines_are_found(epochs, first, second):
    corners = (0, 0.3), (first, 0.7), (second, 0.75), (1, 0.95)
    found = find_breaks(curve(*corners, epochs=epochs, noise=0.002))
    assert found == pytest.approx((first, second), abs=0.05)


@pytest.mark.parametrize(
    "corners",
    [
        [(0, 0.9), (1, 0.9)],
        [(0, 0.1), (1, 0.9)],
        [(0, 0.1), (0.4, 0.9), (1, 0.95)],
    ],
    ids=["constant", "one line", "two lines"],
)
@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_a_curve_of_fewer_lines_has_no_two_breaks(corners, noise):
    assert find_breaks(curve(*corners, noise=noise)) is None


def test_a_curve_of_few_validations_is_not_judged():
    corners = (0, 0.1), (0.2, 0.7), (0.8, 0.8), (1, 0.95)
    assert find_breaks(curve(*corners, epochs=9)) is None
    assert find_breaks(curve(*corners, epochs=10)) == pytest.approx((0.2, 0.8))


def test_fluctuation_is_the_deviation_from_the_trend_of_the_last_tenth():
    assert late_fluctuation(curve((0, 0.1), (1, 0.9))) == pytest.approx(0, abs=1e-9)
    wild = [0.3, 0.9] * 90  # before the last tenth
    calm = [0.9 + 0.001 * i for i in range(20)]
    assert late_fluctuation(wild + calm) == pytest.approx(0, abs=1e-9)
    # Four residuals of 0.01 around the best line, and two degrees of freedom.
    assert late_fluctuation([0.5] * 36 + [0.91, 0.89, 0.89, 0.91]) == pytest.approx(0.01 * 2**0.5)


def test_fluctuation_of_fewer_than_four_validations_is_not_judged():
    assert late_fluctuation([0.5] * 39) is None
    assert late_fluctuation([0.5] * 40) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("gains", "best"),
    [
        ((0.0, 0.2, 0.3, 0.36, 0.37, 0.38), 4),
        ((0.0, 0.1, 0.2, 0.36, 0.37, 0.38), 6),
        ((0.0, 0.38, 0.36, 0.36, 0.37, 0.38), 2),
        ((0.0, 0.01, 0.02, 0.03, 0.04, 0.38), 1),
        ((0.0, 0.0, 0.0, 0.0, 0.0, 0.0), None),
        ((0.0, -0.1, -0.1, -0.2, -0.2, -0.2), None),
    ],
)
def test_the_best_number_of_views_gains_much_for_its_time(gains, best):
    views = (1, 2, 4, 6, 8, 12)
    measured = {n: (0.5 * n, 0.92 + gain) for n, gain in zip(views, gains, strict=True)}
    assert best_balance(measured) == best


def test_views_that_need_no_time_are_not_judged():
    assert best_balance({1: (1.0, 0.9), 12: (1.0, 0.95)}) is None
