"""The rule for verdicts on claims."""

from typing import Literal

Verdict = Literal[
    "reproduced",
    "direction only",
    "contradicted",
    "undecided",
    "not comparable",
    "not yet measured",
]
Interval = tuple[float, float]

#: The rule in words. The last two do not depend on an interval.
MEANING: dict[Verdict, str] = {
    "reproduced": "The claim is inside our interval. If it claims a difference, our whole interval "
    "is on the claimed side of zero.",
    "direction only": "Our whole interval is on the claimed side. The claimed size is outside of "
    "it.",
    "contradicted": "The claim is outside our interval, and the interval is not on the claimed "
    "side.",
    "undecided": "Our interval contains both the claim and zero difference. Or there is no "
    "interval, because there is a single run or the measure is not defined.",
    "not comparable": "Our measurements cannot judge it: the paper used Kaggle's hidden test set, "
    "or ours has fewer epochs.",
    "not yet measured": "There is no record.",
}


def judge(claimed: Interval, measured: Interval | None, threshold: float | None) -> Verdict:
    """Compare the claimed interval of a measure with our measured interval.

    `claimed` contains all values that round to the printed value, or a printed range. One end is
    infinite if the paper only says "more" or "less". `threshold` is the value of no effect: 0 for a
    difference, 1 for a ratio, the finite end of a one-sided claim, and None if the claim states a
    value and compares nothing. `MEANING` is the rule; a count is an interval of
    one point.
    """
    if measured is None:
        return "undecided"
    inside = measured[0] <= claimed[1] and claimed[0] <= measured[1]
    if threshold is None:
        return "reproduced" if inside else "contradicted"
    claims_more = (claimed[0] + claimed[1]) / 2 > threshold
    on_side = measured[0] > threshold if claims_more else measured[1] < threshold
    if inside:
        return "reproduced" if on_side else "undecided"
    return "direction only" if on_side else "contradicted"
