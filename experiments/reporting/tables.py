"""Tables for the terminal, made from records."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from datamodules.corruptions import BENCHMARK
from experiments.inference.shift import mean_score
from experiments.inference.strategies import FIGURE_1, PLAIN, STRATEGIES
from experiments.records.images import SOURCES
from experiments.records.record import (
    Evaluation,
    Record,
    Shift,
    ShiftMean,
    ShiftResult,
    ShiftScore,
    StrategyResult,
    StrategyScore,
)

MEASURES = ("NLL", "Brier", "ECE", "classwise")


def show_evaluation(evaluation: Evaluation) -> None:
    """Print every strategy on every split, without and with its fitted temperature."""
    validated = any("val" in x.scores for x in evaluation.strategies.values())
    how = "on validation" if validated else "beforehand"
    table = Table(
        title=f"{' + '.join(evaluation.runs)} on {SOURCES[evaluation.source]}",
        caption=f"* chosen {how}. Gain: over {evaluation.baseline}, in points, with its 95% "
        "interval (paired bootstrap). T: the strategy's temperature; below it the temperature "
        f"fitted on validation. s: seconds for 1,000 images on {evaluation.device}, "
        f"{evaluation.precision}.",
    )
    table.add_column("strategy", no_wrap=True)
    for column in ("accuracy", "gain", "T", *MEASURES, "s"):
        table.add_column(column, justify="right")
    splits = {split: None for x in evaluation.strategies.values() for split in x.scores}
    for split in splits:
        images = next(iter(evaluation.strategies.values())).scores[split].images
        table.add_section()
        table.add_row(f"[bold]{split}[/], {images:,} images")
        for name, result in evaluation.strategies.items():
            x = result.scores[split]
            table.add_row(
                f"{name} *" if name == evaluation.chosen else name,
                f"{x.accuracy:.2%}",
                "" if name == evaluation.baseline else gain(x, "\n"),
                *calibration_cells(result, x),
                f"{result.seconds:.3g}",
                style="bold" if name == evaluation.chosen else None,
            )
    print_table(table)


def gain(score: StrategyScore, between: str = " ") -> str:
    """A gain in percentage points, and its interval."""
    low, high = 100 * score.gain_low, 100 * score.gain_high
    return f"{100 * score.gain:+.2f}{between}[{low:+.2f}, {high:+.2f}]"


def print_table(table: Table) -> None:
    """Print in the width of the terminal, or in 120 columns without a terminal."""
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def calibration_cells(
    result: StrategyResult | ShiftResult, x: StrategyScore | ShiftScore | ShiftMean
) -> list[str]:
    """A strategy's temperature and measures, then with the fitted temperature."""
    own = result.strategy["temperature"]
    temperatures = [own] + ([own * result.temperature] if result.temperature else [])
    blocks = [x.as_it_is] + ([x.fitted] if x.fitted else [])
    cells = [[b.nll, b.brier, b.ece, b.classwise_ece] for b in blocks]
    return ["\n".join(f"{t:.2f}" for t in temperatures)] + [
        "\n".join(f"{v:.4f}" for v in column) for column in zip(*cells, strict=True)
    ]


def show_figure_1(evaluation: Evaluation) -> None:
    """Print the five bars of SAMResNet's Figure 1 and our values."""
    table = Table(
        title=f"SAMResNet, Figure 1: claimed, and measured with {evaluation.runs[0]}",
        caption="The claims are for Kaggle's hidden test set, ours for the standard test set: the "
        "accuracies are not comparable.",
    )
    table.add_column("strategy")
    for column in ("claim", "ours", "claimed gain", "our gain"):
        table.add_column(column, justify="right")
    for name in FIGURE_1:
        claim, plain = STRATEGIES[name].claim, STRATEGIES[PLAIN].claim
        assert claim
        assert plain
        ours = ["-", "-"]
        if name in evaluation.strategies:
            scores = evaluation.strategies[name].scores
            x = scores.get("test", scores.get("val"))
            assert x
            ours = [f"{x.accuracy:.2%}", "" if name == PLAIN else gain(x)]
        claimed = "" if name == PLAIN else f"{100 * (claim - plain):+.2f}"
        table.add_row(name, f"{claim:.2%}", ours[0], claimed, ours[1])
    print_table(table)


