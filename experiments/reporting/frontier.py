"""Accuracy against parameters and against the operations of training: ours among what is known."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.benchmarks.benchmark_record import read_benchmark
from experiments.claims.matching import Results, load_results, training_of
from experiments.claims.seed_statistics import Estimate, mean_of
from experiments.inference.strategies import PLAIN
from experiments.records.record import Record, write_atomically
from experiments.reporting.figures import BUDGET
from experiments.reproduction.training_cost import operations_of_training
from experiments.training.presets import EXPERIMENTS
from experiments.training.resolve import resolve_config
from lightning_modules.classifier import count_parameters

PAGE, PICTURE = "FRONTIER.md", "frontier.png"
KNOWN = Path(__file__).with_name("known_points.yaml")
#: the speed benchmark, whose runs have no records of their own
SPEED = Path("benchmarks", "time_to_94.json")
#: in percent: what is below it is a miniature
FLOOR = 92.0
#: who reports a point -> marker and colour
GROUPS = {
    "this project": ("o", "#0b62b5"),
    "the papers' claims": ("X", "#b42318"),
    "others": ("s", "#6b7280"),
}

HEAD = f"""# Past the papers

Written by `python experiments/reproduce.py --table` from the records in this folder and from
[what others report](../reporting/{KNOWN.name}); a test renders it again. Accuracies are in percent,
ours the mean of *n* runs with its 95% interval, of the standard test set and one view of each image
where nothing else is said; *several views* are those of the strategy that validation chose. Of our
runs those stand here that reach {FLOOR:.0f}%. PFLOP are those of training, forward and backward, a
multiply-add counted as two: counted where this project can describe the training, else as reported.
Hollow in the picture: several views.

![Accuracy against parameters, and against the operations of training]({PICTURE})

"""


@dataclass(frozen=True)
class Point:
    """One training, or several that differ in their seed."""

    group: str  # of GROUPS
    name: str
    accuracy: Estimate  # in percent
    views: Estimate | None = None  # the same with several views, ...
    strategy: str = ""  # ... in this way
    parameters: float | None = None
    operations: float | None = None  # of one training
    note: str = ""
    source: str = ""


def find_points(folder: Path) -> list[Point]:
    """Those of the records under a folder and those that are known, the most accurate first."""
    results = load_results(folder)
    found = [*_recorded(results), *_raced(folder / SPEED), *_known()]
    return sorted(found, key=lambda point: (-point.accuracy.value, point.name))


def _recorded(results: Results) -> Iterator[Point]:
    trainings: dict[str, list[Record]] = defaultdict(list)
    for record in results.records:
        if record.source == "cifar10" and not record.quick and "test" in record.scores:
            trainings[training_of(record.config, record.source)].append(record)
    for records in trainings.values():
        single = mean_of([100 * x.scores["test"][x.selected or "raw"].accuracy for x in records])
        if single.value < FLOOR:
            continue
        evaluations = [x for x in map(results.evaluation_of, records) if x]
        views, names = None, ""
        if len(evaluations) == len(records):
            chosen = [(x.chosen or PLAIN, x.strategies[x.chosen or PLAIN]) for x in evaluations]
            views = mean_of([100 * result.scores["test"].accuracy for _, result in chosen])
            names = ", ".join(dict.fromkeys(name for name, _ in chosen))
        first = records[0]
        images = 50_000 - round(50_000 * first.config["data"]["val_fraction"])
        minutes = max(x.training_seconds for x in records) / 60
        yield Point(
            "this project",
            first.arch,
            single,
            views,
            names,
            first.parameters,
            operations_of_training(first.config),
            f"{images:,} images, {first.epochs} epochs, {minutes:.0f} min on {first.device}",
            ", ".join(x.name for x in records),
        )


def _raced(path: Path) -> Iterator[Point]:
    """Of the speed benchmark, whose answers take several views of unsure images."""
    if not path.exists():
        return
    benchmark = read_benchmark(path)
    rows = [row for row in benchmark.rows if row["side"] == "ours"]
    arch, strategy = benchmark.settings["arch"], benchmark.settings["strategy"]
    minutes = max(row["seconds"] for row in rows) / 60
    yield Point(
        "this project",
        arch,
        mean_of([100 * row["plain_accuracy"] for row in rows]),
        mean_of([100 * row["accuracy"] for row in rows]),
        strategy,
        _parameters(resolve_config([f"--arch={arch}"])),
        rows[0]["operations"],
        f"50,000 images, {minutes:.0f} min on {benchmark.device}",
        path.stem,
    )


def _known() -> Iterator[Point]:
    for group, entries in yaml.safe_load(KNOWN.read_text()).items():
        for entry in entries:
            parameters, operations = entry.get("parameters"), entry.get("petaflop")
            if flags := entry.get("flags"):
                config = resolve_config(flags)
                parameters, operations = _parameters(config), operations_of_training(config) / 1e15
            yield Point(
                group,
                entry["name"],
                Estimate(entry["accuracy"], None, None, None, ()),
                parameters=parameters and float(parameters),
                operations=operations and 1e15 * operations,
                note=entry.get("note", ""),
                source=entry["source"],
            )


def _parameters(config: dict[str, Any]) -> int:
    with torch.device("meta"):
        module = EXPERIMENTS[config["arch"]](**config["model"] | {"compile": False})
    return count_parameters(module.network)


def in_words(estimate: Estimate) -> str:
    """`95.31 ± 0.08 (n = 3)`, and of one run or of others' reports as much as there is."""
    text = f"{estimate.value:.2f}"
    if estimate.interval:
        low, high = estimate.interval
        text += f" ± {(high - low) / 2:.2f}"
    return f"{text}, n = {estimate.n[0]}" if estimate.n else text


