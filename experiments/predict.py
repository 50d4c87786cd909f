"""Classify images with a finished run.

python experiments/predict.py runs/NAME cat.jpg holidays/
python experiments/predict.py runs/NAME cifar_test_nolabel.pkl --output submission.csv
python experiments/predict.py runs/NAME holidays/ --probabilities --strategy tta+ensemble --top 5
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from datamodules.augmentation import normalise
from datamodules.cifar10 import CIFAR10_CLASSES, MEAN, STD
from datamodules.submission import (
    UnlabelledImages,
    probabilities_csv,
    read_unlabelled,
    submission_csv,
)
from datamodules.synthetic import SYNTHETIC_CLASSES
from experiments.console import ArgumentParser, UserError, command, near, track
from experiments.inference.finished import FinishedRun, open_run
from experiments.inference.strategies import PLAIN, STRATEGIES, Strategy
from experiments.records.record import write_atomically

#: images that the terminal shows
SHOWN = 20
#: images that a network sees at once
BATCH = 250


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """The flags; a mistake in them ends the process."""
    parser = ArgumentParser("Classify images with a finished run.")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        type=Path,
        nargs="+",
        help="pictures of any size, folders of pictures, CIFAR batches or pickled test sets",
    )
    parser.add_argument(
        "--strategy",
        help="which weights see which views; by default what evaluate.py chose on validation, else "
        "one view, seen by the weights that were best there. One of: " + ", ".join(STRATEGIES),
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("submission.csv"),
        help="the CSV to write (default: %(default)s)",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="write class names and probabilities instead of the columns ID,Labels",
    )
    parser.add_argument(
        "--top", type=int, default=3, help="classes shown for each image (default: %(default)s)"
    )
    flags = parser.parse_args(argv)
    if flags.strategy not in (None, *STRATEGIES):
        names = list(STRATEGIES)
        hint = near(flags.strategy, names)
        raise UserError(
            f"--strategy {flags.strategy} is unknown{hint}: name one of {', '.join(names)}"
        )
    if not 1 <= flags.top <= 10:
        raise UserError(f"--top must be in 1 to 10, got {flags.top}")
    if not flags.output.parent.is_dir():
        raise UserError(f"--output {flags.output}: there is no folder {flags.output.parent}")
    return flags


def default_strategy(run: FinishedRun) -> str:
    """What is known to be best on validation."""
    evaluation = run.evaluation()
    if evaluation and evaluation.chosen:
        return evaluation.chosen
    return PLAIN if run.record.selected in ("raw", None) else run.record.selected


def probabilities(run: FinishedRun, strategy: Strategy, images: Tensor) -> Tensor:
    """Probabilities float32 (N, 10), on the CPU, of images uint8 (N, 3, 32, 32)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    networks = {name: run.module(name) for name in strategy.networks}
    network = strategy.build(networks, mean, std)
    batches = images.split(BATCH)
    with torch.inference_mode():
        answers = [
            network(normalise(batch.to(device), mean, std)).cpu()
            for batch in track(batches, "batches of images", len(batches))
        ]
    return torch.cat(answers).exp()


def show(
    found: UnlabelledImages, answers: Tensor, classes: tuple[str, ...], top: int, title: str
) -> None:
    """Print the likeliest classes of the first images."""
    table = Table(title=escape(title))
    table.add_column("ID", overflow="fold")
    for rank in range(1, top + 1):
        table.add_column(f"{rank}.")
    best = answers[:SHOWN].topk(top)
    for name, values, indices in zip(found.ids, best.values, best.indices, strict=False):
        cells = [f"{classes[i]} {p:.1%}" for p, i in zip(values.tolist(), indices, strict=True)]
        table.add_row(escape(name), *cells)
    console = Console()
    console.print(table)
    if len(found.ids) > SHOWN:
        console.print(f"... and {len(found.ids) - SHOWN:,} more")
    if found.resized:
        console.print(
            f"{found.resized:,} of {len(found.ids):,} images had another size: the square in their "
            "middle was resampled to 32 x 32"
        )


@command
def main() -> None:
    flags = read_arguments(sys.argv[1:])
    run = open_run(flags.run)
    name = flags.strategy or default_strategy(run)
    found = read_unlabelled(flags.inputs)
    answers = probabilities(run, STRATEGIES[name], found.images)
    classes = SYNTHETIC_CLASSES if run.record.source == "synthetic" else CIFAR10_CLASSES
    show(found, answers, classes, flags.top, f"{run.record.name}, {name}")
    if flags.probabilities:
        text = probabilities_csv(found.ids, answers, classes)
    else:
        text = submission_csv(found.ids, answers.argmax(dim=1).tolist())
    write_atomically(flags.output, text)
    print(f"Written: {flags.output}")


if __name__ == "__main__":
    main()
