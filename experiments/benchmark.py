"""Measure speed: the sides of each comparison take turns.

python experiments/benchmark.py data
python experiments/benchmark.py step --output step.json
python experiments/benchmark.py overhead
python experiments/benchmark.py time-to-accuracy --target 0.94
python experiments/benchmark.py rows --rows-at-once 2
python experiments/benchmark.py gpu --airbench cifar10-airbench/legacy/airbench94.py
python experiments/benchmark.py predict --run runs/NAME

The record `--output` is written after each row, so an interrupted command keeps the finished rows.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.benchmarks.flags import KINDS
from experiments.console import ArgumentParser, UserError, command, listing
from experiments.presets import EXPERIMENTS


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the flags; UserError for a mistake."""
    parser = ArgumentParser("Measure the speed of training, of its parts and of prediction.")
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, (summary, add_flags) in KINDS.items():
        presets = listing("Presets", EXPERIMENTS)
        subcommand = kinds.add_parser(name, help=summary, description=summary, epilog=presets)
        add_flags(subcommand)
        subcommand.add_argument(
            "--device", choices=("cpu", "cuda"), help="device (default: cuda if available)"
        )
        subcommand.add_argument(
            "--output", metavar="FILE.json", type=Path, help="record to write (default: none)"
        )
    flags = parser.parse_args(argv)
    if flags.output and flags.output.is_dir():
        raise UserError(f"--output {flags.output} is a folder: name a file in it")
    return flags


@command
def main() -> None:
    flags = read_arguments(sys.argv[1:])
    import torch

    from experiments.benchmarks.benchmark_record import make_benchmark
    from experiments.records.provenance import origin
    from experiments.records.record import write_record
    from experiments.reporting.tables import print_table
    from experiments.training.allocator import keep_freed_memory
    from experiments.training.quiet import quiet

    available = torch.cuda.is_available()
    if flags.device == "cuda" and not available:
        raise UserError("--device cuda: PyTorch finds no GPU on this machine; use --device cpu")
    flags.device = flags.device or ("cuda" if available else "cpu")
    quiet()
    keep_freed_memory()  # as in run.py and evaluate.py
    made_by = origin(torch.device(flags.device))
    if flags.output:  # an error at once, not after minutes
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(flags.output.parent, os.W_OK):
            raise UserError(f"--output {flags.output}: the folder is not writable")
    module = import_module(f"experiments.benchmarks.{flags.kind.replace('-', '_')}")
    rows: list[dict[str, Any]] = []
    try:
        for row in module.measure(flags):
            rows.append(row)
            if flags.output:
                write_record(make_benchmark(flags, made_by, rows), flags.output)
    finally:  # also if a later row fails, the disk is full, or Ctrl-C ends the command
        if rows:
            print_table(module.table(rows))
            print(f"On {made_by['device']}.")


if __name__ == "__main__":
    main()
