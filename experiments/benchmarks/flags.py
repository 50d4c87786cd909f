"""The flags of each kind of benchmark. Importing this module needs no torch."""

import argparse
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import get_args

from experiments.console import UserError, listing, near
from experiments.inference.strategies import RAW, STRATEGIES
from experiments.presets import EXPERIMENTS, Precision

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


def chosen(flag: str, text: str, known: Collection[str]) -> list[str]:
    """The names in a flag's comma-separated text; UserError for an unknown name."""
    names = text.split(",")
    for name in names:
        if name not in known:
            raise UserError(f"{flag} {name} is unknown{near(name, list(known))}")
    return names


def share(text: str) -> float:
    """Read a flag's accuracy, above 0 and at most 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return number


def add_number(
    parser: argparse.ArgumentParser, flag: str, default: int | None, meaning: str
) -> None:
    """Add a flag for an integer of 1 or more, with its default in the help."""
    shown = " (default: %(default)s)" if default else ""
    parser.add_argument(flag, metavar="N", type=positive, default=default, help=meaning + shown)


def add_repeats(parser: argparse.ArgumentParser, default: int) -> None:
    add_number(parser, "--repeats", default, "rounds; each round times every side once")


def add_preset(parser: argparse._ActionsContainer, meaning: str = "preset") -> None:
    parser.add_argument(
        "--arch",
        choices=list(EXPERIMENTS),
        metavar="NAME",
        default="speed_resnet",
        help=f"{meaning} (default: %(default)s)",
    )


def add_strategy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strategy",
        choices=RAW_STRATEGIES,
        default="adaptive",
        help="strategy of prediction (default: adaptive, six views of unsure images)",
    )


def add_airbench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--airbench",
        metavar="FILE",
        type=Path,
        help="legacy/airbench94.py of KellerJordan/cifar10-airbench, run in this process",
    )


def add_max_images(parser: argparse.ArgumentParser) -> None:
    limit = "limit of the batch size, for slow machines (default: no limit)"
    add_number(parser, "--max-images", None, limit)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_flags", metavar="FLAGS", nargs="*", help="after --: flags of run.py, for all trainings"
    )


def data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--presets",
        metavar="NAME,NAME",
        help="some presets (default: all, and a plain recipe)",
    )
    add_number(parser, "--images", 40_000, "images that our side prepares in a repeat")
    add_number(parser, "--stock-images", 10_000, "images that torchvision prepares in a repeat")
    add_number(parser, "--workers", os.cpu_count(), "torchvision's worker processes, one per CPU")
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
    modes = ("off", "on", "both", "graph", "reduce-overhead", "max-autotune", *TORCH_MODES)
    parser.epilog = f"{parser.epilog}\n{listing('Modes', modes)}"
    parser.add_argument(
        "--arch", metavar="NAME,NAME", help="some presets (default: one of each architecture)"
    )
    parser.add_argument(
        "--compile",
        metavar="MODE,MODE",
        default="both",
        help="modes of compilation (default: both, which is off and on)",
    )
    parser.add_argument(
        "--precision", choices=(*DTYPES, "both"), default="both", help="precision of the step"
    )
    parser.add_argument(
        "--memory-format",
        choices=(*MEMORY_FORMATS, "both"),
        default="both",
        help="memory format of images and weights",
    )
    add_number(parser, "--batch-size", None, "images of a step (default: the preset's)")
    add_max_images(parser)
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also count kernel launches and the host's time under torch.profiler",
    )
    add_repeats(parser, default=3)


def overhead(parser: argparse.ArgumentParser) -> None:
    add_preset(parser)
    add_number(parser, "--batch-size", 1024, "images of a step")
    add_number(parser, "--steps", 48, "steps of the epoch; the loggers write at the last one")
    parser.add_argument(
        "--precision",
        choices=BARE_PRECISIONS,
        default="bf16-mixed",
        help="precision of both sides",
    )
    add_repeats(parser, default=3)
    add_run_flags(parser)


def time_to_accuracy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", type=share, default=0.94, help="mean test accuracy (default: 0.94)"
    )
    add_preset(parser)
    add_number(parser, "--seeds", 3, "number of seeds")
    parser.add_argument(
        "--first-seed", metavar="N", type=int, default=0, help="first seed (default: 0)"
    )
    add_strategy(parser)
    parser.add_argument(
        "--beside",
        metavar="COMMAND",
        help='command to run in turns; it ends with {"accuracy": ..., "seconds": ...}',
    )
    add_airbench(parser)
    add_number(parser, "--beside-runs", None, "runs of --beside (default: --seeds)")
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
        help="finished run: predict its validation images, else its test images",
    )
    add_preset(network, "preset whose untrained network predicts noise")
    add_number(parser, "--images", 5_000, "number of images")
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="precision of the computation (default: as in training)",
    )
    add_repeats(parser, default=3)
    parser.add_argument("--root", help="folder of CIFAR-10 (default: the run's)")


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
    add_number(parser, "--warm-up", 60, "steps before the first window")
    add_number(parser, "--window", 100, "steps of a window, or the steps of an epoch if fewer")
    add_strategy(parser)
    add_max_images(parser)
    add_repeats(parser, default=5)
    add_run_flags(parser)


def several(text: str) -> int:
    """Read a flag's integer of 2 or more."""
    if (number := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"must be 2 or more, got {number}")
    return number


def rows(parser: argparse.ArgumentParser) -> None:
    add_preset(parser)
    parser.add_argument(
        "--rows-at-once",
        metavar="N",
        type=several,
        default=2,
        help="number of trainings at once (default: %(default)s)",
    )
    add_number(parser, "--warm-up", 5, "batches before the window")
    add_number(parser, "--window", 20, "batches that are timed")
    add_repeats(parser, default=3)
    add_run_flags(parser)


#: subcommand of `benchmark.py` -> its summary, and the function that adds its flags. The module of
#: the same name, with underscores, has its `measure` and `table`.
KINDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "data": ("Images per second of each preset's data path, and of torchvision's.", data),
    "step": ("Time of a training step, for each architecture and setting.", step),
    "overhead": ("Time of an epoch in the Trainer, over a bare loop.", overhead),
    "time-to-accuracy": ("Seconds and operations until a test accuracy.", time_to_accuracy),
    "predict": ("Images per second of each strategy of prediction.", predict),
    "rows": ("Images per second of several trainings at once, over one.", rows),
    "gpu": ("Targets of a GPU: steps, overhead, time to accuracy.", gpu),
}
