"""The flags of each kind of benchmark. Importing this module needs no torch."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.inference.strategies import RAW, STRATEGIES
from experiments.presets import EXPERIMENTS
from lightning_modules import ARCHITECTURES

#: `experiments.training.trainer.Precision`; a test compares them
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "64-true")
#: precisions that `step` knows
DTYPES = ("32-true", "bf16-mixed")
#: precisions that the bare loop of `overhead` knows
BARE_PRECISIONS = ("auto", *DTYPES)
MEMORY_FORMATS = ("contiguous", "channels_last")
#: torch's own modes of compilation, which `step` can measure
TORCH_MODES = ("torch-reduce-overhead", "torch-max-autotune")
#: strategies that need only the raw weights, which every run has
RAW_STRATEGIES = [name for name, s in STRATEGIES.items() if s.networks == RAW]


def positive(text: str) -> int:
    """Read a flag's integer of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def share(text: str) -> float:
    """Read a flag's accuracy, above 0 and at most 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return number


def add_repeats(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=positive,
        default=default,
        help="rounds; each round times every side once (default: %(default)s)",
    )


def add_preset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arch",
        choices=list(EXPERIMENTS),
        metavar="NAME",
        default="speed_resnet",
        help="a preset (default: %(default)s)",
    )


def add_strategy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strategy",
        choices=RAW_STRATEGIES,
        default="adaptive",
        help="of prediction (default: adaptive, six views of unsure images)",
    )


def add_airbench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--airbench",
        metavar="FILE",
        type=Path,
        help="legacy/airbench94.py of KellerJordan/cifar10-airbench: both sides in this process",
    )


def add_max_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-images",
        metavar="N",
        type=positive,
        help="limit of the batch size, for slow machines (default: no limit)",
    )


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_flags", metavar="FLAGS", nargs="*", help="after --: flags of run.py, for all trainings"
    )


def data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--presets",
        metavar="NAME,NAME",
        help="some presets (default: all, and a plain recipe): " + ", ".join(EXPERIMENTS),
    )
    parser.add_argument(
        "--images",
        metavar="N",
        type=positive,
        default=40_000,
        help="images that our side prepares in a repeat (default: %(default)s)",
    )
    parser.add_argument(
        "--stock-images",
        metavar="N",
        type=positive,
        default=10_000,
        help="images that torchvision prepares in a repeat (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=positive,
        default=os.cpu_count(),
        help="torchvision's worker processes (default: the CPUs, here %(default)s)",
    )
    parser.add_argument(
        "--share",
        metavar="NAME",
        help="a preset: time its training step in turns with its data path",
    )
    parser.add_argument(
        "--precision",
        choices=DTYPES,
        help="precision of that step (default: the preset's)",
    )
    add_repeats(parser, default=5)
    parser.add_argument("--root", help="folder of CIFAR-10 (default: $CIFAR10_ROOT, else data)")
    parser.add_argument(
        "--source",
        choices=("auto", "cifar10", "synthetic"),
        default="auto",
        help="images; times do not depend on them (default: CIFAR-10 if available)",
    )


def step(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arch",
        metavar="NAME,NAME",
        help=f"some presets (default: {','.join(ARCHITECTURES)}) of {', '.join(EXPERIMENTS)}",
    )
    parser.add_argument(
        "--compile",
        metavar="MODE,MODE",
        default="both",
        help="off, on, both, graph, reduce-overhead, max-autotune, or torch's own modes "
        f"{' and '.join(TORCH_MODES)} (default: both)",
    )
    parser.add_argument(
        "--precision", choices=(*DTYPES, "both"), default="both", help="of the step"
    )
    parser.add_argument(
        "--memory-format",
        choices=(*MEMORY_FORMATS, "both"),
        default="both",
        help="of images and weights",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=positive,
        help="images of a step (default: the preset's)",
    )
    add_max_images(parser)
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also count kernel launches and the host's time under torch.profiler",
    )
    add_repeats(parser, default=3)


def overhead(parser: argparse.ArgumentParser) -> None:
    add_preset(parser)
    parser.add_argument(
        "--batch-size", metavar="N", type=positive, default=1024, help="images of a step"
    )
    parser.add_argument(
        "--steps",
        metavar="N",
        type=positive,
        default=48,
        help="steps of the epoch; the loggers write at the last one (default: %(default)s)",
    )
    parser.add_argument(
        "--precision", choices=BARE_PRECISIONS, default="bf16-mixed", help="of both sides"
    )
    add_repeats(parser, default=3)
    add_run_flags(parser)


def time_to_accuracy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", type=share, default=0.94, help="mean test accuracy (default: 0.94)"
    )
    add_preset(parser)
    parser.add_argument(
        "--seeds", metavar="N", type=positive, default=3, help="number of seeds (default: 3)"
    )
    parser.add_argument(
        "--first-seed", metavar="N", type=int, default=0, help="first seed (default: 0)"
    )
    add_strategy(parser)
    parser.add_argument(
        "--beside",
        metavar="COMMAND",
        help='shell command to run in turns; its last line is {"accuracy": ..., "seconds": ...}',
    )
    add_airbench(parser)
    parser.add_argument(
        "--beside-runs", metavar="N", type=positive, help="runs of --beside (default: --seeds)"
    )
    parser.add_argument(
        "--runs",
        metavar="FOLDER",
        type=Path,
        default=Path("runs"),
        help="folder of run folders (default: runs)",
    )
    add_run_flags(parser)


def predict(parser: argparse.ArgumentParser) -> None:
    network = parser.add_mutually_exclusive_group()
    network.add_argument(
        "--run",
        metavar="RUN",
        type=Path,
        help="finished run: predict its validation images, else test images without labels",
    )
    network.add_argument(
        "--arch",
        choices=list(EXPERIMENTS),
        default="speed_resnet",
        help="a preset's network, untrained, on noise (default: %(default)s)",
    )
    parser.add_argument(
        "--images",
        metavar="N",
        type=positive,
        default=5_000,
        help="number of images (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="precision (default: the precision of training)",
    )
    add_repeats(parser, default=3)
    parser.add_argument("--root", help="folder of CIFAR-10 (default: that of the run)")


def gpu(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(output=Path("gpu.json"))
    parser.add_argument(
        "--rows", metavar="NAME,NAME", help="some rows, such as sam_resnet,overhead (default: all)"
    )
    add_airbench(parser)
    parser.add_argument(
        "--minutes",
        type=float,
        default=7.0,
        help="begin no row and no repeat later (default: %(default)s)",
    )
    parser.add_argument(
        "--warm-up",
        metavar="N",
        type=positive,
        default=60,
        help="steps before the first window (default: %(default)s)",
    )
    parser.add_argument(
        "--window",
        metavar="N",
        type=positive,
        default=100,
        help="steps of a window, or the steps of an epoch if fewer (default: %(default)s)",
    )
    add_strategy(parser)
    add_max_images(parser)
    add_repeats(parser, default=5)
    add_run_flags(parser)


@dataclass(frozen=True)
class Kind:
    """One subcommand of `benchmark.py`."""

    module: str  # of experiments.benchmarks, with `measure` and `table`
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]


KINDS = {
    "data": Kind(
        "data", "Images per second of each preset's data path, and of torchvision's.", data
    ),
    "step": Kind("step", "Time of a training step, for each architecture and setting.", step),
    "overhead": Kind("overhead", "Time of an epoch in the Trainer, over a bare loop.", overhead),
    "time-to-accuracy": Kind(
        "time_to_accuracy", "Seconds and operations until a test accuracy.", time_to_accuracy
    ),
    "predict": Kind("predict", "Images per second of each strategy of prediction.", predict),
    "gpu": Kind("gpu", "All targets of a GPU: steps, overhead, time to accuracy.", gpu),
}
