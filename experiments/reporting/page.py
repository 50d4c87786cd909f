"""The report as one HTML file."""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from experiments.claims.claims import ClaimRow
from experiments.claims.seed_statistics import Estimate
from experiments.claims.verdicts import MEANING
from experiments.records.images import SOURCES
from experiments.reporting.configurations import Configuration
from experiments.reporting.figures import BUDGET, Result, draw_results
from experiments.reporting.inline import Chart, chart

if TYPE_CHECKING:
    from experiments.reporting.run_details import RunDetails

TEMPLATES = Path(__file__).resolve().parent / "templates"


def render(
    rows: Sequence[Configuration],
    details: "Sequence[RunDetails]",
    claims: Sequence[ClaimRow],
    unread: int = 0,
) -> str:
    """The page, which needs no other file and no network.

    `details` describe some of the runs in `rows`. `unread` is the number of runs without a test
    accuracy, which are in no row.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": _code, "duration": duration, "estimate": _estimate}
    counts = Counter(row.verdict for row in claims if row.suite.paper)
    script = (TEMPLATES / "report.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        anchors={id(run.entry): f"run-{i}" for i, run in enumerate(details, 1)},
        budget=BUDGET,
        claims_by_suite=_by_suite(row for row in claims if row.estimate),
        open_claims=_by_suite(row for row in claims if not row.estimate),
        verdicts={verdict: counts[verdict] for verdict in MEANING if counts[verdict]},
        details=details,
        folded=[row for row in rows if row.folded],
        id=id,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        rows=[row for row in rows if not row.folded],
        runs=sum(len(row.entries) for row in rows),
        scatter=scatter(rows),
        sources=SOURCES,
        # Both files are this project's own, so they are not escaped.
        script=Markup(script),
        script_hash=Markup(f"sha256-{digest}"),
        style=Markup((TEMPLATES / "report.css").read_text("utf-8")),
        unread=unread,
    )


def scatter(rows: Sequence[Configuration]) -> Chart | None:
    """Test accuracy against parameters on CIFAR-10 at full length, or None."""
    results = [
        Result(
            rank,
            row.record.arch,
            row.record.parameters,
            row.test.value / 100,
            None if row.test.sd is None else row.test.sd / 100,
            _on_hover(rank, row),
        )
        for rank, row in enumerate(rows, 1)
        if row.record.source == "cifar10" and not row.folded
    ]
    if not results:
        return None
    best = results[0]
    caption = (
        f"Test accuracy against parameters of {len(results)} "
        f"configuration{'s' if len(results) > 1 else ''}. Numbers are ranks in the leaderboard, "
        "lines are one standard deviation over seeds. "
        f"Rank 1: {best.accuracy:.2%} with {best.parameters:,} parameters, "
        f"{best.parameters / BUDGET:.1%} of the budget."
    )
    return chart(draw_results(results), "results", caption)


def _on_hover(rank: int, row: Configuration) -> str:
    lines = [
        f"{rank}. {row.record.arch}",
        row.settings,
        f"{_estimate(row.test)}% test, n = {row.test.n[0]}",
        f"{row.record.parameters:,} parameters",
        row.names,
        *row.record.command,
    ]
    return "\n".join(filter(None, lines))


def _by_suite(rows: Iterable[ClaimRow]) -> dict[str, list[ClaimRow]]:
    suites: dict[str, list[ClaimRow]] = {}
    for row in rows:
        suites.setdefault(row.suite.title, []).append(row)
    return suites


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03."""
    return str(timedelta(seconds=round(seconds)))


def _estimate(estimate: Estimate) -> str:
    """`95.31 ± 0.08` with the standard deviation, or `95.31` for a single run."""
    sd = "" if estimate.sd is None else f" ± {estimate.sd:.2f}"
    return f"{estimate.value:.2f}{sd}"


def _code(text: str) -> Markup:
    """An escaped sentence; text in backticks becomes code."""
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", str(escape(text))))
