"""Predict with finished runs in every way there is, choose one on validation, and record it.

python experiments/evaluate.py runs/NAME
python experiments/evaluate.py runs/NAME --strategies
python experiments/evaluate.py runs/NAME --only flip,ema+tta --precision 32-true
python experiments/evaluate.py runs/NAME --chosen six-view
python experiments/evaluate.py runs/NAME runs/OTHER
python experiments/evaluate.py runs/NAME --shift
python experiments/evaluate.py runs/NAME --shift --cifar10c CIFAR-10-C --cifar101 cifar-10.1
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

from datamodules.corruptions import SEVERITIES
from experiments.console import ArgumentParser, UserError, command, near
from experiments.inference.evaluating import check_alike, evaluate_run, evaluate_together
from experiments.inference.finished import SHIFT_FILES, FinishedRun, open_run
from experiments.inference.shift import evaluate_shift
from experiments.inference.strategies import STRATEGIES
from experiments.records.record import Evaluation, write_record
from experiments.reporting.tables import show_evaluation, show_figure_1, show_shift
from experiments.tracking.wandb_media import log_evaluation
from experiments.training.allocator import keep_freed_memory
from experiments.training.loggers import resumed_wandb_logger
from experiments.training.trainer import Precision


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """The flags; a mistake in them ends the process."""
    parser = ArgumentParser(
        "Predict with finished runs in every way there is; choose on validation. Or see what "
        "distribution shift does to them."
    )
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
    parser.add_argument(
        "--chosen",
        metavar="NAME",
        help="the strategy that was chosen beforehand for a run without validation images: it "
        "alone answers the test set, beside plain, and is recorded as the chosen one",
    )
    parser.add_argument("--root", help="folder of CIFAR-10 (default: that of the run)")
    parser.add_argument(
        "--precision", choices=get_args(Precision), help="number format (default: that of training)"
    )
    shift = parser.add_argument_group("distribution shift")
    shift.add_argument(
        "--shift",
        action="store_true",
        help="CIFAR-10-C's 19 corruptions of the test set, generated here, instead",
    )
    shift.add_argument(
        "--cifar10c",
        metavar="FOLDER",
        type=Path,
        help="the published CIFAR-10-C, read instead of generated: labels.npy, fog.npy and so on",
    )
    shift.add_argument(
        "--cifar101",
        metavar="FOLDER",
        type=Path,
        help="CIFAR-10.1 as well: cifar10.1_v6_data.npy and cifar10.1_v6_labels.npy",
    )
    shift.add_argument(
        "--severities",
        metavar="N,N",
        help="some of the severities 1 to 5, which are shown and not recorded (default: all)",
    )
    shift.add_argument(
        "--images",
        metavar="N",
        type=int,
        help="the first N test images, which are shown and not recorded (default: all)",
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
    """Read the flags of distribution shift; a mistake in them ends the process."""
    if not flags.shift:
        for name in ("cifar10c", "cifar101", "severities", "images"):
            if getattr(flags, name) is not None:
                raise UserError(f"--{name} is of --shift, which is not there")
        return
    for name in ("strategies", "only", "chosen"):
        if getattr(flags, name):
            raise UserError(f"--shift takes no --{name}")
    if flags.images is not None and flags.images < 1:
        raise UserError(f"--images must be 1 or more, got {flags.images}")
    known = {str(severity): severity for severity in SEVERITIES}
    wanted = flags.severities.split(",") if flags.severities is not None else known
    for severity in wanted:
        if severity not in known:
            raise UserError(f"--severities must be some of {','.join(known)}, got {severity!r}")
    flags.severities = [severity for name, severity in known.items() if name in wanted]


def shift(run: FinishedRun, flags: argparse.Namespace) -> None:
    """Evaluate a run under distribution shift, show it, and record it where it is whole."""
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


def send(run: FinishedRun, evaluation: Evaluation) -> None:
    """Add what was found to the W&B run that the training began, where there is one."""
    try:
        logger = resumed_wandb_logger(run.folder, run.record.config)
    except UserError as error:
        print(f"warning: recorded, but not sent to W&B: {error}", file=sys.stderr)
    else:
        if logger is not None:
            log_evaluation(logger, run.record, evaluation)


@command
def main() -> None:
    flags = read_arguments(sys.argv[1:])
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
        raise UserError(f"--strategies shows what is recorded, of which {given} changes nothing")
    for run in runs:
        evaluation = recorded.get(run.folder)
        if evaluation is None:
            evaluation = evaluate_run(run, flags.only, flags.root, flags.precision, flags.chosen)
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
