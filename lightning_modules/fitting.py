"""The largest network of an architecture that fits a budget of parameters."""

import math
from collections.abc import Callable
from typing import NamedTuple

#: Steps of width whose multiples put the channels of every stage on a multiple of 8, as GPUs want.
ALIGNED = 8
#: Share of the largest network's parameters that an aligned one must have to be preferred.
KEEPS = 0.85


class Fit(NamedTuple):
    """A width in steps of the architecture's `grows_by`, and the parameters of that network."""

    steps: int
    parameters: int


def largest_fit(count: Callable[[int], int], budget: int) -> Fit | None:
    """The most steps whose `count` of parameters is within the budget; None where not even 1 is.

    `count` must grow with the steps. Parameters grow about with the square of the width, so that
    about five counts are enough; where they do not, it takes more of them.
    """
    fits: Fit | None = None
    exceeds: int | None = None
    steps = ALIGNED
    while True:
        parameters = count(steps)
        if parameters <= budget:
            fits = Fit(steps, parameters)
        else:
            exceeds = steps
        lowest = fits.steps + 1 if fits else 1
        if lowest == exceeds:
            return fits
        estimate = max(lowest, int(steps * math.sqrt(budget / parameters)))
        steps = min(estimate, exceeds - 1) if exceeds else estimate


def aligned_fit(count: Callable[[int], int], largest: Fit) -> Fit | None:
    """The largest fit whose steps are a multiple of 8; None where that would be 0."""
    steps = largest.steps - largest.steps % ALIGNED
    return Fit(steps, count(steps)) if steps else None


def preferred_fit(largest: Fit, aligned: Fit | None) -> Fit:
    """The aligned one if it keeps 85% of the parameters, else the largest.

    That does not depend on the machine, so that a command means one network everywhere.
    """
    if aligned is None or aligned.parameters < KEEPS * largest.parameters:
        return largest
    return aligned
