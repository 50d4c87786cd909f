"""Make a run of the weights that SAMResNet's authors publish, and score it on the test set.

python experiments/import_weights.py best_model.pth --ema best_ema_model.pth
python experiments/import_weights.py best_model.pth --output runs/authors
"""

import argparse
import sys
from pathlib import Path

from experiments.console import ArgumentParser, command


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the flags; UserError for a mistake."""
    parser = ArgumentParser("Make a run of the weights that SAMResNet's authors publish.")
    parser.add_argument(
        "weights", metavar="FILE", type=Path, help="their state dict, such as best_model.pth"
    )
    parser.add_argument(
        "--ema", metavar="FILE", type=Path, help="their average, such as best_ema_model.pth"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/sam_resnet_authors"),
        help="folder to write (default: %(default)s)",
    )
    parser.add_argument("--root", help="folder of CIFAR-10 (default: $CIFAR10_ROOT, else data)")
    return parser.parse_args(argv)


@command
def main() -> None:
    flags = read_arguments(sys.argv[1:])
    # After the flags, because `--help` needs no torch.
    from experiments.exports.importing import import_weights

    files = {"raw": flags.weights} | ({"ema": flags.ema} if flags.ema else {})
    record = import_weights(files, flags.output, flags.root)
    for name, score in record.scores["test"].items():
        print(f"{name}: {score.accuracy:.2%} on {score.images:,} test images")
    print(f"Written: {flags.output}")


if __name__ == "__main__":
    main()
