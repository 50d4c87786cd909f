"""The report's charts as matplotlib figures: accuracy against parameters, curves, reliability."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from experiments.records.metrics import Points
from experiments.reporting.inline import COLOURS, SERIES, STYLE, Drawing, Mark

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.inference.analysis import Reliability

#: the project's limit of trainable parameters
BUDGET = 5_000_000
#: in inches of 96 pixels: two charts fit next to each other on a screen, and one on a phone
SIZE = (4.4, 3.0)
MARKERS = "os^Dvp*X"
#: the most marks of a chart
MARKS = 200

#: column of metrics.csv for the measure acc or loss -> label, colour and dashes
LINES = {
    "train/{}": ("training", "train", ":"),
    "train/{}_soft": ("training, as mixed", "train", ":"),
    "val/{}": ("raw", "raw", "-"),
    "val/{}_ema": ("EMA", "ema", "--"),
    "val/{}_swa": ("SWA", "swa", "-."),
}


@dataclass(frozen=True)
class Result:
    """One configuration as a point."""

    rank: int
    arch: str
    parameters: int
    accuracy: float  # mean over seeds, in [0, 1]
    sd: float | None  # of one run; None for a single seed
    text: str  # shown on hover


@matplotlib.rc_context(STYLE)
def draw_results(results: Sequence[Result]) -> Drawing:
    """Accuracy against parameters with standard deviations, and the budget."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axis = figure.subplots()
    for i, arch in enumerate(dict.fromkeys(result.arch for result in results)):
        points = [result for result in results if result.arch == arch]
        x = [result.parameters for result in points]
        y = [result.accuracy for result in points]
        sds = [result.sd or 0 for result in points]
        colour, marker = COLOURS[f"series-{i % SERIES}"], MARKERS[i % len(MARKERS)]
        axis.errorbar(x, y, sds, fmt="none", ecolor=colour, alpha=0.5, elinewidth=1.2)
        axis.scatter(x, y, color=colour, marker=marker, s=34, label=arch)
    axis.axvline(BUDGET, color=COLOURS["budget"], linestyle="--", linewidth=1.2)
    axis.annotate(
        "budget 5M",
        (BUDGET, 0),
        xycoords=("data", "axes fraction"),
        xytext=(-5, 8),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color=COLOURS["budget"],
    )
    axis.set_xscale("log")
    smallest = min([result.parameters for result in results], default=BUDGET)
    axis.set_xlim(min(smallest, BUDGET) / 1.4, max(BUDGET, *(r.parameters for r in results)) * 1.3)
    axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e6:g}M"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set_xlabel("trainable parameters")
    axis.set_ylabel("test accuracy")
    _legend(figure)
    _label(figure, axis, results)
    in_order = sorted(results, key=lambda x: (x.parameters, x.accuracy))
    return Drawing(figure, [Mark(axis, x.parameters, x.accuracy, x.text) for x in in_order])


def _label(figure: Figure, axis: Axes, results: Sequence[Result]) -> None:
    """Write each rank next to its point on a free side; the best rank comes first."""
    figure.draw_without_rendering()
    taken: list[tuple[float, float]] = []
    for result in results:
        point = (result.parameters, result.accuracy)
        x, y = axis.transData.transform(point)
        for side, alignment in ((9, "left"), (-9, "right")):
            place = (x + side, y)
            if all(abs(place[0] - u) > 16 or abs(place[1] - v) > 14 for u, v in taken):
                axis.annotate(
                    f"{result.rank}",
                    point,
                    xytext=(0.72 * side, 0),
                    textcoords="offset points",
                    ha=alignment,
                    va="center",
                    fontsize=9,
                )
                taken.append(place)
                break


