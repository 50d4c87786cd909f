"""Accuracy against parameters and training operations: this project's runs and known results."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from math import log
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from pydantic.dataclasses import dataclass as pydantic_dataclass

from experiments.claims.claims import parameters_of, reservations
from experiments.claims.matching import Results, load_results
from experiments.claims.seed_statistics import Estimate, mean_of
from experiments.inference.strategies import PLAIN, STRATEGIES
from experiments.records.parsing import EXACT, YamlFile
from experiments.records.record import Record, read_benchmark, write_atomically
from experiments.reporting.figures import BUDGET
from experiments.reporting.tables import markdown_table
from experiments.reproduction.training_cost import operations_of_training
from experiments.training.configuration import resolve_config
from experiments.training.length import training_images

PAGE, PICTURE = "FRONTIER.md", "frontier.png"
# In the picture's own metadata.
DRAWN_WITH = "SHA-256 of FRONTIER.md"
KNOWN = Path(__file__).with_name("known_points.yaml")
#: the speed benchmark, whose runs have no own records
SPEED = Path("benchmarks", "time_to_94.json")
#: in percent; runs below it are miniatures
FLOOR = 92.0
#: origin of a point -> marker and colour
GROUPS = {
    "this project": ("o", "#0b62b5"),
    "the papers' claims": ("X", "#b42318"),
    "others": ("s", "#6b7280"),
}

HEAD = f"""# Past the papers

`python experiments/reproduce.py --table` writes this page from the records in this folder and from
[published results](../reporting/{KNOWN.name}). Accuracies are in percent, on the standard test set,
with one view of each image unless stated otherwise. For this project they are means of *n* runs
with different seeds, with their 95% interval.

*Several views*: this project's runs have a value here if validation selected such a strategy, or if
the strategy was fixed before a run without validation. Published results have it if they report
nothing else. The picture shows several views as hollow points. This project's runs are
listed from {FLOOR:.0f}%.

PFLOP counts the operations of training, forward and backward; a multiply-add counts as two. This
project counts them if it can describe the training; otherwise the reported value is listed. Points
without parameters or PFLOP are missing in that half of the picture.

![Accuracy against parameters, and against the operations of training]({PICTURE})

"""


@dataclass(frozen=True)
class Point:
    """One training: a published result, or the mean of runs with different seeds."""

    group: str  # of GROUPS
    name: str
    accuracy: Estimate  # in percent, of one view of each image unless `several_views`
    views: Estimate | None = None  # the same with several views
    strategy: str = ""  # that gave `views`
    parameters: float | None = None
    operations: float | None = None  # of one training
    note: str = ""
    source: str = ""
    several_views: bool = False  # whether `accuracy` is of several views


@pydantic_dataclass(frozen=True, config=EXACT, kw_only=True)
class KnownPoint:
    """A published result in `known_points.yaml`."""

    name: str
    accuracy: float  # in percent
    source: str
    note: str = ""
    flags: list[str] = field(default_factory=list)  # of run.py: they give parameters and operations
    parameters: float | None = None  # as reported
    petaflop: float | None = None  # of training, as reported
    several_views: bool = False  # whether the accuracy is with several views of each image


def find_points(folder: Path) -> list[Point]:
    """The points of a folder's records and of known results, by falling accuracy."""
    results = load_results(folder)
    found = [*_recorded(results), *_raced(folder / SPEED), *_known()]
    return sorted(found, key=lambda point: (-point.accuracy.value, point.name))


def _recorded(results: Results) -> Iterator[Point]:
    for by_seed in results.trainings.values():
        records = [x for x in by_seed.values() if _counts(x)]
        if not records:
            continue
        single = mean_of([100 * x.scores["test"][x.selected or "raw"].accuracy for x in records])
        if single.value < FLOOR:
            continue
        evaluations = [x for x in map(results.evaluation_of, records) if x]
        names = [x.chosen or PLAIN for x in evaluations]
        chosen = [x.strategies[name] for x, name in zip(evaluations, names, strict=True)]
        views = None
        if len(chosen) == len(records) and all(len(x.strategy["views"]) > 1 for x in chosen):
            views = mean_of([100 * x.scores["test"].accuracy for x in chosen])
        first = records[0]
        length = f"{first.epochs} epochs, {_longest(records)}"
        yield Point(
            "this project",
            first.arch,
            single,
            views,
            ", ".join(dict.fromkeys(names)),
            first.parameters,
            operations_of_training(first.config),
            "; ".join(
                [f"{training_images(first.config):,} images, {length}", *reservations(records)]
            ),
            ", ".join(x.name for x in records),
        )


def _longest(records: list[Record]) -> str:
    """The longest training on each device: "97 min on AMD EPYC, 2 min on H100"."""
    seconds: dict[str, float] = {}
    for record in records:
        seconds[record.device] = max(record.training_seconds, seconds.get(record.device, 0))
    return ", ".join(
        f"{s / 60:.0f} min on {device}" if s >= 60 else f"{s:.0f} s on {device}"
        for device, s in seconds.items()
    )


def _counts(record: Record) -> bool:
    return record.source == "cifar10" and not record.quick and "test" in record.scores


