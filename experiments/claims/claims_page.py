"""The claims page: every claim of both papers with its measured value, as Markdown."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from experiments.claims.claims import ClaimRow, claim_rows
from experiments.claims.matching import Results, load_results
from experiments.claims.seed_statistics import USUAL_SD, mean_of, needed_seeds
from experiments.claims.suites import RESULTS, Scale, Suite, load_suites
from experiments.claims.verdicts import MEANING
from experiments.records.record import Record, write_atomically

PAGE = RESULTS / "CLAIMS.md"

HEAD = f"""# Every claim of both papers, measured

Written by `python experiments/reproduce.py --table` from the records in this folder and from
nothing else; a test renders it again. [What the suites are](../suites/README.md). Those of the
table's last column are not the papers': hand counts that theirs are checked against, what they
name as future work, and candidates for better networks, with the bets on them.

Accuracies are in percent, their differences in points, both with the 95% interval over *n* runs
that differ in their seed: t-intervals, paired where both sides are of the same runs, Welch's where
they are not, the F-test's for ratios of standard deviations. Test accuracy is that of the standard
test set, read once after training; validation accuracy that of the 5,000 held-out training images.
SAMResNet's test accuracies are of Kaggle's hidden test set, with which ours cannot be compared; the
difference between two of its rows is compared with the difference between ours.

**Scale.** *full* is the recipe as the papers have it. *mini* is the same table at a reduced width
and a short schedule, on the real CIFAR-10: a verdict there is about the miniature, whether it
differs in the direction that the paper claims, and none on the paper's figure. *counted* needs no
training: the networks' parameters are counted, and what the papers computed is computed again.

**Seeds needed** find the claimed difference with probability 0.8 in a two-sided t-test at 5%, at
the standard deviation that was measured. Before there is one, that of two trainings at full scale
is taken as {USUAL_SD} points, which is usual for CIFAR-10 near 94%: then 0.1 points need
{needed_seeds(0.1, USUAL_SD)} runs a side.

Runs of one row may differ in the number format that their machine chose, and some may be of code
with changes that are not committed: where that is so, the claim says it.
"""


def render(results: Results, suites: dict[str, Suite] | None = None) -> str:
    """The page; ValueError where a suite is malformed."""
    suites = load_suites() if suites is None else suites
    rows = claim_rows(results.records, results.evaluations, suites)
    parts = [HEAD, _summary(rows)]
    for suite in suites.values():
        of_suite = [row for row in rows if row.suite.name == suite.name]
        parts += [f"## {suite.title}\n", _claims(of_suite), _measurements(suite, results)]
    return "\n".join(part for part in parts if part)


def write_claims(folder: Path = RESULTS) -> Path:
    """Render the records under a folder to CLAIMS.md in it."""
    page = folder / PAGE.name
    write_atomically(page, render(load_results(folder)))
    return page


def _summary(rows: list[ClaimRow]) -> str:
    """How many claims have each verdict, and what it means."""
    columns = ("counted", "full", "mini", "of no paper")
    counts = Counter[tuple[str, str]](
        (row.scale if row.suite.paper else columns[-1], row.verdict) for row in rows
    )
    lines = [
        [f"**{verdict}**", *(str(counts[column, verdict] or "") for column in columns), meaning]
        for verdict, meaning in MEANING.items()
    ]
    return _table(["verdict", *columns, "meaning"], lines)


def _claims(rows: list[ClaimRow]) -> str:
    header = ["claim", "source", "claimed", "scale", "measured", "n", "verdict", "seeds needed"]
    lines = []
    for row in rows:
        claim = f"{row.text} (*{row.note}*)" if row.note else row.text
        verdict = f"**{row.verdict}**" + (" (mini)" if row.scale == "mini" else "")
        cells = [row.claimed, row.scale, row.measured, row.n, verdict, row.seeds]
        lines.append([claim, row.source, *cells, f"`{row.command}`"])
    return _table([*header, "command"], lines)


def _measurements(suite: Suite, results: Results) -> str:
    """What there are records of, row by row: raw weights, then their moving average."""
    lines = []
    for name, row in suite.rows.items():
        for scale in get_args(Scale):
            records = list(results.of_row(row, scale).values())
            if records and row in suite.trained_rows:
                count = f"{records[0].parameters:,}"
                accuracies = [_accuracy(records, split) for split in ("val", "test")]
                runs = ", ".join(record.name for record in records)
                lines.append([f"`{name}`: {row.title}", scale, count, *accuracies, runs])
    if not lines:
        return ""
    weights = "raw / averaged weights"
    header = ["row", "scale", "parameters", f"validation, {weights}", f"test, {weights}", "records"]
    return _table(header, lines)


def _accuracy(records: list[Record], split: str) -> str:
    cells = []
    for weights in ("raw", "ema", "swa"):
        scores = [record.scores.get(split, {}).get(weights) for record in records]
        known = [100 * score.accuracy for score in scores if score]
        if known:
            x = mean_of(known)
            half = f" ± {(x.interval[1] - x.interval[0]) / 2:.2f}" if x.interval else ""
            cells.append(f"{x.value:.2f}{half}")
    return " / ".join(cells)


def _table(header: list[str], lines: Iterable[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
