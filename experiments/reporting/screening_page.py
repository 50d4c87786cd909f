"""The page of a screening as Markdown, made from its records alone."""

from experiments.claims.matching import Results
from experiments.claims.seed_statistics import mean_of, welch_difference
from experiments.claims.suites import Suite
from experiments.records.record import Record
from experiments.reporting.tables import markdown_table
from experiments.reproduction.halving import Rung, records_of, val_accuracy

HEAD = """# {title}

Written by `{command}`
from the records in this folder alone; a test renders it again. Each row has the settings of the
suite `{name}` at `--scale mini`: a small network and few epochs. The ranking selects candidates
for long runs and does not replace them. The columns give the epochs of the first row. A row
with twice the first row's epochs in the suite also gets twice the epochs here.
{went_on}

Accuracies are in percent on {images} validation images, with the weights that are best on them
and 95% t-intervals over seeds. The test set was not read. *Gain* is the difference from the first
row in the last column that both rows have, in points, with Welch's interval.{dirty}

"""
WENT_ON = """A row continued to the next column if it was in the better half of the rows up
to it; the first row always continued. A training that two rows share is shown for both, even if
one of them was left out earlier."""


def render(suite: Suite, rungs: list[Rung], results: Results, command: str) -> str:
    """The page, ordered by the number of complete columns, then by accuracy."""
    header = ["row", *(f"epochs {x.epochs}, n = {x.seeds}" for x in rungs), "gain"]
    lines = []
    records = {name: [records_of(suite, name, x, results) for x in rungs] for name in suite.rows}
    found = {name: [[val_accuracy(x) for x in of] for of in records[name]] for name in suite.rows}
    base = next(iter(found.values()))

    def merit(name: str) -> tuple[int, float]:
        values = [x for x, rung in zip(found[name], rungs, strict=True) if len(x) == rung.seeds]
        return -len(values), -mean_of(values[-1]).value if values else 0.0

    for name in sorted(found, key=merit):
        cells = [_accuracy(x, rung.seeds) for x, rung in zip(found[name], rungs, strict=True)]
        if not any(cells):
            continue
        title = f"`{name}`: {suite.rows[name].title}"
        lines.append([title, *cells, _gain(found[name], base)])
    used = [record for of_row in records.values() for of_rung in of_row for record in of_rung]
    return _head(suite, command, used, len(rungs) > 1) + markdown_table(header, lines)


def _head(suite: Suite, command: str, records: list[Record], several: bool) -> str:
    images = sorted({f"{score.images:,}" for x in records for score in x.scores["val"].values()})
    changed = sum(record.dirty for record in records)
    dirty = f" Of {len(records)} runs, {changed} are from a changed checkout." if changed else ""
    return HEAD.format(
        title=suite.title,
        name=suite.name,
        command=command,
        images=" or ".join(images) or "no",
        dirty=dirty,
        went_on=WENT_ON if several else "No row was trained for longer.",
    )


def _accuracy(values: list[float], seeds: int) -> str:
    if not values:
        return ""
    fewer = f" (n = {len(values)})" if len(values) < seeds else ""
    mean = mean_of(values)
    return f"{mean.value:.2f}{mean.margin}{fewer}"


def _gain(ours: list[list[float]], base: list[list[float]]) -> str:
    both = [(x, y) for x, y in zip(ours, base, strict=True) if x and y]
    if ours is base or not both:
        return ""
    gain = welch_difference(*both[-1])
    return f"{gain.value:+.2f}{gain.margin}"
