"""Score finished runs with every strategy of prediction, and record the scores.

Validation images choose a strategy. docs/evaluation.md has more examples.

python experiments/evaluate.py runs/NAME
python experiments/evaluate.py runs/NAME --shift
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from experiments.console import ArgumentParser, UserError, command, listing, near
from experiments.inference.strategies import STRATEGIES
from experiments.presets import Precision

if TYPE_CHECKING:
    from experiments.inference.finished import FinishedRun
    from experiments.records.record import Evaluation

# Functions import torch and Lightning, which `--help` does not need.


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the flags; UserError for a mistake."""
    parser = ArgumentParser(
        "Score finished runs with every strategy of prediction, or under distribution shift.",
        epilog=listing("Strategies", STRATEGIES),
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=Path,
        nargs="+",
        help="folder of a finished run; several runs are also evaluated as an ensemble",
    )
    parser.add_argument(
        "--strategies",
        action="store_true",
        help="compare with SAMResNet's Figure 1; reads the record if there is one",
    )
    parser.add_argument(
        "--only",
        metavar="NAME,NAME",
        help="show some strategies of one run without recording them",
    )
    parser.add_argument(
        "--chosen",
        metavar="NAME",
        help="strategy for the test set of a run without validation images",
    )
    parser.add_argument("--root", help="folder of the data set (default: the run's)")
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="precision of the computation (default: as in training)",
    )
    shift = parser.add_argument_group("distribution shift")
    shift.add_argument(
        "--shift",
        action="store_true",
        help="instead score CIFAR-10-C's 19 corruptions of the test set, generated here",
    )
    shift.add_argument(
        "--cifar10c",
        metavar="FOLDER",
        type=Path,
        help="read the published CIFAR-10-C here instead of generating it",
    )
    shift.add_argument(
        "--cifar101",
        metavar="FOLDER",
        type=Path,
        help="also score CIFAR-10.1: cifar10.1_v6_data.npy and cifar10.1_v6_labels.npy",
    )
    shift.add_argument(
        "--severities",
        metavar="N,N",
        help="show some of the severities 1 to 5 without recording them (default: all)",
    )
    shift.add_argument(
        "--images",
        metavar="N",
        type=int,
        help="show scores of the first N test images without recording them",
    )
    flags = parser.parse_args(argv)
    check_shift(flags)
    flags.only = [] if flags.only is None else flags.only.split(",")
    known = list(STRATEGIES)
    for flag, names in {"only": flags.only, "chosen": [flags.chosen] * bool(flags.chosen)}.items():
        if names and (flags.strategies or len(flags.runs) > 1):
            raise UserError(f"--{flag} takes one RUN and no --strategies")
        for name in names:
            if name not in known:
                hint = near(name, known)
                raise UserError(
                    f"--{flag} {name} is unknown{hint}: name some of {', '.join(known)}"
                )
    if flags.chosen and flags.only:
        raise UserError("--chosen takes no --only")
    return flags


def check_shift(flags: argparse.Namespace) -> None:
    """Check the flags of distribution shift; UserError for a mistake."""
    if not flags.shift:
        for name in ("cifar10c", "cifar101", "severities", "images"):
            if getattr(flags, name) is not None:
                raise UserError(f"--{name} needs --shift")
        return
    for name in ("strategies", "only", "chosen"):
        if getattr(flags, name):
            raise UserError(f"--shift takes no --{name}")
    if flags.images is not None and flags.images < 1:
        raise UserError(f"--images must be 1 or more, got {flags.images}")
    from datamodules.corruptions import SEVERITIES

    known = {str(severity): severity for severity in SEVERITIES}
    wanted = flags.severities.split(",") if flags.severities is not None else known
    for severity in wanted:
        if severity not in known:
            raise UserError(f"--severities must be some of {','.join(known)}, got {severity!r}")
    flags.severities = [severity for name, severity in known.items() if name in wanted]


def shift(run: "FinishedRun", flags: argparse.Namespace) -> None:
    """Show a run's scores under distribution shift; record them if complete."""
    from datamodules.corruptions import SEVERITIES
    from experiments.inference.finished import SHIFT_FILES
    from experiments.inference.shift import evaluate_shift
    from experiments.records.record import write_record
    from experiments.reporting.tables import show_shift

    found = evaluate_shift(
        run,
        flags.severities,
        flags.images,
        flags.cifar10c,
        flags.cifar101,
        flags.root,
        flags.precision,
    )
    if flags.images is None and flags.severities == list(SEVERITIES):
        write_record(found, run.folder / SHIFT_FILES[found.corruptions])
    show_shift(found)


def send(run: "FinishedRun", evaluation: "Evaluation") -> None:
    """Add an evaluation to the training's W&B run, if there is one."""
    from experiments.tracking.wandb_media import strategies
    from experiments.training.loggers import wandb_logger

    config = run.record.config
    if not (run.folder / "wandb_id.txt").exists():
        return
    try:
        logger = wandb_logger(run.folder, config["wandb"], config)
    except UserError as error:
        print(f"warning: recorded, but not sent to W&B: {error}", file=sys.stderr)
    else:
        if logger is not None:
            logger.send(partial(strategies, evaluation), run.record.steps)
            logger.finish()


@command
def main() -> None:
    flags = read_arguments(sys.argv[1:])
    from experiments.inference.evaluating import (
        check_alike,
        earlier_choice,
        evaluate_run,
        evaluate_together,
    )
    from experiments.inference.finished import open_run
    from experiments.records.record import write_record
    from experiments.reporting.tables import show_evaluation, show_figure_1
    from experiments.training.allocator import keep_freed_memory

    keep_freed_memory()
    runs = [open_run(folder) for folder in flags.runs]
    if flags.shift:
        for run in runs:
            shift(run, flags)
        return
    check_alike(runs)
    recorded = {run.folder: run.evaluation() for run in runs} if flags.strategies else {}
    if any(recorded.values()) and (flags.root or flags.precision):
        given = "--root" if flags.root else "--precision"
        raise UserError(f"--strategies shows the recorded evaluation, which {given} cannot change")
    for run in runs:
        evaluation = recorded.get(run.folder)
        if evaluation is None:
            chosen = flags.chosen or (None if flags.only else earlier_choice(run))
            evaluation = evaluate_run(run, flags.only, flags.root, flags.precision, chosen)
            show_evaluation(evaluation)
            if not flags.only:
                write_record(evaluation, run.folder / "evaluation.json")
                send(run, evaluation)
        if flags.strategies:
            show_figure_1(evaluation)
    if len(runs) > 1:
        evaluation = evaluate_together(runs, flags.root, flags.precision)
        show_evaluation(evaluation)
        write_record(evaluation, runs[0].folder / "ensemble.json")


if __name__ == "__main__":
    main()
