"""Suites: a paper's tables, figures and ablations as rows to train and claims about them.

One YAML file each in `experiments/suites/`, whose README.md explains the schema that is here.
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
#: how every output describes its scale
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
#: what needs no training
COUNTED = ("parameters", "arithmetic")
#: what a run's record holds of itself; every other strategy needs `evaluate.py`
SINGLE_VIEWS = {PLAIN: "raw", "ema": "ema", "swa": "swa"}
#: the strategies of which there is such a metric, where it is not all of them
KNOWN_OF = {"train accuracy": [PLAIN], "parameters": [PLAIN], "best epoch": [*SINGLE_VIEWS]}


@dataclass(frozen=True)
class Row:
    """One line of a table: what is trained for it."""

    name: str
    arch: str
    title: str
    overrides: dict[str, Any]  # flag -> value, on top of the architecture's preset
    mini: dict[str, Any]  # laid over the overrides at mini scale: the suite's, then the row's own
    where: str  # file and line that it stands in

    def flags(self, scale: Scale, seed: int) -> list[str]:
        """The flags of `run.py` that train this row."""
        values = self.overrides | (self.mini if scale == "mini" else {})
        set_to = [f"--{flag}={_flag_value(value)}" for flag, value in values.items()]
        return [f"--arch={self.arch}", *set_to, f"--seed={seed}"]


@dataclass(frozen=True)
class Claimed:
    """What a paper says that a measure is: anything from `low` to `high`, as it was printed.

    A number stands for all that round to it: 92.7 for 92.65 to 92.75. What is only said to be more
    or less than something has an infinite end.
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
    """One sentence, cell of a table or bar of a figure, and how it is measured."""

    id: str
    text: str  # as the paper words it
    source: str  # table, figure or section
    metric: Metric
    measure: Measure  # arithmetic of the rows' metrics
    claimed: Claimed  # accuracies and sds in percentage points
    not_comparable: str | None = None  # why no measurement of ours can judge it
    note: str | None = None  # how it is read where the paper leaves that open

    @property
    def rows(self) -> list[str]:
        """The rows it is about, each once."""
        return list(dict.fromkeys(term.row for term in self.measure.terms))

    @property
    def threshold(self) -> float | None:
        """What the claim sets itself apart from, as `verdicts.judge` asks for it."""
        if self.claimed.bound is not None:
            return self.claimed.bound
        if self.counted or len(self.measure.terms) < 2:
            return None
        return 1.0 if self.measure.pair and self.measure.pair[0] == "/" else 0.0

    @property
    def counted(self) -> bool:
        """Whether it is judged by counting, without any training."""
        return self.metric in COUNTED

    def needs_evaluation(self, row: str) -> bool:
        """Whether it asks for more of a row's runs than their records hold: see `evaluate.py`."""
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
    paper: str | None  # that makes its claims; None where they are this project's own
    rows: dict[str, Row]
    claims: tuple[Claim, ...]

    @cached_property
    def trained_rows(self) -> list[Row]:
        """Those that are to be trained, which a row is not that only counting asks for.

        Nor are those without a claim where counting judges all that the suite claims.
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
    """Every suite of a folder by its name, in alphabetical order; SuiteError as in `load_suite`."""
    return {path.stem: load_suite(path) for path in sorted(folder.glob("*.yaml"))}


def load_suite(path: Path) -> Suite:
    """SuiteError, in one line with file, line and key, where it cannot be read or is malformed."""
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
        entry.refuse("is no name of a row: lower-case letters, digits and underscores")
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
            value.refuse("is no override: the runner sets it")
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
            keys["measure"].refuse(f"names {term.row}, which is no row of the suite{hint}")
    metric = keys["metric"].choice(get_args(Metric))
    if metric.startswith("sd of") and not (measure.pair and measure.pair[0] == "/"):
        keys["measure"].refuse(f"must be one row over another for {metric}, got {measure.text}")
    if metric == "arithmetic" and measure.terms:
        keys["measure"].refuse(f"must be numbers alone for arithmetic, got {measure.text}")
    if metric != "arithmetic" and not measure.terms:
        keys["measure"].refuse(f"names no row, got {measure.text}")
    for term in measure.terms:
        if term.strategy not in KNOWN_OF.get(metric, STRATEGIES):
            keys["measure"].refuse(f"names {term.strategy}, of which there is no {metric}")
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
    """`92.70`, `0.7 to 1.0`, `> 0` or `< 0`; a tolerance takes the place of a number's rounding."""
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
    """The suites of these names or files; an unknown one ends the process."""
    known = [path.stem for path in sorted(SUITES.glob("*.yaml"))]
    if "all" in names:
        return list(load_suites().values())
    suites = []
    for name in dict.fromkeys(names):
        is_file = name.endswith((".yaml", ".yml"))
        if not is_file and name not in known:
            raise UserError(
                f"{name} is no suite{near(name, known)}: name some of {', '.join(known)}, or all"
            )
        suites.append(load_suite(Path(name) if is_file else SUITES / f"{name}.yaml"))
    return suites


def read_rows(names: str | None, suites: Sequence[Suite]) -> list[str]:
    """The rows that are asked for; an unknown one ends the process."""
    rows = names.split(",") if names is not None else []
    known = list(dict.fromkeys(row for suite in suites for row in suite.rows))
    for row in rows:
        if row not in known:
            raise UserError(
                f"--rows {row} is unknown{near(row, known)}: the rows are {', '.join(known)}"
            )
    return rows
