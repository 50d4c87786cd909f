"""Find the largest network of an architecture within a budget of parameters."""

import math
from collections.abc import Callable
from typing import NamedTuple

#: Multiples of so many steps give every stage a multiple of 8 channels, which GPUs prefer.
ALIGNED = 8
#: An aligned network is preferred if it has this share of the largest network's parameters.
KEEPS = 0.85


class Fit(NamedTuple):
    """A width in steps of `grows_by`, and the parameters of that network."""

    steps: int
    parameters: int


def largest_fit(count: Callable[[int], int], budget: int) -> Fit | None:
    """Return the widest network within the budget; None if there is none.

    `count` maps steps to parameters and must increase. It is called about five times if parameters
    grow with the square of the width, and more often otherwise.
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
    """Return the largest fit whose steps are a multiple of 8; None if there is none."""
    steps = largest.steps - largest.steps % ALIGNED
    return Fit(steps, count(steps)) if steps else None


def preferred_fit(largest: Fit, aligned: Fit | None) -> Fit:
    """Return the aligned fit if it has 85% of the parameters, else the largest fit.

    The choice is the same on every machine.
    """
    if aligned is None or aligned.parameters < KEEPS * largest.parameters:
        return largest
    return aligned
