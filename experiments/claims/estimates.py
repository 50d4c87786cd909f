"""The measured value of a claim, from records."""

from collections.abc import Callable
from math import isnan, nan

from experiments.claims.curves import best_balance, find_breaks, late_fluctuation
from experiments.claims.matching import Results, training_of_row
from experiments.claims.measures import FROM_EVALUATION, SINGLE_VIEWS, Measure, Term
from experiments.claims.seed_statistics import (
    Estimate,
    mean_of,
    paired_difference,
    sd_ratio,
    undefined,
    welch_difference,
)
from experiments.claims.suites import Claim, Row, Scale, Suite
from experiments.inference.strategies import LADDER, PLAIN
from experiments.records.record import Evaluation, Record

SPREAD = "sd of val accuracy"
#: metrics that are accuracies, in percent
SPLITS = {"test accuracy": "test", "val accuracy": "val", SPREAD: "val"}


def estimate_claim(suite: Suite, claim: Claim, scale: Scale, results: Results) -> Estimate | None:
    """The measured value of a claim; None if one of its terms has no record.

    Undefined if a run has no such value, or if times come from several devices.

    Two terms of the same training are paired by its runs. Different trainings are independent, so
    their difference is Welch's. All other measures are computed seed by seed.
    """
    measure, pair = claim.measure, claim.measure.pair
    values = {x: _values(claim.metric, suite.rows[x.row], x, scale, results) for x in measure.terms}
    if not all(values.values()):
        return None
    runs = [x for row in claim.rows for x in results.of_row(suite.rows[row], scale).values()]
    mixed = claim.metric == "training seconds" and len({run.device for run in runs}) > 1
    if mixed or any(isnan(x) for by_seed in values.values() for x in by_seed.values()):
        return undefined(*map(len, values.values()))
    if pair and (claim.metric == SPREAD or (pair[0] == "-" and not is_paired(suite, claim, scale))):
        compare = sd_ratio if claim.metric == SPREAD else welch_difference
        return compare(*(list(values[side].values()) for side in pair[1:]))
    return _seed_by_seed(measure, values)


def _seed_by_seed(measure: Measure, values: dict[Term, dict[int, float]]) -> Estimate | None:
    """The measure over the seeds that all terms have; None if there are none."""
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in values.values())))
    if not seeds:
        return None
    if measure.pair and measure.pair[0] == "-":
        return paired_difference(*([values[x][seed] for seed in seeds] for x in measure.pair[1:]))
    try:
        return mean_of([measure({x: values[x][seed] for x in values}) for seed in seeds])
    except ZeroDivisionError:  # a share of a gain of zero
        return undefined(len(seeds))


def is_paired(suite: Suite, claim: Claim, scale: Scale) -> bool:
    """Whether all terms of a claim come from the same training."""
    return len({training_of_row(suite.rows[row], scale) for row in claim.rows}) == 1


def _values(metric: str, row: Row, term: Term, scale: Scale, results: Results) -> dict[int, float]:
    """A metric by seed, for the runs of a row whose records contain it."""
    found = {}
    for seed, record in results.of_row(row, scale).items():
        value = _value(metric, term.strategy, record, results.evaluation_of(record))
        if value is not None:
            found[seed] = value
    return found


#: rules for a validation curve; None if it has no such value
CURVES: dict[str, Callable[[list[float]], float | None]] = {
    "first break": lambda curve: (breaks := find_breaks(curve)) and 100 * breaks[0],
    "second break": lambda curve: (breaks := find_breaks(curve)) and 100 * breaks[1],
    "late fluctuation": lambda curve: (sd := late_fluctuation(curve)) and 100 * sd,
}


def _value(
    metric: str, strategy: str, record: Record, evaluation: Evaluation | None
) -> float | None:
    """A metric of one run; None if its record lacks it, nan if it is undefined."""
    if metric == "training seconds":
        return record.training_seconds
    if metric == "train accuracy":
        return None if record.train_accuracy is None else 100 * record.train_accuracy
    if metric == "generalisation gap" or metric in CURVES:
        return _of_curve(metric, record)
    if metric in FROM_EVALUATION or strategy not in SINGLE_VIEWS:
        return _of_evaluation(metric, strategy, evaluation) if evaluation else None
    score = record.scores.get(SPLITS.get(metric, "val"), {}).get(SINGLE_VIEWS[strategy])
    if score is None:
        return None
    return float(score.epoch) if metric == "best epoch" else 100 * score.accuracy


def _of_curve(metric: str, record: Record) -> float | None:
    curve = record.val_curve
    if not curve:
        return None
    if metric == "generalisation gap":
        clean = record.clean_train_accuracy
        return None if clean is None else 100 * (clean - curve[-1])
    value = CURVES[metric](curve)
    return nan if value is None else value


def _of_evaluation(metric: str, strategy: str, evaluation: Evaluation) -> float | None:
    found = evaluation.strategies
    if metric == "best number of views":
        if not found.keys() >= set(LADDER.values()):
            return None
        ladder = {views: found[name] for views, name in LADDER.items()}
        best = best_balance({n: (x.seconds, x.scores["test"].accuracy) for n, x in ladder.items()})
        return nan if best is None else best
    result = found.get(strategy)
    if metric == "fitted temperature":
        if result is None or result.temperature is None:
            return None
        return result.temperature * result.strategy["temperature"]
    split = SPLITS[metric]
    return 100 * result.scores[split].accuracy if result and split in result.scores else None


def interval_over_images(
    suite: Suite, claim: Claim, scale: Scale, results: Results
) -> tuple[float, float] | None:
    """Interval of a single run's gain over one view, by `evaluate.py`'s bootstrap."""
    pair = claim.measure.pair
    if claim.metric != "test accuracy" or not pair or pair[0] != "-":
        return None
    if pair[2] != Term(pair[1].row, PLAIN):
        return None
    runs = list(results.of_row(suite.rows[pair[1].row], scale).values())
    evaluation = results.evaluation_of(runs[0]) if len(runs) == 1 else None
    if evaluation is None or pair[1].strategy not in evaluation.strategies:
        return None
    score = evaluation.strategies[pair[1].strategy].scores["test"]
    return 100 * score.gain_low, 100 * score.gain_high
