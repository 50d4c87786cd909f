"""Measure speed, the sides of each comparison in turns, and record it.

python experiments/benchmark.py data
python experiments/benchmark.py step --output step.json
python experiments/benchmark.py overhead
python experiments/benchmark.py time-to-accuracy --target 0.94
python experiments/benchmark.py gpu --airbench cifar10-airbench/legacy/airbench94.py
python experiments/benchmark.py predict --run runs/NAME
python experiments/benchmark.py data --help
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from experiments.benchmarks import data, gpu, overhead, predict, step, time_to_accuracy
from experiments.benchmarks.benchmark_record import make_benchmark, write_benchmark
from experiments.console import ArgumentParser, UserError, command
from experiments.records.provenance import describe_device, git_state
from experiments.reporting.tables import print_table
from experiments.training.allocator import keep_freed_memory
from experiments.training.quiet import quiet

KINDS: dict[str, ModuleType] = {
    "data": data,
    "step": step,
    "overhead": overhead,
    "time-to-accuracy": time_to_accuracy,
    "predict": predict,
    "gpu": gpu,
}


class Subcommand(ArgumentParser):
    """The parser of one kind of benchmark, made as argparse makes those of subcommands."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(description)
        self.prog = prog


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The flags; a mistake in them ends the process."""
    parser = ArgumentParser("Measure speed, and what it is made of.")
    kinds = parser.add_subparsers(
        dest="kind", metavar="KIND", required=True, parser_class=Subcommand
    )
    for name, module in KINDS.items():
        kind = kinds.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        module.add_arguments(kind)
        kind.add_argument(
            "--device",
            choices=("cpu", "cuda"),
            default="cuda" if torch.cuda.is_available() else "cpu",
            help="what computes (default here: %(default)s)",
        )
        kind.add_argument("--output", metavar="FILE.json", type=Path, help="the record to write")
    flags = parser.parse_args(argv)
    if flags.output and flags.output.is_dir():
        raise UserError(f"--output {flags.output} is a folder: name a file in it")
    if flags.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is none that this PyTorch can use")
    return flags


@command
def main() -> None:
    flags = read_arguments(sys.argv[1:])
    quiet()
    keep_freed_memory()  # as run.py and evaluate.py do
    code = git_state()
    module = KINDS[flags.kind]
    if flags.output:  # found out now rather than after minutes
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(flags.output.parent, os.W_OK):
            raise UserError(f"--output {flags.output}: nothing can be written there")
    rows = module.measure(flags)
    # Printed first, so that a disk that is full by now does not take the figures along.
    print_table(module.table(rows))
    print(f"On {describe_device(torch.device(flags.device))}.")
    if flags.output:
        write_benchmark(make_benchmark(flags, code, rows), flags.output)


if __name__ == "__main__":
    main()
