"""`--fit_budget`: the largest network of an architecture within a number of parameters."""

from dataclasses import dataclass
from functools import partial

from jsonargparse import Namespace

from callbacks import ParameterBudget
from experiments.presets import EXPERIMENTS
from lightning_modules.fitting import ALIGNED, Fit, aligned_fit, largest_fit, preferred_fit

#: more parameters than any machine trains
MOST = 10**12


@dataclass(frozen=True)
class FittedBudget:
    """A budget, and the network that was chosen for it."""

    budget: int
    grows: str  # the hyper-parameter that was chosen
    grows_by: float  # its smallest step
    chosen: Fit
    other: Fit | None  # the largest network, or the largest multiple of 8 channels

    def in_words(self, operations: int) -> str:
        """The choice, its operations per image, and the alternative."""
        text = (
            f"A budget of {self.budget:,} parameters: {self._words(self.chosen)} and "
            f"{operations:,} operations per image"
        )
        return f"{text}; {self._words(self.other)}" if self.other else text

    def _words(self, fit: Fit) -> str:
        eights = "" if fit.steps % ALIGNED else ", multiples of 8 channels,"
        value, share = fit.steps * self.grows_by, fit.parameters / self.budget
        return f"{self.grows} {value:g}{eights} has {fit.parameters:,} ({share:.1%})"


def fit_to_budget(arch: str, config: Namespace, flags: list[str]) -> FittedBudget:
    """Replace `fit_budget` by the width that fits, and lower the limit to it.

    The budget overrides the width in presets and files. The resolved configuration contains the
    width, so that a resumed or repeated run gets the same network.

    ValueError, which names the flag, if the budget is no whole number, if no network fits, or if
    the `flags` of the command line also set the width.
    """
    cls, budget = EXPERIMENTS[arch], config.fit_budget
    if not 1 <= budget <= MOST or budget % 1:
        raise ValueError(
            "--fit_budget: fit_budget must be a whole number of parameters from 1 to 10^12, "
            f"got {budget:g}"
        )
    budget = int(budget)
    if any(flag.partition("=")[0] == f"--model.{cls.grows}" for flag in flags):
        raise ValueError(
            f"--fit_budget decides {cls.grows}: "
            f"leave out --model.{cls.grows}, or set --fit_budget null"
        )
    count = partial(cls.parameters_with, arguments=config.model.as_dict())
    largest = largest_fit(count, budget)
    if largest is None:
        raise ValueError(
            f"--fit_budget: no {arch} fits {budget:,} parameters: "
            f"with {cls.grows} {cls.grows_by:g} it has {count(1):,}"
        )
    aligned = aligned_fit(count, largest)
    chosen = preferred_fit(largest, aligned)
    config.model[cls.grows] = chosen.steps * cls.grows_by
    config.fit_budget = None
    if config.budget is True:
        config.budget = Namespace(**vars(ParameterBudget()))
    if config.budget:
        config.budget.limit = min(config.budget.limit, budget)
    other = next((fit for fit in (largest, aligned) if fit and fit != chosen), None)
    return FittedBudget(budget, cls.grows, cls.grows_by, chosen, other)
