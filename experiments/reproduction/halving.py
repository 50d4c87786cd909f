"""Successive halving of a suite's rows: more epochs and seeds for the better half."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import optuna

from experiments.claims.matching import Results, config_of_row, load_results
from experiments.claims.suites import Row, Suite
from experiments.console import UserError
from experiments.records.record import Record
from experiments.reproduction.plan import Job, make_plan
from experiments.reproduction.runner import Workplace, run_row

#: the best 1 / REDUCTION of the rows continue with REDUCTION times the epochs
REDUCTION = 2


@dataclass(frozen=True)
class Rung:
    """One round of trainings."""

    number: int  # from 0
    epochs: int  # of the suite's first row; other rows keep their ratio to it at mini scale
    seeds: int  # for each row


def make_rungs(count: int, epochs: int, seeds: int = 1) -> list[Rung]:
    """Rungs: each has `REDUCTION` times the last one's epochs, and one more seed."""
    return [Rung(i, epochs * REDUCTION**i, seeds + i) for i in range(count)]


def row_of(suite: Suite, name: str, rung: Rung) -> Row:
    """The row with a rung's epochs, at mini scale and without the test set.

    UserError if its number of epochs is not whole.
    """
    row, first = suite.rows[name], next(iter(suite.rows.values()))
    own, usual = (config_of_row(x, "mini")["trainer"]["max_epochs"] for x in (row, first))
    epochs, rest = divmod(rung.epochs * own, usual)
    if rest:
        raise UserError(
            f"{name} has {own} epochs and {first.name} has {usual}: --epochs must be a multiple "
            f"of {usual // math.gcd(own, usual)}"
        )
    return replace(row, mini=row.mini | {"trainer.max_epochs": epochs, "test": False})


def records_of(suite: Suite, name: str, rung: Rung, results: Results) -> list[Record]:
    """The records of a row in a rung, in the order of seeds."""
    records = results.of_row(row_of(suite, name, rung), "mini")
    return [records[seed] for seed in range(rung.seeds) if seed in records]


def val_accuracy(record: Record) -> float:
    """Validation accuracy of the selected weights, in percent."""
    return 100 * record.scores["val"][record.selected or "raw"].accuracy


class OutOfTimeError(Exception):
    """The deadline or the user ended a training early."""


@dataclass(frozen=True)
class Worker:
    """Trains rows of a suite on this machine, one after the other."""

    suite: Suite
    place: Workplace
    deadline: float  # seconds since 1970; then the training writes a checkpoint and ends
    stopped: Callable[[], bool] = lambda: False  # true has the same effect

    def train(self, name: str, rung: Rung) -> list[float]:
        """Train a row's missing seeds in a rung; return validation accuracies in percent.

        OutOfTimeError at the deadline; UserError if a training fails.
        """
        rows = {name: row_of(self.suite, name, rung)}
        title = f"{self.suite.name}_{rung.epochs}epochs"
        short = replace(self.suite, name=title, rows=rows, claims=())
        results = load_results(self.place.results)
        jobs = make_plan([short], [name], "mini", rung.seeds, results, self.place.runs)
        while jobs:  # jobs that another process trains come last
            jobs = [job for job in jobs if not self._finish(job)]
        records = records_of(self.suite, name, rung, load_results(self.place.results))
        return [val_accuracy(record) for record in records]

    def _finish(self, job: Job) -> bool:
        """Train one; false if another process trains it."""
        outcome = run_row(job, self.place, self.deadline, self.stopped)
        in_time = time.time() < self.deadline and not self.stopped()
        if outcome.ending == "taken" and in_time:
            return False
        if outcome.ending in ("cut off", "taken"):
            raise OutOfTimeError
        if outcome.ending != "finished":
            raise UserError(f"{job.name}: {outcome.reason}")
        return True


def screen(worker: Worker, rungs: Sequence[Rung], say: Callable[[str], None]) -> bool:
    """Train the rows rung by rung; return whether the screening is complete.

    Optuna's SuccessiveHalvingPruner (Li et al. 2020) decides after each rung whether a row
    continues: it must be in the better half of the rows so far, itself included. A row that was
    left out is not reconsidered, so the order matters. The first row always continues, because the
    others are compared with it. A second call continues an interrupted screening with the same
    decisions, because it does not repeat trainings with a record.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it warns of every pruned trial
    pruner = optuna.pruners.SuccessiveHalvingPruner(1, REDUCTION)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    names = list(worker.suite.rows)
    for name in names:
        study.enqueue_trial({"row": name})

    def objective(trial: optuna.Trial) -> float:
        name = trial.suggest_categorical("row", names)
        mean = 0.0
        for rung in rungs:
            mean = fmean(worker.train(name, rung))
            say(f"{name}: {mean:.2f}% (epochs {rung.epochs}, n = {rung.seeds})")
            trial.report(mean, REDUCTION**rung.number)
            if trial.should_prune() and rung != rungs[-1]:
                say(f"{name}: left out")
                raise optuna.TrialPruned
        return mean

    try:
        study.optimize(objective, n_trials=len(names))
    except OutOfTimeError:
        return False
    return True
