"""The claimed value of a measure: `92.70`, `0.7 to 1.0`, `> 0` or `< 0`."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation


@dataclass(frozen=True)
class Claimed:
    """The claimed value of a measure: from `low` to `high`.

    A number includes all values that round to it: 92.7 is 92.65 to 92.75. A claim of "more" or
    "less" has an infinite end.
    """

    text: str
    low: float
    high: float

    @property
    def bound(self) -> float | None:
        """The finite end of `> x` and `< x`."""
        if math.isinf(self.high):
            return self.low
        return self.high if math.isinf(self.low) else None


def read_claimed(text: str, tolerance: str | None = None) -> Claimed:
    """Read `92.70`, `0.7 to 1.0`, `> 0` or `< 0`; a tolerance replaces the rounding.

    ValueError for anything else.
    """
    if tolerance and not re.fullmatch(r"[^<> ]+", text):
        raise ValueError(f"needs a number as the claim, got {text}")
    if open_ended := re.fullmatch(r"([<>]) *(\S+)", text):
        bound = float(_number(open_ended[2]))
        return Claimed(text, *((bound, math.inf) if open_ended[1] == ">" else (-math.inf, bound)))
    if span := re.fullmatch(r"(\S+) to (\S+)", text):
        low, high = (float(_number(end)) for end in span.groups())
        if low >= high:
            raise ValueError(f"must be a range from low to high, got {text}")
        return Claimed(text, low, high)
    number = _number(text)
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    half = _number(tolerance) if tolerance else Decimal(5).scaleb(exponent - 1)
    return Claimed(text, float(number - half), float(number + half))


def _number(text: str) -> Decimal:
    try:
        number = Decimal(text.replace("_", ""))
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise ValueError(f"must be a number, `LOW to HIGH`, `> NUMBER` or `< NUMBER`, got {text}")
    return number
