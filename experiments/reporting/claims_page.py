"""The claims page: every claim of both papers with its measured value, as Markdown."""

from collections import Counter
from pathlib import Path

from experiments.claims.claims import ClaimRow, claim_rows, operations_of
from experiments.claims.matching import Results, config_of_row, load_results
from experiments.claims.seed_statistics import USUAL_SD, mean_of, needed_seeds
from experiments.claims.suites import RESULTS, SHORTENED, Scale, Suite, load_suites
from experiments.claims.verdicts import MEANING
from experiments.records.record import Record, write_atomically
from experiments.reporting.tables import markdown_table
from experiments.training.length import steps_of_epochs

PAGE = RESULTS / "CLAIMS.md"
#: scales on the page; `mini` is a smoke test
SHOWN: tuple[Scale, ...] = ("full", *SHORTENED)

TITLE = """# Every claim of both papers, measured

The main claims of both papers, and our verdicts. All claims are below.
"""

HEAD = f"""
Written by `python experiments/reproduce.py --table` from the records in this folder alone; a test
renders it again. [The suites](../suites/README.md) contain the claims. The column "of no paper"
counts the claims of our own suites: hand counts of parameters, the papers' future work, and
candidates for better networks.

Accuracies are in percent and their differences in points, with the 95% interval over *n* seeds.
Means have t-intervals, differences between two strategies of the same runs have paired
t-intervals, other differences have Welch's interval, and ratios of standard deviations have the
interval of the F-test. Test accuracy is measured on the standard test set, which is read once,
after training. Validation accuracy is measured on 5,000 training images that are not trained on.
SAMResNet's test accuracies come from Kaggle's hidden test set, so ours are not comparable.
Differences between its rows are compared with differences between ours.

**Scale.** *full* is the papers' recipe. *short* is the same recipe in fewer epochs: its verdicts
are about the direction and the size of differences at that length, about shares of training, and
about the number of views. *short_cpu* has half the network's width too. *counted* needs no
training: parameters and operations are counted, and the papers' arithmetic is repeated.

**Seeds needed** is the number of seeds that find the claimed difference with probability 0.8 in a
two-sided t-test at 5%, at the measured standard deviation. Without a measurement at full scale,
{USUAL_SD} points are assumed, which is usual for CIFAR-10 near 94%: then 0.1 points need
{needed_seeds(0.1, USUAL_SD)} runs on each side.

If runs of one claim differ in precision, or come from uncommitted code, the claim says so.
"""


def render(results: Results, suites: dict[str, Suite] | None = None) -> str:
    """The page; ValueError if a suite is malformed."""
    suites = load_suites() if suites is None else suites
    rows = _shown(claim_rows(results, suites.values()))
    parts = [TITLE, _headlines(rows), _full_length(rows, results), HEAD, _summary(rows)]
    for suite in suites.values():
        of_suite = [row for row in rows if row.suite.name == suite.name]
        tables = [_claims(of_suite), _measurements(suite, results)]
        title = f"<details>\n<summary>{suite.title}</summary>\n"
        parts += [title, *tables, "</details>\n"]
    return "\n".join(part for part in parts if part)


def write_claims(folder: Path = RESULTS) -> Path:
    """Render the records under a folder to CLAIMS.md in it."""
    page = folder / PAGE.name
    write_atomically(page, render(load_results(folder)))
    return page


def _shown(rows: list[ClaimRow]) -> list[ClaimRow]:
    """All rows, without unmeasured full scale if fewer epochs judge the claim."""
    judged = {
        (row.suite.name, row.claim.id)
        for row in rows
        if row.scale in SHORTENED and row.verdict != "not comparable"
    }
    return [row for row in rows if row.estimate or (row.suite.name, row.claim.id) not in judged]


def _headlines(rows: list[ClaimRow]) -> str:
    """The papers' main claims with their measurements at the longest scale."""
    best: dict[tuple[str, str], ClaimRow] = {}
    for row in rows:
        key = row.suite.name, row.claim.id
        if row.claim.headline and (key not in best or not best[key].estimate):
            best[key] = row
    header = ["claim", "claimed", "measured", "scale", "verdict"]
    lines = [
        [
            f"{x.claim.text} ({x.claim.source})",
            x.claimed,
            x.measured,
            x.scale if x.estimate else "",
            f"**{x.verdict}**",
        ]
        for x in best.values()
    ]
    return markdown_table(header, lines)


def _full_length(rows: list[ClaimRow], results: Results) -> str:
    """The time of full length on an H100, if verdicts rest on shorter trainings.

    It comes from the fastest run of the same network and batch size on an H100.
    """
    configs = {
        config["arch"]: config
        for row in rows
        if row.suite.paper and row.scale in SHORTENED and row.verdict != "not comparable"
        for config in (config_of_row(row.suite.rows[name], "full") for name in row.claim.rows)
    }
    times = []
    for arch, config in configs.items():
        seconds = [
            record.training_seconds / record.steps * steps_of_epochs(config)
            for record in results.records
            if "H100" in record.device
            and (record.arch, record.operations_per_image) == (arch, operations_of(config))
            and record.config["data"]["batch_size"] == config["data"]["batch_size"]
        ]
        time = f"{min(seconds) / 60:.0f} minutes" if seconds else "not measured"
        times.append(f"`{arch}`, {config['trainer']['max_epochs']} epochs: {time}")
    if not times:
        return ""
    return (
        "Verdicts at the scales *short* and *short_cpu* rest on fewer epochs than the papers'. The "
        "time of one "
        f"training at full length on one H100: {'; '.join(times)}.\n"
    )


def _summary(rows: list[ClaimRow]) -> str:
    """The number of claims with each verdict, and the verdict's meaning."""
    columns = ("counted", *SHOWN, "of no paper")
    counts = Counter[tuple[str, str]](
        (row.scale if row.suite.paper else columns[-1], row.verdict) for row in rows
    )
    lines = [
        [f"**{verdict}**", *(str(counts[column, verdict] or "") for column in columns), meaning]
        for verdict, meaning in MEANING.items()
    ]
    return markdown_table(["verdict", *columns, "meaning"], lines)


def _claims(rows: list[ClaimRow]) -> str:
    header = ["claim", "source", "claimed", "scale", "measured", "n", "verdict", "seeds needed"]
    lines = []
    for row in rows:
        claim = row.claim.text + (f" (*{row.note}*)" if row.note else "")
        verdict = f"**{row.verdict}**" + (f" ({row.scale})" if row.scale in SHORTENED else "")
        cells = [row.claimed, row.scale, row.measured, row.n, verdict, row.seeds]
        lines.append([claim, row.claim.source, *cells, f"`{row.command}`"])
    return markdown_table([*header, "command"], lines)


def _measurements(suite: Suite, results: Results) -> str:
    """The rows with records: accuracy of raw weights, then of averages."""
    lines = []
    for name, row in suite.rows.items():
        for scale in SHOWN:
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
    return markdown_table(header, lines)


def _accuracy(records: list[Record], split: str) -> str:
    cells = []
    for weights in ("raw", "ema", "swa"):
        scores = [record.scores.get(split, {}).get(weights) for record in records]
        known = [100 * score.accuracy for score in scores if score]
        if known:
            x = mean_of(known)
            cells.append(f"{x.value:.2f}{x.margin}")
    return " / ".join(cells)
