"""The report as one HTML file, from what was found and described."""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from datamodules.corruptions import BENCHMARK
from experiments.claims.claims import ClaimRow
from experiments.claims.verdicts import MEANING
from experiments.records.record import Shift, ShiftResult
from experiments.reporting.collect import Entry
from experiments.reporting.figures import BUDGET, Result, draw_results
from experiments.reporting.inline import svg
from experiments.reporting.pictures import colour_scale
from experiments.reporting.run_details import Chart, RunDetails

TEMPLATES = Path(__file__).resolve().parent / "templates"


def render(
    entries: Sequence[Entry],
    details: Sequence[RunDetails],
    claims: Sequence[ClaimRow],
    unread: int = 0,
) -> str:
    """The page, which needs nothing but itself.

    `details` are of some entries, in their order; `unread` runs are no entries, because they left
    the test set unread.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "code": _code,
        "corruption_rows": corruption_rows,
        "duration": duration,
    }
    counts = Counter(row.verdict for row in claims if row.suite.paper)
    script = (TEMPLATES / "report.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    described = [run.entry for run in details]
    anchors = [
        f"run-{described.index(entry) + 1}" if entry in described else None for entry in entries
    ]
    return environment.get_template("report.html.j2").render(
        anchors=anchors,
        budget=BUDGET,
        claims_by_suite=_by_suite(row for row in claims if row.estimate),
        open_claims=_by_suite(row for row in claims if not row.estimate),
        verdicts={verdict: counts[verdict] for verdict in MEANING if counts[verdict]},
        details=details,
        entries=entries,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        scale=colour_scale(),
        scatter=scatter(entries),
        # Both are files of ours, and what is in them must not be escaped.
        script=Markup(script),
        script_hash=Markup(f"sha256-{digest}"),
        style=Markup((TEMPLATES / "report.css").read_text()),
        unread=unread,
    )


def scatter(entries: Sequence[Entry]) -> Chart | None:
    """Test accuracy against parameters of the runs that can be compared; None where none can."""
    results = [
        Result(rank, e.record.arch, e.record.parameters, e.test.accuracy, e.test.images)
        for rank, e in enumerate(entries, 1)
        if e.comparable
    ]
    if not results:
        return None
    best = results[0]
    caption = (
        f"Test accuracy against parameters of {len(results)} "
        f"run{'s' if len(results) > 1 else ''}, by rank in the leaderboard. Lines are 95% "
        f"intervals of sampling {best.images:,} test images, not of training again. Rank "
        f"{best.rank}: "
        f"{best.accuracy:.2%} with {best.parameters:,} parameters, "
        f"{best.parameters / BUDGET:.1%} of the budget."
    )
    return Chart(svg(draw_results(results), "results", caption), caption)


@dataclass(frozen=True)
class CorruptionRow:
    """One line of the table of corruptions: a value for each strategy."""

    name: str
    values: list[str]
    mean: bool = False


def corruption_rows(shift: Shift) -> list[list[CorruptionRow]]:
    """Errors in percent: clean, the benchmark's corruptions, the others, and calibration."""
    results = shift.strategies.values()

    def row(name: str, errors: list[float], mean: bool = False) -> CorruptionRow:
        return CorruptionRow(name, [f"{100 * error:.2f}" for error in errors], mean)

    def of(name: str) -> CorruptionRow:
        return row(name.replace("_", " "), [corruption_error(x, name) for x in results])

    names = list(next(iter(results)).corrupted)
    others = [name for name in names if name not in BENCHMARK]
    return [
        [row("none (clean)", [1 - x.clean.accuracy for x in results])],
        [
            *(of(name) for name in names if name in BENCHMARK),
            row("mCE of these 15", [x.mean_15.mce for x in results], mean=True),
        ],
        [
            *(of(name) for name in others),
            row("mCE of all 19", [x.mean_19.mce for x in results], mean=True),
        ],
        [
            CorruptionRow(
                "ECE, mean of all 19", [f"{x.mean_19.as_it_is.ece:.4f}" for x in results]
            ),
            CorruptionRow(
                "the same at the fitted temperature",
                [f"{x.mean_19.fitted.ece:.4f}" if x.mean_19.fitted else "" for x in results],
            ),
        ],
    ]


def corruption_error(result: ShiftResult, corruption: str) -> float:
    """Share of images misclassified under a corruption, the mean over severities."""
    return 1 - fmean(score.accuracy for score in result.corrupted[corruption])


def _by_suite(rows: Iterable[ClaimRow]) -> dict[str, list[ClaimRow]]:
    suites: dict[str, list[ClaimRow]] = {}
    for row in rows:
        suites.setdefault(row.suite.title, []).append(row)
    return suites


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03."""
    return str(timedelta(seconds=round(seconds)))


def _code(text: str) -> Markup:
    """A sentence, escaped, with what stands between backticks as code."""
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", str(escape(text))))
