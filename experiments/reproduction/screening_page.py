"""What a screening has found, as Markdown: from its records and from nothing else."""

from experiments.claims.matching import Results
from experiments.claims.seed_statistics import Estimate, mean_of, welch_difference
from experiments.claims.suites import Suite
from experiments.records.record import Record
from experiments.reproduction.halving import Rung, records_of, val_accuracy

HEAD = """# {title}

Written by `{command}`
from the records in this folder and from nothing else; a test renders it again. Each row is
`--scale mini` of the suite `{name}`: a small network and few epochs, which rank candidates for the
long runs and do not replace them. Columns count the epochs of the first row; one that is longer or
shorter in the suite keeps that share. {went_on}

Accuracies are in percent, of {images} validation images, of the weights that are best on them,
with 95% t-intervals over runs that differ in their seed; the test set was not read. *Gain* is over
the first row in the last column that both have, in points, with Welch's interval.{dirty}

"""
WENT_ON = """A row went on to the next column if it was
in the better half of those before it in the suite, itself included; the first always did. A
training that two rows have in common stands at both, also where one had been left out by then."""


def render(suite: Suite, rungs: list[Rung], results: Results, command: str) -> str:
    """The page: rows with the most whole columns first, of these the most accurate."""
    header = ["row", *(f"epochs {x.epochs}, n = {x.seeds}" for x in rungs), "gain"]
    lines = [header, ["---"] * len(header)]
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
    return _head(suite, command, used, len(rungs) > 1) + "".join(
        f"| {' | '.join(line)} |\n" for line in lines
    )


def _head(suite: Suite, command: str, records: list[Record], several: bool) -> str:
    images = sorted({f"{score.images:,}" for x in records for score in x.scores["val"].values()})
    changed = sum(record.dirty for record in records)
    dirty = f" Of {len(records)} runs, {changed} are of a changed checkout." if changed else ""
    return HEAD.format(
        title=suite.title,
        name=suite.name,
        command=command,
        images=" or ".join(images) or "no",
        dirty=dirty,
        went_on=WENT_ON if several else "None was trained for longer.",
    )


def _accuracy(values: list[float], seeds: int) -> str:
    if not values:
        return ""
    fewer = f" (n = {len(values)})" if len(values) < seeds else ""
    return _in_words(mean_of(values), ".2f") + fewer


def _gain(ours: list[list[float]], base: list[list[float]]) -> str:
    both = [(x, y) for x, y in zip(ours, base, strict=True) if x and y]
    if ours is base or not both:
        return ""
    return _in_words(welch_difference(*both[-1]), "+.2f")


def _in_words(estimate: Estimate, form: str) -> str:
    value = f"{estimate.value:{form}}"
    if estimate.interval is None:
        return value
    low, high = estimate.interval
    return f"{value} ± {(high - low) / 2:.2f}"
