"""Suites: the tables, figures and ablations of a paper as rows to train and claims.

Each suite is a YAML file in `experiments/suites/`. The README.md there explains the schema.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, StringConstraints
from pydantic.dataclasses import dataclass

from experiments.claims.claimed import Claimed, read_claimed
from experiments.claims.measures import (
    COUNTED,
    FROM_EVALUATION,
    SCALE_FREE,
    SINGLE_VIEWS,
    Measure,
    Metric,
    check_measure,
)
from experiments.console import UserError, near
from experiments.records.parsing import EXACT, Place, YamlFile
from experiments.records.record import Arch

SUITES = Path(__file__).resolve().parents[1] / "suites"
RESULTS = Path(__file__).resolve().parents[1] / "results"
#: limit of `--seeds`, because each seed is a row of the plan
MOST_SEEDS = 1_000

Scale = Literal["full", "short", "short_cpu", "mini"]
#: scales whose verdicts are about fewer epochs than the papers'
SHORTENED: tuple[Scale, ...] = ("short", "short_cpu")
#: scales that suites and rows define by overrides
DEFINED: tuple[Scale, ...] = (*SHORTENED, "mini")
#: the description of each scale in all outputs
SCALES: dict[Scale, str] = {
    "full": "full scale: as the papers describe it",
    "short": "SHORT scale: the papers' networks and recipes, in fewer epochs",
    "short_cpu": "SHORT_CPU scale: the papers' recipes at half width, in fewer epochs",
    "mini": "MINI scale: small networks and few epochs, a smoke test without verdicts",
}


def _overridable(flag: str) -> str:
    key = flag.partition(".")[0]
    if key in ("arch", "seed", "name", "output", "ckpt_path", "config", "teacher"):
        raise ValueError("cannot be overridden: the runner sets it")
    return flag


#: flags of `run.py` without their dashes, and their values
Overrides = dict[Annotated[str, AfterValidator(_overridable)], Any]


@dataclass(frozen=True, config=EXACT, kw_only=True)
class RowEntry:
    """One line of a table in a suite's file."""

    arch: Arch
    title: str
    overrides: Overrides = field(default_factory=dict)  # they change the architecture's preset
    short: Overrides = field(default_factory=dict)  # they replace overrides at short scale
    short_cpu: Overrides = field(default_factory=dict)  # they replace overrides at short_cpu scale
    mini: Overrides = field(default_factory=dict)  # they replace overrides at mini scale
    teacher: str | None = None  # an earlier row, whose run with the same seed is the teacher


@dataclass(frozen=True, kw_only=True)
class Row(RowEntry):
    """One line of a table, and its training. Its scales include the suite's."""

    name: str
    where: str  # file and line
    taught_by: "Row | None" = None  # the row that `teacher` names

    def flags(self, scale: Scale, seed: int) -> list[str]:
        """The flags of `run.py` that train this row, without `--teacher`."""
        values = self.overrides | (getattr(self, scale) if scale in DEFINED else {})
        texts = {flag: x if isinstance(x, str) else json.dumps(x) for flag, x in values.items()}
        set_to = [f"--{flag}={text}" for flag, text in texts.items()]
        return [f"--arch={self.arch}", *set_to, f"--seed={seed}"]


@dataclass(frozen=True, config=EXACT, kw_only=True)
class ClaimEntry:
    """One claim in a suite's file."""

    id: str
    text: str  # in the paper's words
    source: str  # table, figure or section
    metric: Metric
    measure: str  # arithmetic of the rows' metrics
    claimed: str  # accuracies and standard deviations in percentage points
    tolerance: str | None = None  # replaces the rounding of `claimed`
    not_comparable: str | None = None  # the reason why we cannot judge it
    note: str | None = None  # our reading if the paper is ambiguous
    headline: bool = False  # one of the papers' main claims


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence, table cell or bar of a figure, and its measure."""

    id: str
    text: str
    source: str
    metric: Metric
    measure: Measure
    claimed: Claimed
    not_comparable: str | None = None
    note: str | None = None
    headline: bool = False

    @property
    def rows(self) -> list[str]:
        """The names of its rows."""
        return list(dict.fromkeys(term.row for term in self.measure.terms))

    @property
    def threshold(self) -> float | None:
        """The value of no effect for `verdicts.judge`; None without a comparison."""
        if self.claimed.bound is not None:
            return self.claimed.bound
        if self.counted or len(self.measure.terms) < 2:
            return None
        return 1.0 if self.measure.pair and self.measure.pair[0] == "/" else 0.0

    @property
    def counted(self) -> bool:
        """Whether it is counted, without training."""
        return self.metric in COUNTED

    def judged_at(self, scale: Scale) -> bool:
        """Whether runs at this scale can judge it; fewer epochs judge no accuracy alone."""
        comparable = self.threshold is not None or self.metric in SCALE_FREE
        return scale == "full" or (scale in SHORTENED and comparable)

    def needs_evaluation(self, row: str) -> bool:
        """Whether it needs `evaluate.py` on the runs of a row."""
        return not self.counted and any(
            term.strategy not in SINGLE_VIEWS or self.metric in FROM_EVALUATION
            for term in self.measure.terms
            if term.row == row
        )


RowName = Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9_]*$")]


@dataclass(frozen=True, config=EXACT, kw_only=True)
class SuiteEntry:
    """The content of a suite's file."""

    title: str
    rows: dict[RowName, RowEntry]
    claims: list[ClaimEntry]
    paper: str | None = None
    short: Overrides = field(default_factory=dict)  # at short scale, for every row
    short_cpu: Overrides = field(default_factory=dict)  # at short_cpu scale, for every row
    mini: Overrides = field(default_factory=dict)  # at mini scale, for every row


