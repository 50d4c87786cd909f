"""The plan of a reproduction: the rows that have no record, their order and their cost."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from experiments.claims.estimates import estimate_claim
from experiments.claims.matching import Results, config_of_row, training_of, training_of_row
from experiments.claims.suites import Claim, Row, Scale, Suite
from experiments.console import UserError
from experiments.records.record import Record, read_record
from experiments.reproduction.training_cost import operations_of_training
from experiments.training.length import batches_per_epoch


class Teacher(NamedTuple):
    """The training that a job's `--teacher` comes from."""

    training: str
    seed: int
    row: str


@dataclass(frozen=True)
class Job:
    """One missing training or evaluation of a suite."""

    name: str  # of the run's folder and of its record
    scale: Scale
    flags: tuple[str, ...]  # of run.py
    training: str  # the text of `training_of`
    seed: int
    trained: bool  # it has a record, and only its evaluation is missing
    evaluates: bool  # a claim needs the results of `evaluate.py`
    config: dict[str, Any]  # every setting of the flags, with seed 0
    measured: int  # seeds of the same training that come before it
    open_claims: int  # its comparable claims without a measurement
    operations: int  # of its training
    teacher: Teacher | None = None

    @property
    def key(self) -> str:
        """A digest of training and seed, which does not depend on the job's name."""
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
    """List the suites' missing trainings and evaluations, the most valuable first.

    `only` names the rows; if it is empty, all rows are planned. Rows with the same training share
    one job.

    The first seed of every row comes before the second seed of any row, so that most claims are
    measured whenever the time ends. Among equals, the row that takes part in the most comparable
    claims without a measurement comes first, then the row with fewer operations. A teacher comes
    before its students. It is planned for the seeds that they lack, even if `only` leaves it out.

    UserError if a run with other settings has the name of a row.
    """
    only = set(only)
    rows: dict[str, list[tuple[Suite, Row]]] = {}
    wanted: dict[str, set[int]] = {}  # seeds of each training

    def add(suite: Suite, row: Row, wants: set[int]) -> None:
        training = training_of_row(row, scale)
        rows.setdefault(training, []).append((suite, row))
        wanted.setdefault(training, set()).update(wants)
        lacking = wants - results.of_row(row, scale).keys()
        if row.taught_by is not None and lacking:
            add(suite, row.taught_by, lacking)

    for suite in suites:
        for row in suite.trained_rows:
            if not only or row.name in only:
                add(suite, row, set(range(seeds)))
    begun = begun_runs(runs)
    jobs = []
    for training, members in rows.items():
        suite, row = members[0]
        evaluates = any(suite.needs_evaluation(row.name) for suite, row in members)
        records = results.of_row(row, scale)
        claims = [(x, s) for s, r in members for x in s.claims if r.name in x.rows]
        open_claims = sum(_is_open(claim, s, scale, results) for claim, s in claims)
        config = config_of_row(row, scale)
        lacking = [seed for seed in sorted(wanted[training]) if seed not in records]
        for seed in sorted(wanted[training]):
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
                    teacher=None if record else _teacher(row, scale, seed),
                )
            )
    for job in jobs:
        if not job.trained and (job.training, job.seed) not in begun:
            _refuse_anothers_name(job.name, runs, results)
    return _teachers_first(
        sorted(jobs, key=lambda job: (job.measured, -job.open_claims, job.operations))
    )


def _teacher(row: Row, scale: Scale, seed: int) -> Teacher | None:
    if row.taught_by is None:
        return None
    return Teacher(training_of_row(row.taught_by, scale), seed, row.taught_by.name)


def _teachers_first(jobs: Sequence[Job]) -> list[Job]:
    """Move each teacher before its first student."""
    by_training = {(job.training, job.seed): job for job in jobs}
    ordered: dict[str, Job] = {}

    def place(job: Job) -> None:
        teacher = job.teacher and by_training.get((job.teacher.training, job.teacher.seed))
        if teacher:
            place(teacher)
        ordered.setdefault(job.name, job)

    for job in jobs:
        place(job)
    return list(ordered.values())


def _is_open(claim: Claim, suite: Suite, scale: Scale, results: Results) -> bool:
    """Whether a claim that this scale can judge has no measurement yet."""
    if claim.counted or claim.not_comparable or not claim.judged_at(scale):
        return False
    return estimate_claim(suite, claim, scale, results) is None


def begun_runs(runs: Path) -> dict[tuple[str, int], str]:
    """Map a training and its seed to the folder of its finished or resumable run.

    Finished runs take precedence, the earliest first. Runs of an unknown architecture, or with a
    configuration that cannot be read, are left out.
    """
    found: dict[tuple[str, int], str] = {}
    teachers: dict[str, str] = {}
    results = {path.parent: _record(path) for path in runs.glob("*/result.json")}
    begun = results.keys() | {path.parent for path in runs.glob("*/last.ckpt")}

    def order(folder: Path) -> tuple[bool, str, Path]:
        record = results.get(folder)
        return folder not in results, record.finished if record else "", folder

    for folder in sorted(begun, key=order):
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
            training = training_of(config, teachers=teachers)
            found.setdefault((training, config["seed"]), folder.name)
        except (FileNotFoundError, KeyError, TypeError, ValueError, yaml.YAMLError):
            continue
        if (record := results.get(folder)) and record.weights_digest:
            teachers[record.weights_digest] = training
    return found


def _record(path: Path) -> Record | None:
    try:
        return read_record(path)
    except (OSError, UserError):
        return None


def _refuse_anothers_name(name: str, runs: Path, results: Results) -> None:
    """Protect the run or the record of a row whose suite has changed: UserError."""
    recorded = any(record.name == name for record in results.records)
    if recorded or any((runs / name / file).exists() for file in ("last.ckpt", "result.json")):
        raise UserError(
            f"{f'the record {name}' if recorded else runs / name} has other settings than the row "
            "with this name: the row or its suite has changed. Rename one of them"
        )
