"""The measured value of a claim, from records."""

from experiments.claims.matching import Results, training_of_row
from experiments.claims.measures import Measure, Term
from experiments.claims.seed_statistics import (
    Estimate,
    mean_of,
    paired_difference,
    sd_ratio,
    undefined,
    welch_difference,
)
from experiments.claims.suites import SINGLE_VIEWS, Claim, Row, Scale, Suite
from experiments.inference.strategies import PLAIN
from experiments.records.record import Evaluation, Record

SPREAD = "sd of val accuracy"
#: metrics that are accuracies, in percent
SPLITS = {"test accuracy": "test", "val accuracy": "val", SPREAD: "val"}


def estimate_claim(suite: Suite, claim: Claim, scale: Scale, results: Results) -> Estimate | None:
    """The measured value of a claim; None if one of its terms has no record.

    Two terms of the same training are paired by its runs. Different trainings are independent, so
    their difference is Welch's. All other measures are computed seed by seed.
    """
    measure, pair = claim.measure, claim.measure.pair
    values = {x: _values(claim.metric, suite.rows[x.row], x, scale, results) for x in measure.terms}
    if not all(values.values()):
        return None
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


def _value(
    metric: str, strategy: str, record: Record, evaluation: Evaluation | None
) -> float | None:
    if metric == "train accuracy":
        return None if record.train_accuracy is None else 100 * record.train_accuracy
    if metric == "fitted temperature":
        result = evaluation.strategies.get(strategy) if evaluation else None
        if result is None or result.temperature is None:
            return None
        return result.temperature * result.strategy["temperature"]
    split = SPLITS.get(metric, "val")
    if strategy in SINGLE_VIEWS:
        score = record.scores.get(split, {}).get(SINGLE_VIEWS[strategy])
        if score is None:
            return None
        return float(score.epoch) if metric == "best epoch" else 100 * score.accuracy
    result = evaluation.strategies.get(strategy) if evaluation else None
    return 100 * result.scores[split].accuracy if result and split in result.scores else None


def interval_over_images(
    suite: Suite, claim: Claim, scale: Scale, results: Results
) -> tuple[float, float] | None:
    """Interval of a single run's gain over one view: the paired bootstrap of `evaluate.py`."""
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
