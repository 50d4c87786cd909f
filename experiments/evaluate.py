"""Predict with finished runs in every way there is, choose one on validation, and record it.

python experiments/evaluate.py runs/NAME
python experiments/evaluate.py runs/NAME --strategies
python experiments/evaluate.py runs/NAME --only flip,ema+tta --precision 32-true
python experiments/evaluate.py runs/NAME runs/OTHER
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.fabric import Fabric
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from datamodules.tensor_loader import EvalLoader
from experiments.evaluation import look, score_strategy, seconds_per_1000
from experiments.finished import FinishedRun, open_run
from experiments.launch import fail, near
from experiments.record import (
    Evaluation,
    StrategyResult,
    StrategyScore,
    describe_device,
    git_state,
    versions,
    write_record,
)
from experiments.strategies import (
    FIGURE_1,
    PLAIN,
    STRATEGIES,
    Strategy,
    joint_strategies,
    strategies_for,
)
from experiments.trainer import Precision, resolve_precision
from lightning_modules.prediction import fit_temperature


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """The flags; a mistake in them ends the process."""
    parser = argparse.ArgumentParser(
        description="Predict with finished runs in every way there is; choose on validation.",
        allow_abbrev=False,
    )
    parser.error = fail  # type: ignore[method-assign]
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=Path,
        nargs="+",
        help="folder of a finished run; of several, their networks are evaluated together as well",
    )
    parser.add_argument(
        "--strategies",
        action="store_true",
        help="SAMResNet's Figure 1 beside ours, from the record where the run has been evaluated",
    )
    parser.add_argument(
        "--only",
        metavar="NAME,NAME",
        help="some strategies of one run, which are shown and not recorded: "
        + ", ".join(STRATEGIES),
    )
    parser.add_argument("--root", help="folder of CIFAR-10 (default: that of the run)")
    parser.add_argument(
        "--precision", choices=get_args(Precision), help="number format (default: that of training)"
    )
    flags = parser.parse_args(argv)
    if flags.only is not None:
        if flags.strategies or len(flags.runs) > 1:
            fail("--only takes one RUN and no --strategies")
        flags.only = flags.only.split(",")
        for name in flags.only:
            if name not in STRATEGIES:
                known = list(STRATEGIES)
                fail(
                    f"--only {name} is unknown{near(name, known)}: name some of {', '.join(known)}"
                )
    return flags


def open_networks(
    wanted: Mapping[str, tuple[FinishedRun, str]], precision: Precision | None
) -> tuple[dict[str, nn.Module], torch.device, str]:
    """Each run with the weights that are wanted of it, as a network, by name; device and precision.

    The networks compute in the given precision, by default in that of their training.
    """
    fabrics: dict[Any, Fabric] = {}
    networks: dict[str, nn.Module] = {}
    for name, (run, weights) in wanted.items():
        number_format: Any = precision or run.record.precision
        if number_format not in fabrics:
            chosen = resolve_precision(number_format, "auto")
            fabrics[number_format] = Fabric(devices=1, precision=chosen)
        networks[name] = fabrics[number_format].setup_module(run.module(weights))
    # A CPU does not do in fp16 what a GPU does: what was taken may not be what was asked for.
    taken = {fabric.strategy.precision.precision for fabric in fabrics.values()}
    return networks, fabrics.popitem()[1].device, ", ".join(sorted(taken))


def open_images(run: FinishedRun, root: str | None) -> dict[str, EvalLoader]:
    """The run's validation images, where it has any, and the test images, as "val" and "test"."""
    data = run.data(root)
    data.prepare_data()
    data.setup("validate")
    data.setup("test")
    loaders = {"val": data.val_dataloader(), "test": data.test_dataloader()}
    return {split: loader for split, loader in loaders.items() if loader}


