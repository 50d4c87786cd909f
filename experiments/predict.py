"""Classify images with a finished run or an exported network.

python experiments/predict.py runs/NAME cat.jpg holidays/
python experiments/predict.py runs/NAME cifar_test_nolabel.pkl --output submission.csv
python experiments/predict.py runs/NAME holidays/ --probabilities --strategy tta+ensemble --top 5
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.console import ArgumentParser, UserError, command, listing, near, printable
from experiments.inference.strategies import STRATEGIES

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.inference.unlabelled import UnlabelledImages

#: number of images that the terminal shows
SHOWN = 20


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the flags; UserError for a mistake."""
    parser = ArgumentParser(
        "Classify images with a finished run or an exported network.",
        epilog=listing("Strategies", STRATEGIES),
    )
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="folder of a finished run or of an export"
    )
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        type=Path,
        nargs="+",
        help="pictures, folders of pictures, CIFAR batches or pickled test sets",
    )
    parser.add_argument(
        "--strategy",
        metavar="NAME",
        help="weights and views (default: evaluate.py's choice, else the best weights)",
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
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="exit with code 0, not 1, if some pictures are unreadable",
    )
    flags = parser.parse_args(argv)
    if flags.strategy not in (None, *STRATEGIES):
        names = list(STRATEGIES)
        hint = near(flags.strategy, names)
        raise UserError(
            f"--strategy {flags.strategy} is unknown{hint}: name one of {', '.join(names)}"
        )
    if flags.top < 1:
        raise UserError(f"--top must be 1 or more, got {flags.top}")
    if not flags.output.parent.is_dir():
        raise UserError(f"--output {flags.output}: there is no folder {flags.output.parent}")
    if flags.output.is_dir():
        raise UserError(
            f"--output {flags.output} is a folder: name a file, such as "
            f"{flags.output / 'submission.csv'}"
        )
    if flags.output.resolve() in [x.resolve() for x in flags.inputs]:
        raise UserError(f"--output {flags.output} is an INPUT, which it would replace")
    return flags


def show(
    found: "UnlabelledImages", answers: "Tensor", classes: tuple[str, ...], top: int, title: str
) -> None:
    """Print the likeliest classes of the first images."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title))
    table.add_column("ID", overflow="fold")
    for rank in range(1, top + 1):
        table.add_column(f"{rank}.")
    best = answers[:SHOWN].topk(top)
    for name, values, indices in zip(found.ids, best.values, best.indices, strict=False):
        cells = [f"{classes[i]} {p:.1%}" for p, i in zip(values.tolist(), indices, strict=True)]
        table.add_row(*(escape(printable(cell)) for cell in (name, *cells)))
    console = Console()
    console.print(table)
    if len(found.ids) > SHOWN:
        console.print(f"... and {len(found.ids) - SHOWN:,} more")
    if found.resized:
        console.print(
            f"{found.resized:,} of {len(found.ids):,} images had another size: the square in their "
            f"middle was resampled to {found.images.shape[2]} x {found.images.shape[3]}"
        )


@command
def main() -> None:
    flags = read_arguments(sys.argv[1:])
    # After the flags, because `--help` needs no torch.
    from experiments.inference import unlabelled
    from experiments.inference.predicting import open_predictor, probabilities
    from experiments.records.record import write_atomically

    predictor = open_predictor(flags.run)
    name = flags.strategy or predictor.default
    classes, side = tuple(predictor.images.classes), predictor.images.image_size
    if flags.top > len(classes):
        raise UserError(f"--top must be in 1 to {len(classes)}, got {flags.top}")
    found = unlabelled.read_unlabelled(flags.inputs, side)
    answers = probabilities(predictor, STRATEGIES[name], found.images)
    show(found, answers, classes, flags.top, f"{predictor.name}, {name}")
    if flags.probabilities:
        text = unlabelled.probabilities_csv(found.ids, answers, classes)
    else:
        text = unlabelled.submission_csv(found.ids, answers.argmax(dim=1).tolist())
    write_atomically(flags.output, text)
    print(f"Written: {flags.output}")
    if found.unreadable:
        print(f"Unreadable pictures: {len(found.unreadable):,}", file=sys.stderr)
        for reason in found.unreadable:
            print(f"  {printable(reason)}", file=sys.stderr)
        sys.exit(0 if flags.skip_unreadable else 1)


if __name__ == "__main__":
    main()
