"""Export a finished run's network: safetensors, torch.export, ONNX.

python experiments/export.py runs/NAME --verify
python experiments/export.py runs/NAME --weights ema --dtype float16 --output exported
python experiments/export.py runs/NAME --dtype bfloat16 --only-safetensors --output weights/NAME
python experiments/export.py runs/NAME --push user/name
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from experiments.console import ArgumentParser, UserError, command

PACKAGES = ("huggingface_hub", "safetensors", "onnx", "onnxruntime", "onnxscript")


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the flags; UserError for a mistake or a missing package."""
    parser = ArgumentParser(
        "Export a finished run's network for safetensors, torch.export and ONNX, with a model card."
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument("--output", type=Path, help="folder to write (default: RUN/export)")
    parser.add_argument(
        "--weights",
        choices=("raw", "ema", "swa"),
        help="weights to export (default: the best on validation)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="type of the weights and of the computation (default: %(default)s)",
    )
    parser.add_argument(
        "--only-safetensors", action="store_true", help="write no model.pt2 and no model.onnx"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="load each file back and compare its logits on test images with the run's",
    )
    parser.add_argument("--root", help="folder of the data set for --verify (default: the run's)")
    parser.add_argument(
        "--push", metavar="USER/NAME", help="upload to this repository on Hugging Face's Hub"
    )
    flags = parser.parse_args(argv)
    if flags.root and not flags.verify:
        raise UserError(f"--root {flags.root} needs --verify: only that reads images")
    flags.output = flags.output or flags.run / "export"
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"exporting needs {', '.join(missing)}: pip install -r requirements.txt")
    if flags.output.exists():
        raise UserError(f"{flags.output} exists: remove it, or choose another --output")
    return flags


@command
def main() -> None:
    flags = read_arguments(sys.argv[1:])
    # After the flags, because these packages are optional and slow to import.
    from experiments.exports.exporting import export

    export(
        flags.run,
        flags.output,
        flags.weights,
        flags.dtype,
        flags.only_safetensors,
        flags.verify,
        flags.root,
        flags.push,
    )


if __name__ == "__main__":
    main()