def evaluate(
    runs: Sequence[FinishedRun],
    wanted: Mapping[str, tuple[FinishedRun, str]],
    strategies: Mapping[str, Strategy],
    baseline: str,
    flags: argparse.Namespace,
) -> Evaluation:
    """Score strategies on validation and test; temperature and choice come from validation alone.

    Of equally accurate strategies the one with the lowest NLL at its fitted temperature is chosen.
    """
    commit, dirty = git_state()
    networks, device, precision = open_networks(wanted, flags.precision)
    loaders = open_images(runs[0], flags.root)
    views = dict.fromkeys(view for strategy in strategies.values() for view in strategy.views)
    labels = {split: loader.labels for split, loader in loaders.items()}
    predictions: dict[str, dict[str, Tensor]] = {}
    for split, loader in loaders.items():
        seen = look(networks, views, loader, device)
        predictions[split] = {name: s.predict(seen) for name, s in strategies.items()}

    results = {}
    mean, std = (x.to(device) for x in (loaders["test"].mean, loaders["test"].std))
    for name, strategy in strategies.items():
        temperature = None
        if "val" in loaders:
            temperature = fit_temperature(predictions["val"][name], labels["val"])
        scores = {
            split: score_strategy(by_name[name], by_name[baseline], labels[split], temperature)
            for split, by_name in predictions.items()
        }
        module = strategy.build(networks, mean, std)
        seconds = seconds_per_1000(module, loaders["test"], device)
        results[name] = StrategyResult(asdict(strategy), temperature, seconds, scores)
    return Evaluation(
        runs=[run.folder.resolve().name for run in runs],
        command=shlex.join(["python", *sys.argv]),
        source=runs[0].record.source,
        commit=commit,
        dirty=dirty,
        versions=versions(),
        device=describe_device(device),
        precision=precision,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        baseline=baseline,
        chosen=choose(results),
        strategies=results,
    )


def choose(results: Mapping[str, StrategyResult]) -> str | None:
    """The strategy with the best validation accuracy, then the lowest NLL; None without either."""
    on_validation = {name: x.scores["val"] for name, x in results.items() if "val" in x.scores}

    def merit(name: str) -> tuple[float, float]:
        fitted = on_validation[name].fitted
        assert fitted is not None
        return on_validation[name].accuracy, -fitted.nll

    return max(on_validation, key=merit, default=None)


def evaluate_run(run: FinishedRun, flags: argparse.Namespace) -> Evaluation:
    """Every strategy that a run's weights allow, or those that `--only` names beside plain."""
    weights = run.record.scores["test"]
    strategies = strategies_for(weights)
    if flags.only:
        for name in flags.only:
            if missing := [w for w in STRATEGIES[name].networks if w not in weights]:
                fail(f"--only {name}: {run.folder} has no {missing[0]} weights")
        strategies = {n: s for n, s in strategies.items() if n in (PLAIN, *flags.only)}
    wanted = {w: (run, w) for w in weights if any(w in s.networks for s in strategies.values())}
    return evaluate([run], wanted, strategies, PLAIN, flags)


def evaluate_together(runs: Sequence[FinishedRun], flags: argparse.Namespace) -> Evaluation:
    """The networks of several runs, each with its weights that are best on validation."""
    wanted, on_validation = {}, {}
    for run in runs:
        weights = run.record.selected or "raw"
        name = f"{run.folder.resolve().name}:{weights}"
        wanted[name] = run, weights
        scores = run.record.scores
        on_validation[name] = scores["val"][weights].accuracy if "val" in scores else 0.0
    baseline = max(on_validation, key=lambda name: on_validation[name])
    return evaluate(runs, wanted, joint_strategies(wanted), baseline, flags)


def check_alike(runs: Sequence[FinishedRun]) -> None:
    """End the process where runs cannot be evaluated together."""
    first = runs[0]
    names = [run.folder.resolve().name for run in runs]
    if len(set(names)) < len(names):
        fail(f"runs must have different names, got {', '.join(names)}")
    for run in runs[1:]:
        if run.record.source != first.record.source:
            fail(f"{first.folder} is of {first.record.source}, {run.folder} of {run.record.source}")
        for key in ("val_fraction", "split_seed"):
            ours, theirs = (x.record.config["data"][key] for x in (first, run))
            if ours != theirs:
                # One would have been trained on images that the other one holds out.
                fail(f"data.{key} is {ours} in {first.folder} and {theirs} in {run.folder}")