def render(points: Sequence[Point]) -> str:
    """The page: the points by number, as they stand in the picture."""
    header = ["", "", "accuracy", "several views", "parameters", "PFLOP", "", "source"]
    lines = [header, ["---"] * len(header)]
    for number, x in enumerate(points, 1):
        name = f"**`{x.name}`**" if x.group == "this project" else x.name
        counts = [
            f"{x.parameters / 1e6:.2f}M" if x.parameters else "",
            f"{x.operations / 1e15:.3g}" if x.operations else "",
        ]
        views = f"{in_words(x.views)} ({x.strategy})" if x.views else ""
        lines.append([str(number), name, in_words(x.accuracy), views, *counts, x.note, x.source])
    return HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(points: Sequence[Point]) -> Figure:
    """Both pictures side by side: points with the page's numbers, hollow with several views."""
    figure = Figure(figsize=(10, 4.4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2, sharey=True)
    _scatter(left, points, [x.parameters and x.parameters / 1e6 for x in points])
    _scatter(right, points, [x.operations and x.operations / 1e15 for x in points])
    left.axvline(BUDGET / 1e6, color="#b42318", linestyle="--", linewidth=1)
    left.set_xlabel("parameters, millions")
    left.set_ylabel("test accuracy, percent")
    right.set_xlabel("operations of training, PFLOP")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def _scatter(axis: Axes, points: Sequence[Point], x: Sequence[float | None]) -> None:
    placed = [(i, at, p) for i, (at, p) in enumerate(zip(x, points, strict=True), 1) if at]
    for group, (marker, colour) in GROUPS.items():
        members = [(at, p.accuracy.value) for _, at, p in placed if p.group == group]
        axis.plot(
            [at for at, _ in members], [y for _, y in members], marker, color=colour, label=group
        )
    for number, at, point in placed:
        marker, colour = GROUPS[point.group]
        single = point.accuracy.value
        if point.views:
            pair = [single, point.views.value]
            axis.plot([at, at], pair, marker, color=colour, mfc="none", ls="-", lw=0.8)
        axis.annotate(
            str(number), (at, single), xytext=(5, 3), textcoords="offset points", fontsize=9
        )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)


def write_frontier(folder: Path) -> Path:
    """Write the page and its picture into a folder, from the records under it."""
    points = find_points(folder)
    partial = folder / f"partial-{PICTURE}"
    draw(points).savefig(partial)
    partial.replace(folder / PICTURE)
    write_atomically(folder / PAGE, render(points))
    return folder / PAGE
