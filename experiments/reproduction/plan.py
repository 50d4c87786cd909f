"""What suites still lack: which rows to train, in which order, and what that costs."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.claims.estimates import estimate_claim
from experiments.claims.matching import Results, config_of_row, training_of, training_of_row
from experiments.claims.suites import Claim, Row, Scale, Suite
from experiments.console import UserError
from experiments.reproduction.training_cost import operations_of_training
from experiments.training.length import batches_per_epoch


@dataclass(frozen=True)
class Job:
    """One training that a suite lacks."""

    name: str  # of the run's folder and of its record
    scale: Scale
    flags: tuple[str, ...]  # of run.py
    training: str  # what `training_of` says it is
    seed: int
    trained: bool  # it has a record, and lacks what `evaluate.py` finds with its weights
    evaluates: bool  # a claim asks for what `evaluate.py` finds
    config: dict[str, Any]  # every setting that the flags resolve to, seed apart
    measured: int  # seeds of the same training that stand before it
    open_claims: int  # comparable claims without any measurement that it takes part in
    operations: int  # of its training

    @property
    def key(self) -> str:
        """The same for everything that is this very training, whatever it is called."""
        return hashlib.sha256(f"{self.training}/{self.seed}".encode()).hexdigest()[:16]

    @property
    def epochs(self) -> int:
        return int(self.config["trainer"]["max_epochs"])

    @property
    def steps(self) -> int:
        """Training batches from the first to the last epoch."""
        return self.epochs * batches_per_epoch(self.config)


def make_plan(
    suites: Iterable[Suite],
    only: Iterable[str],
    scale: Scale,
    seeds: int,
    results: Results,
    runs: Path,
) -> list[Job]:
    """Everything that rows of the suites lack, the most telling first.

    Of the rows that a suite trains all, or those that `only` names. Rows that resolve to the same
    training are one.

    The most telling is that of which fewest seeds stand before it: every row has its first seed
    before one has its second, so that wherever time runs out most claims have a measurement and
    their rows the same number of seeds. Then that which takes part in most comparable claims that
    have none yet. Then the cheaper, in operations.

    UserError, in one line, where a run of another training has a row's name.
    """
    only = set(only)
    rows: dict[str, list[tuple[Suite, Row]]] = {}
    for suite in suites:
        for row in suite.trained_rows:
            if not only or row.name in only:
                rows.setdefault(training_of_row(row, scale), []).append((suite, row))
    begun = begun_runs(runs)
    jobs = []
    for training, members in rows.items():
        suite, row = members[0]
        evaluates = any(suite.needs_evaluation(row.name) for suite, row in members)
        records = results.of_row(row, scale)
        open_claims = sum(_is_open(x, s, scale, results) for s, r in members for x in _of(s, r))
        config = config_of_row(row, scale)
        lacking = [seed for seed in range(seeds) if seed not in records]
        for seed in range(seeds):
            record = records.get(seed)
            if record and (not evaluates or results.evaluation_of(record)):
                continue
            name = record.name if record else f"{suite.name}-{row.name}-{scale}-{seed}"
            jobs.append(
                Job(
                    name=begun.get((training, seed), name),
                    scale=scale,
                    flags=tuple(row.flags(scale, seed)),
                    training=training,
                    seed=seed,
                    trained=record is not None,
                    evaluates=evaluates,
                    config=config,
                    measured=0 if record else len(records) + lacking.index(seed),
                    open_claims=open_claims,
                    operations=0 if record else operations_of_training(config),
                )
            )
    for job in jobs:
        if not job.trained and (job.training, job.seed) not in begun:
            _refuse_anothers_name(job.name, runs, results)
    return sorted(jobs, key=lambda job: (job.measured, -job.open_claims, job.operations))


def _of(suite: Suite, row: Row) -> list[Claim]:
    return [claim for claim in suite.claims if row.name in claim.rows]


def _is_open(claim: Claim, suite: Suite, scale: Scale, results: Results) -> bool:
    """Whether a claim that can be judged at this scale waits for a first measurement."""
    if claim.counted or claim.not_comparable or (scale == "mini" and claim.threshold is None):
        return False
    return estimate_claim(suite, claim, scale, results) is None


def begun_runs(runs: Path) -> dict[tuple[str, int], str]:
    """Folders of runs that have finished or can go on, by what they train and by seed.

    Of several that are the same one that has finished. Passed over is what no plan can go on with:
    a run of an architecture that is not known here, or whose configuration cannot be read.
    """
    found = {}
    finished = {path.parent for path in runs.glob("*/result.json")}
    begun = finished | {path.parent for path in runs.glob("*/last.ckpt")}
    # Finished ones last, so that they take the places of others.
    for folder in sorted(begun, key=lambda folder: (folder in finished, folder)):
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text())
            found[training_of(config), config["seed"]] = folder.name
        except (FileNotFoundError, KeyError, TypeError, ValueError, yaml.YAMLError):
            continue
    return found


def _refuse_anothers_name(name: str, runs: Path, results: Results) -> None:
    """A suite that was changed since: neither that run nor its record may be overwritten."""
    recorded = any(record.name == name for record in results.records)
    if recorded or any((runs / name / file).exists() for file in ("last.ckpt", "result.json")):
        raise UserError(
            f"{'the record' if recorded else runs / name} {name} is of another training than the "
            "row of that name: the row or its suite was changed since. Name one of them differently"
        )