def show(evaluation: Evaluation) -> None:
    """Print every strategy on every split, without and with its fitted temperature."""
    source = "CIFAR-10" if evaluation.source == "cifar10" else "the SYNTHETIC stand-in"
    table = Table(
        title=f"{' + '.join(evaluation.runs)} on {source}",
        caption=f"* chosen on validation. Gain: over {evaluation.baseline}, in points, with its "
        "95% interval (paired bootstrap). T: the strategy's temperature; below it what it becomes "
        f"when fitted on validation. s: seconds for 1,000 images on {evaluation.device}, "
        f"{evaluation.precision}.",
    )
    table.add_column("strategy", no_wrap=True)
    for column in ("accuracy", "gain", "T", "NLL", "Brier", "ECE", "classwise", "s"):
        table.add_column(column, justify="right")
    splits = {split: None for x in evaluation.strategies.values() for split in x.scores}
    for split in splits:
        images = next(iter(evaluation.strategies.values())).scores[split].images
        table.add_section()
        table.add_row(f"[bold]{split}[/], {images:,} images")
        for name, result in evaluation.strategies.items():
            x = result.scores[split]
            own = result.strategy["temperature"]
            temperatures = [own] + ([own * result.temperature] if result.temperature else [])
            blocks = [x.as_it_is] + ([x.fitted] if x.fitted else [])
            cells = [[b.nll, b.brier, b.ece, b.classwise_ece] for b in blocks]
            table.add_row(
                f"{name} *" if name == evaluation.chosen else name,
                f"{x.accuracy:.2%}",
                "" if name == evaluation.baseline else gain(x, "\n"),
                "\n".join(f"{t:.2f}" for t in temperatures),
                *("\n".join(f"{v:.4f}" for v in column) for column in zip(*cells, strict=True)),
                f"{result.seconds:.3g}",
                style="bold" if name == evaluation.chosen else None,
            )
    print_table(table)


def gain(score: StrategyScore, between: str = " ") -> str:
    """A gain in percentage points, and its interval."""
    low, high = 100 * score.gain_low, 100 * score.gain_high
    return f"{100 * score.gain:+.2f}{between}[{low:+.2f}, {high:+.2f}]"


def print_table(table: Table) -> None:
    """Print as wide as the terminal, and where there is none as wide as the table needs."""
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def show_figure_1(evaluation: Evaluation) -> None:
    """Print SAMResNet's Figure 1, its five bars beside ours."""
    table = Table(
        title=f"SAMResNet, Figure 1: claimed, and measured with {evaluation.runs[0]}",
        caption="Claims are of Kaggle's hidden test set, ours of the standard test set: the "
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
            x = evaluation.strategies[name].scores["test"]
            ours = [f"{x.accuracy:.2%}", "" if name == PLAIN else gain(x)]
        claimed = "" if name == PLAIN else f"{100 * (claim - plain):+.2f}"
        table.add_row(name, f"{claim:.2%}", ours[0], claimed, ours[1])
    print_table(table)


def main() -> None:
    flags = read_arguments(sys.argv[1:])
    try:
        runs = [open_run(folder) for folder in flags.runs]
        check_alike(runs)
        for run in runs:
            evaluation = run.evaluation() if flags.strategies else None
            if evaluation is None:
                evaluation = evaluate_run(run, flags)
                show(evaluation)
                if not flags.only:
                    write_record(evaluation, run.folder / "evaluation.json")
            if flags.strategies:
                show_figure_1(evaluation)
        if len(runs) > 1:
            evaluation = evaluate_together(runs, flags)
            show(evaluation)
            write_record(evaluation, runs[0].folder / "ensemble.json")
    except (MisconfigurationException, OSError) as error:
        fail(str(error))


if __name__ == "__main__":
    main()