def _raced(path: Path) -> Iterator[Point]:
    """The point of the speed benchmark."""
    if not path.exists():
        return
    benchmark = read_benchmark(path)
    rows = [row for row in benchmark.rows if row["side"] == "ours"]
    arch, strategy = benchmark.settings["arch"], benchmark.settings["strategy"]
    several = len(STRATEGIES[strategy].views) > 1
    config = resolve_config([f"--arch={arch}", *benchmark.settings["run_flags"]])
    minutes = max(row["seconds"] for row in rows) / 60
    yield Point(
        "this project",
        arch,
        mean_of([100 * row["plain_accuracy"] for row in rows]),
        mean_of([100 * row["accuracy"] for row in rows]) if several else None,
        strategy,
        parameters_of(config),
        rows[0]["operations"],
        f"{training_images(config):,} images, {minutes:.0f} min on {benchmark.device}; operations "
        "counted as it ran",
        path.stem,
    )


def _known() -> Iterator[Point]:
    for group, entries in YamlFile(KNOWN).parse(dict[str, list[KnownPoint]]).items():
        for x in entries:
            parameters, petaflop = x.parameters, x.petaflop
            if x.flags:
                config = resolve_config(x.flags)
                parameters = parameters_of(config)
                petaflop = operations_of_training(config) / 1e15
            yield Point(
                group,
                x.name,
                Estimate(x.accuracy, None, None, ()),
                parameters=parameters,
                operations=petaflop and 1e15 * petaflop,
                note=x.note,
                source=x.source,
                several_views=x.several_views,
            )


def in_words(estimate: Estimate) -> str:
    """`95.31 ± 0.08, n = 3`, without the interval or n if they are unknown."""
    text = f"{estimate.value:.2f}{estimate.margin}"
    return f"{text}, n = {estimate.n[0]}" if estimate.n else text


def render(points: Sequence[Point]) -> str:
    """The page, with the points numbered as in the picture."""
    header = ["point", "network", "accuracy", "several views", "parameters", "PFLOP"]
    header += ["training", "source"]
    lines = []
    for number, x in enumerate(points, 1):
        name = f"**`{x.name}`**" if x.group == "this project" else x.name
        counts = [
            f"{x.parameters / 1e6:.2f}M" if x.parameters else "",
            f"{x.operations / 1e15:.3g}" if x.operations else "",
        ]
        accuracy, views = in_words(x.accuracy), ""
        if x.several_views:
            accuracy, views = "", accuracy
        elif x.views:
            views = f"{in_words(x.views)} ({x.strategy})"
        lines.append([str(number), name, accuracy, views, *counts, x.note, x.source])
    return HEAD + markdown_table(
        header, ([cell.replace("|", r"\|") for cell in line] for line in lines)
    )


def draw(points: Sequence[Point]) -> Figure:
    """Both charts with the page's numbers; points of several views are hollow."""
    figure = Figure(figsize=(10, 4.4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2, sharey=True)
    _scatter(left, points, [x.parameters and x.parameters / 1e6 for x in points])
    _scatter(right, points, [x.operations and x.operations / 1e15 for x in points])
    left.axvline(BUDGET / 1e6, color="#b42318", linestyle="--", linewidth=1)
    left.set_xlabel("parameters, millions")
    left.set_ylabel("accuracy, percent")
    right.set_xlabel("operations of training, PFLOP")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def _scatter(axis: Axes, points: Sequence[Point], x: Sequence[float | None]) -> None:
    placed = [(i, at, p) for i, (at, p) in enumerate(zip(x, points, strict=True), 1) if at]
    for group, (marker, colour) in GROUPS.items():
        members = [(at, p) for _, at, p in placed if p.group == group and not p.several_views]
        ys = [p.accuracy.value for _, p in members]
        axis.plot([at for at, _ in members], ys, marker, color=colour, label=group)
    right: list[tuple[float, float]] = []  # the marks with their number on the right
    for number, at, point in placed:
        marker, colour = GROUPS[point.group]
        accuracy = point.accuracy.value
        if point.several_views:
            axis.plot(at, accuracy, marker, color=colour, mfc="none")
        elif point.views:
            pair = [accuracy, point.views.value]
            axis.plot([at, at], pair, marker, color=colour, mfc="none", ls="-", lw=0.8)
        close = any(abs(log(at / x)) < 0.3 and abs(accuracy - y) < 0.25 for x, y in right)
        side, offset = ("right", -5) if close else ("left", 5)
        if not close:
            right.append((at, accuracy))
        place: dict[str, Any] = {"xytext": (offset, 3), "textcoords": "offset points", "ha": side}
        axis.annotate(str(number), (at, accuracy), **place, fontsize=9)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(x=0.1)  # room for the numbers
    axis.grid(alpha=0.3)


def write_frontier(folder: Path) -> Path:
    """Write the page and its picture into a folder, from the records under it."""
    points, picture = find_points(folder), BytesIO()
    page = render(points)
    draw(points).savefig(picture, metadata={DRAWN_WITH: sha256(page.encode()).hexdigest()})
    write_atomically(folder / PICTURE, picture.getvalue())
    write_atomically(folder / PAGE, page)
    return folder / PAGE
