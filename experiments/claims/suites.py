"""Suites: the tables, figures and ablations of a paper as rows to train and claims.

Each suite is a YAML file in `experiments/suites/`. The README.md there explains the schema.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.claims.measures import Measure
from experiments.claims.suite_file import Entry, read_entry
from experiments.console import UserError, near
from experiments.inference.strategies import PLAIN, STRATEGIES
from experiments.presets import EXPERIMENTS

SUITES = Path(__file__).resolve().parents[1] / "suites"
RESULTS = Path(__file__).resolve().parents[1] / "results"

Scale = Literal["full", "mini"]
#: the description of each scale in all outputs
SCALES: dict[Scale, str] = {
    "full": "full scale: as the papers describe it",
    "mini": "MINI scale: smaller networks and shorter schedules than the papers'",
}
Metric = Literal[
    "test accuracy",
    "val accuracy",
    "train accuracy",
    "sd of val accuracy",
    "best epoch",
    "fitted temperature",
    "parameters",
    "arithmetic",
]
#: metrics that need no training
COUNTED = ("parameters", "arithmetic")
#: strategies that a run's record contains; all others need `evaluate.py`
SINGLE_VIEWS = {PLAIN: "raw", "ema": "ema", "swa": "swa"}
#: metric -> the strategies that have it, if not all have it
KNOWN_OF = {"train accuracy": [PLAIN], "parameters": [PLAIN], "best epoch": [*SINGLE_VIEWS]}


@dataclass(frozen=True)
class Row:
    """One line of a table, and its training."""

    name: str
    arch: str
    title: str
    overrides: dict[str, Any]  # flag -> value, on top of the architecture's preset
    mini: dict[str, Any]  # replace overrides at mini scale: the suite's, then the row's
    where: str  # file and line

    def flags(self, scale: Scale, seed: int) -> list[str]:
        """The flags of `run.py` that train this row."""
        values = self.overrides | (self.mini if scale == "mini" else {})
        set_to = [f"--{flag}={_flag_value(value)}" for flag, value in values.items()]
        return [f"--arch={self.arch}", *set_to, f"--seed={seed}"]


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


@dataclass(frozen=True)
class Claim:
    """One sentence, table cell or bar of a figure, and its measure."""

    id: str
    text: str  # as the paper words it
    source: str  # table, figure or section
    metric: Metric
    measure: Measure  # arithmetic of the rows' metrics
    claimed: Claimed  # accuracies and sds in percentage points
    not_comparable: str | None = None  # the reason why we cannot judge it
    note: str | None = None  # our reading if the paper is ambiguous

    @property
    def rows(self) -> list[str]:
        """The names of its rows."""
        return list(dict.fromkeys(term.row for term in self.measure.terms))

    @property
    def threshold(self) -> float | None:
        """The value of no effect for `verdicts.judge`; None if the claim compares nothing."""
        if self.claimed.bound is not None:
            return self.claimed.bound
        if self.counted or len(self.measure.terms) < 2:
            return None
        return 1.0 if self.measure.pair and self.measure.pair[0] == "/" else 0.0

    @property
    def counted(self) -> bool:
        """Whether it is counted, without training."""
        return self.metric in COUNTED

    def needs_evaluation(self, row: str) -> bool:
        """Whether it needs `evaluate.py` on the runs of a row."""
        return not self.counted and any(
            term.strategy not in SINGLE_VIEWS or self.metric == "fitted temperature"
            for term in self.measure.terms
            if term.row == row
        )


@dataclass(frozen=True)
class Suite:
    """One table, figure or list of ablations."""

    name: str
    title: str
    paper: str | None  # the paper of its claims; None for our own
    rows: dict[str, Row]
    claims: tuple[Claim, ...]

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


def load_suites(folder: Path = SUITES) -> dict[str, Suite]:
    """Load every suite of a folder, in alphabetical order; SuiteError as in `load_suite`."""
    return {path.stem: load_suite(path) for path in sorted(folder.glob("*.yaml"))}


def load_suite(path: Path) -> Suite:
    """Load a suite; SuiteError with file, line and key if it is malformed."""
    suite = read_entry(path)
    keys = suite.mapping(required=("title", "rows", "claims"), optional=("paper", "mini"))
    mini = _overrides(keys.get("mini"))
    rows = {name: _row(name, x, mini) for name, x in keys["rows"].mapping().items()}
    claims: dict[str, Claim] = {}
    for entry in keys["claims"].sequence():
        claim = _claim(entry, rows)
        if claim.id in claims:
            entry.refuse(f"the id {claim.id} is taken by an earlier claim")
        claims[claim.id] = claim
    paper = keys["paper"].text() if "paper" in keys else None
    return Suite(path.stem, keys["title"].text(), paper, rows, tuple(claims.values()))


def _row(name: str, entry: Entry, suite_mini: dict[str, Any]) -> Row:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        entry.refuse("is not a row name: use lower-case letters, digits and underscores")
    keys = entry.mapping(required=("arch", "title"), optional=("overrides", "mini"))
    row = Row(
        name,
        arch=keys["arch"].choice(tuple(EXPERIMENTS)),
        title=keys["title"].text(),
        overrides=_overrides(keys.get("overrides")),
        mini=suite_mini | _overrides(keys.get("mini")),
        where=f"{entry.path}, line {entry.line}: {entry.key}",
    )
    for flag in (both := row.overrides | row.mini):
        switch = flag.partition(".")[0]
        if flag != switch and both.get(switch) is False:
            entry.refuse(f"switches {switch} off, and {flag} switches it on again")
    return row


def _overrides(entry: Entry | None) -> dict[str, Any]:
    """Flags of `run.py` without their dashes, and their values."""
    entries = entry.mapping() if entry else {}
    for flag, value in entries.items():
        if flag.partition(".")[0] in ("arch", "seed", "name", "output", "ckpt_path", "config"):
            value.refuse("cannot be overridden: the runner sets it")
    return {flag: value.value() for flag, value in entries.items()}


def _claim(entry: Entry, rows: dict[str, Row]) -> Claim:
    keys = entry.mapping(
        required=("id", "text", "source", "metric", "measure", "claimed"),
        optional=("tolerance", "not_comparable", "note"),
    )
    try:
        measure = Measure(keys["measure"].text())
    except ValueError as error:
        keys["measure"].refuse(str(error))
    for term in measure.terms:
        if term.row not in rows:
            hint = near(term.row, list(rows))
            keys["measure"].refuse(f"names {term.row}, which is not a row of the suite{hint}")
    metric = keys["metric"].choice(get_args(Metric))
    if metric.startswith("sd of") and not (measure.pair and measure.pair[0] == "/"):
        keys["measure"].refuse(f"must be one row over another for {metric}, got {measure.text}")
    if metric == "arithmetic" and measure.terms:
        keys["measure"].refuse(f"must be numbers alone for arithmetic, got {measure.text}")
    if metric != "arithmetic" and not measure.terms:
        keys["measure"].refuse(f"names no row, got {measure.text}")
    for term in measure.terms:
        if term.strategy not in KNOWN_OF.get(metric, STRATEGIES):
            keys["measure"].refuse(f"names {term.strategy}, which has no {metric}")
    return Claim(
        id=keys["id"].text(),
        text=keys["text"].text(),
        source=keys["source"].text(),
        metric=metric,
        measure=measure,
        claimed=_claimed(keys["claimed"], keys.get("tolerance")),
        not_comparable=keys["not_comparable"].text() if "not_comparable" in keys else None,
        note=keys["note"].text() if "note" in keys else None,
    )


def _claimed(entry: Entry, tolerance: Entry | None) -> Claimed:
    """Read `92.70`, `0.7 to 1.0`, `> 0` or `< 0`; a tolerance replaces the rounding."""
    text = entry.text()
    if tolerance and not re.fullmatch(r"[^<> ]+", text):
        tolerance.refuse(f"goes with a number, got {text}")
    if open_ended := re.fullmatch(r"([<>]) *(\S+)", text):
        bound = float(_number(entry, open_ended[2]))
        return Claimed(text, *((bound, math.inf) if open_ended[1] == ">" else (-math.inf, bound)))
    if span := re.fullmatch(r"(\S+) to (\S+)", text):
        low, high = (float(_number(entry, end)) for end in span.groups())
        if low >= high:
            entry.refuse(f"must be a range from low to high, got {text}")
        return Claimed(text, low, high)
    number = _number(entry, text)
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    half = _number(tolerance, tolerance.text()) if tolerance else Decimal(5).scaleb(exponent - 1)
    return Claimed(text, float(number - half), float(number + half))


def _number(entry: Entry, text: str) -> Decimal:
    try:
        number = Decimal(text.replace("_", ""))
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        entry.refuse(f"must be a number, `LOW to HIGH`, `> NUMBER` or `< NUMBER`, got {text}")
    return number


def _flag_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


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