@matplotlib.rc_context(STYLE)
def draw_curves(metrics: Mapping[str, Points], measure: str, steps_per_epoch: float) -> Drawing:
    """Training and validation "acc" or "loss" over epochs."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axis = figure.subplots()
    for column, (label, colour, dashes) in LINES.items():
        if (name := column.format(measure)) in metrics:
            epochs, values = _over_epochs(metrics[name], steps_per_epoch)
            marker = "." if len(values) < 40 else ""
            axis.plot(epochs, values, dashes, color=COLOURS[colour], label=label, marker=marker)
    if measure == "acc":
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_ylabel("accuracy" if measure == "acc" else "cross-entropy, nats")
    _epochs(axis)
    _legend(figure)
    return Drawing(figure, _marks(axis, "{:.2%}" if measure == "acc" else "{:.4f}"))


@matplotlib.rc_context(STYLE)
def draw_learning_rate(metrics: Mapping[str, Points], steps_per_epoch: float) -> Drawing:
    """The learning rate of every optimizer over epochs."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axis = figure.subplots()
    names = [name for name in metrics if name.startswith("lr")]
    for i, name in enumerate(names):
        epochs, values = _over_epochs(metrics[name], steps_per_epoch)
        label = name.removeprefix("lr-")
        axis.plot(epochs, values, color=COLOURS[f"series-{i % SERIES}"], label=label)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("learning rate")
    _epochs(axis)
    _legend(figure)
    return Drawing(figure, _marks(axis, "{:.4g}"))


def _marks(axis: Axes, style: str) -> list[Mark]:
    """One mark per epoch with all lines' values, at the first line; at most MARKS."""
    texts: dict[float, str] = {}
    heights: dict[float, float] = {}
    for line in axis.lines:
        for epoch, value in np.asarray(line.get_xydata()).tolist():
            x = round(epoch, 2)
            texts[x] = f"{texts.get(x, f'epoch {x:g}')}\n{line.get_label()} {style.format(value)}"
            heights.setdefault(x, value)
    epochs = sorted(texts)
    every = -(-len(epochs) // MARKS) or 1
    shown = epochs[::-every][::-1]  # with the last one
    return [Mark(axis, x, heights[x], texts[x]) for x in shown]


@matplotlib.rc_context(STYLE)
def draw_reliability(bins: "Reliability", interval: "tuple[Tensor, Tensor]") -> Drawing:
    """Accuracy over confidence with its interval, and each bin's share below."""
    figure = Figure(figsize=(SIZE[0], 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    filled = bins.counts > 0
    x, y = bins.confidence[filled].tolist(), bins.accuracy[filled].tolist()
    low, high = (end[filled].tolist() for end in interval)
    above.plot([0, 1], [0, 1], "--", color=COLOURS["muted"], linewidth=1)
    above.vlines(x, low, high, color=COLOURS["raw"], alpha=0.6)
    above.plot(x, y, "o", color=COLOURS["raw"], markersize=4, clip_on=False)
    above.set_ylim(0, 1)
    above.set_ylabel("accuracy")
    above.yaxis.set_major_formatter(PercentFormatter(1))
    ece = f"ECE {bins.ece:.4f}"
    above.text(0.97, 0.05, ece, transform=above.transAxes, ha="right", fontsize=11)
    width = 1 / len(bins.counts)
    centres = [(i + 0.5) * width for i in range(len(bins.counts))]
    shares = (bins.counts / bins.counts.sum()).tolist()
    below.bar(centres, shares, 0.9 * width, color=COLOURS["raw"], alpha=0.5)
    below.set_ylabel("share")
    below.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    below.yaxis.set_major_locator(MaxNLocator(2, prune="lower"))
    below.set_xlim(0, 1)
    below.set_xlabel("confidence")
    below.xaxis.set_major_formatter(PercentFormatter(1))
    values: Iterable[tuple[float, float, int]] = zip(
        x, y, bins.counts[filled].tolist(), strict=True
    )
    marks = [
        Mark(above, a, b, f"confidence {a:.1%}\naccuracy {b:.1%}\n{count:,} predictions")
        for a, b, count in values
    ]
    return Drawing(figure, marks)


def _over_epochs(points: Points, steps_per_epoch: float) -> tuple[list[float], list[float]]:
    # Steps count from 0 and are logged after the optimizer step.
    return [(step + 1) / steps_per_epoch for step, _ in points], [value for _, value in points]


def _epochs(axis: Axes) -> None:
    axis.set_xlabel("epoch")
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(figure: Figure) -> None:
    """Draw the legend above the axes, so that it covers nothing."""
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=4, borderaxespad=0)