def show_shift(shift: Shift) -> None:
    """Print the accuracy under each corruption, then mean errors and calibration."""
    generated = shift.corruptions == "generated"
    origin = f"generated, seed {shift.seed}" if generated else "as published"
    table = Table(
        title=f"{shift.run} on {SOURCES[shift.source]} with CIFAR-10-C's corruptions ({origin})",
        caption=f"The first {shift.images:,} test images, severities "
        f"{', '.join(map(str, shift.severities))}. A corruption's row is the mean over severities; "
        "a severity's row is the mean over the benchmark's 15 corruptions. The last four are its "
        "extra corruptions. ECE: with the strategy's own temperature / with the temperature "
        "fitted on clean validation images."
        + (" Frost and spatter differ from the published images." if generated else ""),
    )
    table.add_column("", no_wrap=True)
    for measure in ("accuracy", "ECE"):
        for name in shift.strategies:
            table.add_column(f"{measure}\n{name}", justify="right")

    results = shift.strategies.values()
    table.add_row("clean", *shift_cells([[x.clean] for x in results]))
    table.add_section()
    for i, severity in enumerate(shift.severities):
        scores = [[x.corrupted[c][i] for c in BENCHMARK] for x in results]
        table.add_row(f"severity {severity}", *shift_cells(scores))
    table.add_section()
    for corruption in next(iter(results)).corrupted:
        scores = [x.corrupted[corruption] for x in results]
        table.add_row(
            corruption.replace("_", " "),
            *shift_cells(scores),
            end_section=corruption == BENCHMARK[-1],
        )
    print_table(table)
    show_shift_means(shift)


def shift_cells(scores: Sequence[Sequence[ShiftScore]]) -> list[str]:
    """Mean accuracies of all strategies, then their mean calibration errors."""
    means = [mean_score(x) for x in scores]
    errors = [[x.as_it_is.ece] + ([x.fitted.ece] if x.fitted else []) for x in means]
    return [f"{1 - x.mce:.2%}" for x in means] + [
        "/".join(f"{e:.3f}" for e in both) for both in errors
    ]


def show_shift_means(shift: Shift) -> None:
    """Print the clean error, the mean corruption errors and calibration."""
    table = Table(
        title=f"{shift.run}: errors and calibration, clean and shifted",
        caption="mCE: mean corruption error, not divided by another network's, and the same mean "
        "of each measure. T: the strategy's temperature; below it the temperature fitted on "
        f"clean validation images. On {shift.device}, {shift.precision}.",
    )
    table.add_column("strategy", no_wrap=True)
    for column in ("error", "T", *MEASURES):
        table.add_column(column, justify="right")
    for label, scores in shift_sets(shift).items():
        table.add_section()
        table.add_row(f"[bold]{label}[/]")
        for name, (error, x) in scores.items():
            table.add_row(name, f"{error:.2%}", *calibration_cells(shift.strategies[name], x))
    print_table(table)


def shift_sets(shift: Shift) -> dict[str, dict[str, tuple[float, ShiftScore | ShiftMean]]]:
    """Each strategy's error and calibration, on clean and on shifted images."""
    results = shift.strategies.items()
    sets: dict[str, dict[str, tuple[float, ShiftScore | ShiftMean]]] = {
        "clean": {name: (1 - x.clean.accuracy, x.clean) for name, x in results},
        "mCE, the benchmark's 15": {name: (x.mean_15.mce, x.mean_15) for name, x in results},
        "mCE, all 19": {name: (x.mean_19.mce, x.mean_19) for name, x in results},
    }
    new = {name: x.cifar10_1 for name, x in results if x.cifar10_1}
    if new:
        sets["CIFAR-10.1"] = {name: (1 - x.accuracy, x) for name, x in new.items()}
    return sets


def show_result(record: Record, folder: Path) -> None:
    """Print the record's scores and the run's folder."""
    source = SOURCES[record.source]
    if record.source == "synthetic":
        title = SOURCES[record.config["data"].get("dataset", "cifar10")]
        source = f"SYNTHETIC images, not {title}"
    epochs = f"{record.epochs} epoch{'' if record.epochs == 1 else 's'}"
    table = Table(
        title=f"{record.arch}: {record.parameters:,} parameters, {epochs} on {source}"
        f"{' (--quick)' if record.quick else ''}, {record.training_seconds:.0f} s"
    )
    for column in ("split", "weights", "accuracy", "NLL", "ECE", "images", "epoch"):
        table.add_column(column, justify="left" if column in ("split", "weights") else "right")
    for split, by_weights in record.scores.items():
        for name, x in by_weights.items():
            table.add_row(
                split,
                name + (" (selected)" if name == record.selected else ""),
                f"{x.accuracy:.2%}",
                f"{x.nll:.4f}",
                f"{x.ece:.4f}",
                f"{x.images:,}",
                str(x.epoch),
            )
    console = Console()
    console.print(table)
    if record.blocks_used is not None:
        console.print(f"An image uses {record.blocks_used:.1%} of the gated blocks on average")
    console.print(f"Everything of this run: {folder}")


def markdown_table(header: list[str], lines: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
