"""Every claim of the papers with its measured value and its verdict."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from experiments.claims.estimates import (
    SPLITS,
    SPREAD,
    estimate_claim,
    interval_over_images,
    is_paired,
)
from experiments.claims.matching import Results, config_of_row
from experiments.claims.seed_statistics import USUAL_SD, Estimate, needed_seeds
from experiments.claims.suites import SHORTENED, Claim, Scale, Suite
from experiments.claims.verdicts import Verdict, judge
from experiments.records.record import Record
from experiments.training.configuration import on_meta
from experiments.training.experiment import operations_per_image
from lightning_modules.networks import count_parameters


@dataclass(frozen=True)
class ClaimRow:
    """One claim, its measured value at one scale, and the verdict.

    The texts are a table's cells: accuracies in percent, their differences in points.
    """

    suite: Suite
    claim: Claim
    scale: Scale | Literal["counted"]
    estimate: Estimate | None  # None without records
    verdict: Verdict
    over_images: tuple[float, float] | None = None  # interval over test images, of a single run
    seeds_needed: int | None = None  # None without a claimed difference or a known sd
    paired: bool = False  # whether both sides of the difference come from the same runs
    note: str | None = None  # our reading, or the reason why it cannot be judged

    @property
    def claimed(self) -> str:
        """The value as the paper prints it: 5.02M, 4,913,705, +0.62, 0.7 to 1.0, > 0."""
        text = self.claim.claimed.text.replace("e6", "M")
        text = re.sub(r"\d{5,}", lambda digits: f"{int(digits[0]):,}", text)
        return f"+{text}" if self._is_difference and text[0].isdigit() else text

    @property
    def measured(self) -> str:
        """Mean and 95% interval; for a single run the interval over images, if known."""
        if self.estimate is None:
            return ""
        value, interval = self._number(self.estimate.value), self.estimate.interval
        if self.scale == "counted":
            return value
        if interval is None:
            if self.over_images is None:
                return value
            low, high = (self._number(x) for x in self.over_images)
            return f"{value} [{low}, {high}] over images"
        if self.claim.metric == SPREAD:  # not symmetric
            return f"{value} [{interval[0]:.2f}, {interval[1]:.2f}]"
        return value + self.estimate.margin

    @property
    def n(self) -> str:
        """Number of runs, of both sides of a difference."""
        if self.estimate is None or self.scale == "counted":
            return ""
        return " + ".join(map(str, self.estimate.n))

    @property
    def seeds(self) -> str:
        """Number of runs that the claimed difference needs."""
        if self.seeds_needed is None:
            return ""
        return f"{self.seeds_needed} {'pairs' if self.paired else 'a side'}"

    @property
    def command(self) -> str:
        """The command that measures or counts it."""
        if self.scale == "counted":
            return "python experiments/reproduce.py --table"
        rows = ",".join(self.claim.rows)
        scale = "" if self.scale == "full" else f" --scale {self.scale}"
        return f"python experiments/reproduce.py {self.suite.name} --rows {rows}{scale}"

    @property
    def _is_difference(self) -> bool:
        pair = self.claim.measure.pair
        return pair is not None and pair[0] == "-" and self.claim.metric.endswith("accuracy")

    def _number(self, value: float) -> str:
        if math.isnan(value):
            return "not defined"
        if self._is_difference:
            return f"{value:+.2f}"
        if 0 < abs(value) < 0.005:
            return f"{value:.1g}"
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.2f}"


def claim_rows(results: Results, suites: Iterable[Suite]) -> list[ClaimRow]:
    """Every claim of the suites at full scale, and with fewer epochs if measured.

    A counted claim has one row. ValueError if a row's network cannot be built.
    """
    rows: list[ClaimRow] = []
    for suite in suites:
        for claim in suite.claims:
            if claim.counted:
                rows.append(_count(suite, claim))
                continue
            rows.append(_assess(suite, claim, "full", results))
            shorter = (_assess(suite, claim, x, results) for x in SHORTENED if suite.defines(x))
            rows += [row for row in shorter if row.estimate]
    return rows


def _count(suite: Suite, claim: Claim) -> ClaimRow:
    count = operations_of if claim.metric == "operations" else parameters_of
    counts = {
        x: float(count(config_of_row(suite.rows[x.row], "full"))) for x in claim.measure.terms
    }
    value = claim.measure(counts)
    verdict = judge((claim.claimed.low, claim.claimed.high), (value, value), claim.threshold)
    exact = Estimate(value, None, (value, value), ())
    return ClaimRow(suite, claim, "counted", exact, verdict, note=claim.note)


def parameters_of(config: dict[str, Any]) -> int:
    """Count the trainable parameters of a configuration's network."""
    return _parameters(config["arch"], json.dumps(config["model"]))


def operations_of(config: dict[str, Any]) -> int:
    """Count the operations of one image's forward pass; a multiply-add counts as two."""
    return _operations(config["arch"], json.dumps(config["model"]))


@cache
def _operations(arch: str, model: str) -> int:
    return operations_per_image(on_meta(arch, json.loads(model)))


@cache
def _parameters(arch: str, model: str) -> int:
    return count_parameters(on_meta(arch, json.loads(model)).network)


def _assess(suite: Suite, claim: Claim, scale: Scale, results: Results) -> ClaimRow:
    estimate = estimate_claim(suite, claim, scale, results)
    notes = [claim.not_comparable, claim.note]
    claimed = claim.claimed.low, claim.claimed.high
    if claim.not_comparable:
        verdict: Verdict = "not comparable"
    elif estimate is None:
        verdict = "not yet measured"
    elif claim.judged_at(scale):
        verdict = judge(claimed, estimate.interval, claim.threshold)
    else:
        verdict = "not comparable"
        notes.append("the paper's value is for its full length")
    if estimate is not None:
        notes += reservations(
            [x for row in claim.rows for x in results.of_row(suite.rows[row], scale).values()]
        )
    return ClaimRow(
        suite,
        claim,
        scale,
        estimate,
        verdict,
        over_images=interval_over_images(suite, claim, scale, results),
        seeds_needed=_seeds_needed(suite, claim, scale, estimate),
        paired=is_paired(suite, claim, scale),
        note="; ".join(filter(None, notes)) or None,
    )


def reservations(records: list[Record]) -> list[str]:
    """Differences between the runs of one estimate, other than the seed."""
    runs = {id(record): record for record in records}.values()  # two rows may be one training
    formats = sorted({record.precision for record in runs})
    changed = sum(record.dirty for record in runs)
    found = []
    if len(formats) > 1:
        found.append(f"precisions: {', '.join(formats)}")
    if changed:
        found.append(f"{changed} of {len(runs)} runs from a changed checkout")
    return found


def _seeds_needed(
    suite: Suite, claim: Claim, scale: Scale, estimate: Estimate | None
) -> int | None:
    """Seeds that the claimed difference needs at the measured standard deviation.

    Without a measurement at full scale, the usual standard deviation of independent runs is used.
    """
    pair, claimed = claim.measure.pair, claim.claimed
    if claim.not_comparable or not pair or pair[0] != "-" or claimed.bound is not None:
        return None
    paired = is_paired(suite, claim, scale)
    sd = estimate.sd if estimate else None
    if sd is None and scale == "full" and not paired and claim.metric in SPLITS:
        sd = USUAL_SD
    middle = (claimed.low + claimed.high) / 2
    return needed_seeds(middle, sd, paired) if sd is not None and middle else None