@dataclass(frozen=True)
class Suite:
    """One table, figure or list of ablations."""

    name: str
    title: str
    paper: str | None  # the paper of its claims; None for our own
    rows: dict[str, Row]
    claims: tuple[Claim, ...]

    def defines(self, scale: Scale) -> bool:
        """Whether a row has overrides for this scale."""
        return any(getattr(row, scale) for row in self.rows.values())

    @cached_property
    def trained_rows(self) -> list[Row]:
        """The rows to train: without the rows whose claims are all counted.

        Empty if all claims of the suite are counted.
        """
        counted = {row for claim in self.claims if claim.counted for row in claim.rows}
        trained = {row for claim in self.claims if not claim.counted for row in claim.rows}
        if self.claims and not trained:
            return []
        return [row for name, row in self.rows.items() if name in trained or name not in counted]

    def needs_evaluation(self, row: str) -> bool:
        """Whether a claim needs `evaluate.py` on the runs of this row."""
        return any(claim.needs_evaluation(row) for claim in self.claims)


def load_suites() -> dict[str, Suite]:
    """Load all suites in alphabetical order; UserError as in `load_suite`."""
    return {path.stem: load_suite(path) for path in sorted(SUITES.glob("*.yaml"))}


def load_suite(path: Path) -> Suite:
    """Load a suite; UserError with file, line and key if it is malformed."""
    file = YamlFile(path, typed=("overrides", *DEFINED))
    entry = file.parse(SuiteEntry)
    rows: dict[str, Row] = {}
    for name, row in entry.rows.items():
        if row.teacher and row.teacher not in rows:
            hint = near(row.teacher, list(rows))
            raise file.mistake(
                ("rows", name, "teacher"), f"must be an earlier row, got {row.teacher}{hint}"
            )
        rows[name] = _row(file, name, row, entry, rows.get(row.teacher or ""))
    claims: dict[str, Claim] = {}
    for i, x in enumerate(entry.claims):
        if x.id in claims:
            raise file.mistake(("claims", i), f"the id {x.id} is taken by an earlier claim")
        claims[x.id] = _claim(file, ("claims", i), x, rows)
    return Suite(path.stem, entry.title, entry.paper, rows, tuple(claims.values()))


def _row(
    file: YamlFile, name: str, entry: RowEntry, suite: SuiteEntry, taught_by: Row | None
) -> Row:
    scales = {scale: getattr(suite, scale) | getattr(entry, scale) for scale in DEFINED}
    for changes in scales.values():
        both = entry.overrides | changes
        for flag in both:
            switch = flag.partition(".")[0]
            if flag != switch and both.get(switch) is False:
                raise file.mistake(
                    ("rows", name), f"switches {switch} off, and {flag} switches it on again"
                )
    where = f"{file.path}, line {file.line(('rows', name))}: rows.{name}"
    return Row(
        **asdict(entry) | scales,
        name=name,
        where=where,
        taught_by=taught_by,
    )


def _claim(file: YamlFile, place: Place, entry: ClaimEntry, rows: dict[str, Row]) -> Claim:
    key = "measure"
    try:
        measure = Measure(entry.measure)
        check_measure(measure, entry.metric, list(rows))
        key = "tolerance" if entry.tolerance else "claimed"
        claimed = read_claimed(entry.claimed, entry.tolerance)
    except ValueError as error:
        raise file.mistake((*place, key), str(error)) from None
    fields = asdict(entry) | {"measure": measure, "claimed": claimed}
    del fields["tolerance"]
    return Claim(**fields)


def read_suites(names: Sequence[str]) -> list[Suite]:
    """Load suites by name or file; UserError for an unknown name."""
    known = [path.stem for path in sorted(SUITES.glob("*.yaml"))]
    if "all" in names:
        return list(load_suites().values())
    suites = []
    for name in dict.fromkeys(names):
        is_file = name.endswith((".yaml", ".yml"))
        if not is_file and name not in known:
            raise UserError(
                f"{name} is not a suite{near(name, known)}: name some of {', '.join(known)}, or all"
            )
        suites.append(load_suite(Path(name) if is_file else SUITES / f"{name}.yaml"))
    return suites


def read_rows(names: str | None, suites: Sequence[Suite]) -> list[str]:
    """The row names of `--rows`; UserError for an unknown name."""
    rows = names.split(",") if names is not None else []
    known = list(dict.fromkeys(row for suite in suites for row in suite.rows))
    for row in rows:
        if row not in known:
            raise UserError(
                f"--rows {row} is unknown{near(row, known)}: the rows are {', '.join(known)}"
            )
    return rows
