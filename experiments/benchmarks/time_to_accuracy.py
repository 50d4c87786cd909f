"""`time-to-accuracy`: a preset trained with several seeds, and what its accuracy has cost.

Each run is a process of `run.py` as anybody would start it. Its network then answers the test
images once more by a strategy of `experiments.inference.strategies`, with weights, images and
precision as `evaluate.py` takes them. `training_seconds` is the record's, from the first step to
the end of the last epoch; `answering_seconds` is the wall clock of the strategy for the whole test
set, on the device that `evaluate.py` takes, normalising included; `seconds` is both. Operations are
of training: see `CountOperations`.

With `--beside` another program is run in alternation. It prints as its last line a JSON object with
its accuracy in [0, 1], its seconds, and its operations if it knows them.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import zip_longest
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.table import Table

from experiments.benchmarks.benchmark_record import make_benchmark, write_benchmark
from experiments.benchmarks.operations import FILE, CountOperations
from experiments.benchmarks.timing import positive
from experiments.inference.strategies import RAW, STRATEGIES, Strategy
from experiments.records.finished import FinishedRun, open_images, open_networks, open_run
from experiments.records.provenance import ROOT, git_state
from experiments.training.devices import synchronise
from experiments.training.launch import fail
from experiments.training.presets import EXPERIMENTS

SUMMARY = "What a preset's test accuracy costs in seconds and operations, over several seeds."
RUN = ROOT / "experiments" / "run.py"
COUNTER = f"{CountOperations.__module__}.{CountOperations.__name__}"
#: strategies of the weights that every run has
RAW_STRATEGIES = [name for name, s in STRATEGIES.items() if s.networks == RAW]


def share(text: str) -> float:
    """A flag's accuracy: above 0 and at most 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", type=share, default=0.94, help="mean test accuracy (default: 0.94)"
    )
    parser.add_argument(
        "--arch",
        choices=list(EXPERIMENTS),
        metavar="NAME",
        default="speed_resnet",
        help="a preset (default: %(default)s)",
    )
    parser.add_argument("--seeds", metavar="N", type=positive, default=3, help="(default: 3)")
    parser.add_argument("--first-seed", metavar="N", type=int, default=0, help="(default: 0)")
    parser.add_argument(
        "--strategy",
        choices=RAW_STRATEGIES,
        default="adaptive",
        help="of prediction (default: adaptive, six views of images that one view is unsure of)",
    )
    parser.add_argument(
        "--beside",
        metavar="COMMAND",
        help="run this shell command in alternation; its last line of output is a JSON object "
        '{"accuracy": ..., "seconds": ...}, with "operations" if known',
    )
    parser.add_argument(
        "--beside-runs", metavar="N", type=positive, help="of that command (default: --seeds)"
    )
    parser.add_argument(
        "--runs", metavar="FOLDER", type=Path, default=Path("runs"), help="for run folders"
    )
    parser.add_argument(
        "run_flags", metavar="FLAGS", nargs="*", help="behind --: flags of run.py, for every seed"
    )


def measure(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each run; --output has, after each of them, all that there are so far."""
    code = git_state()
    rows: list[dict[str, Any]] = []
    for row in run_all(flags):
        rows.append(row)
        if flags.output:
            write_benchmark(make_benchmark(flags, code, rows), flags.output)
        print(f"{row['side']}, run {row['run']}: {in_words(row)}", flush=True)
    return rows


def run_all(flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Our runs and the other program's, in turns."""
    seeds = range(flags.first_seed, flags.first_seed + flags.seeds)
    others = range((flags.beside_runs or flags.seeds) if flags.beside else 0)
    began = f"{datetime.now():%Y%m%d-%H%M%S}"
    for seed, other in zip_longest(seeds, others):
        if seed is not None:
            name = f"{flags.arch}-{began}-seed{seed}"
            row = train(name, seed, flags)
            yield {"side": "ours", "run": seed, "target": flags.target, **row}
        if other is not None:
            row = run_beside(flags.beside)
            yield {"side": "beside", "run": other, "target": flags.target, **row}


def train(name: str, seed: int, flags: argparse.Namespace) -> dict[str, Any]:
    """Train with a seed in a process of its own, and answer the test images.

    A training that fails ends this process as well.
    """
    arguments = [
        f"--arch={flags.arch}",
        f"--trainer.accelerator={flags.device}",
        *flags.run_flags,
        f"--seed={seed}",
        f"--name={name}",
        f"--output={flags.runs}",
        f"--trainer.callbacks+={COUNTER}",
        "--test=true",  # what is measured, also where the flags leave it out
    ]
    if code := start(arguments):
        fail(f"{name} ended with exit code {code}: see above")
    run = open_run(flags.runs / name)
    record = run.record
    accuracy, seconds = answer(run, STRATEGIES[flags.strategy])
    return {
        "accuracy": accuracy,
        "plain_accuracy": record.scores["test"]["raw"].accuracy,
        "seconds": record.training_seconds + seconds,
        "training_seconds": record.training_seconds,
        "answering_seconds": seconds,
        "operations": json.loads((run.folder / FILE).read_text())["operations"],
        "steps": record.steps,
        "folder": str(run.folder),
        "source": record.source,
    }


def start(arguments: Sequence[str]) -> int:
    """The exit code of `run.py` with these arguments."""
    return subprocess.run([sys.executable, str(RUN), *arguments], check=False).returncode


@torch.inference_mode()
def answer(run: FinishedRun, strategy: Strategy) -> tuple[float, float]:
    """Accuracy of a strategy on the run's test images, and the seconds that answering them took."""
    wanted = {name: (run, name) for name in strategy.networks}
    networks, device, _ = open_networks(wanted, None)
    loader = open_images(run, None)["test"]
    loader.images, loader.labels = loader.images.to(device), loader.labels.to(device)
    loader.mean, loader.std = loader.mean.to(device), loader.std.to(device)
    module = strategy.build(networks, loader.mean, loader.std)
    synchronise(device)
    start = time.perf_counter()
    classes = torch.cat([module(images).argmax(dim=1) for images, _ in loader])
    synchronise(device)
    seconds = time.perf_counter() - start
    return (classes == loader.labels).double().mean().item(), seconds


def run_beside(command: str) -> dict[str, Any]:
    """Run another program; one that fails, or reports nothing, ends this process."""
    ended = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode != 0:
        fail(f"--beside {command}: ended with exit code {ended.returncode}")
    try:
        return read_report(ended.stdout)
    except ValueError as error:
        fail(f"--beside {command}: {error}")


def read_report(output: str) -> dict[str, Any]:
    """What the other program says of itself in its last line; ValueError where it does not."""
    line = output.strip().rpartition("\n")[2]
    expected = 'must be a JSON object {"accuracy": ..., "seconds": ...}'
    try:
        report = json.loads(line)
        accuracy, seconds = float(report["accuracy"]), float(report["seconds"])
        operations = report.get("operations")
        operations = None if operations is None else int(operations)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"its last line {expected}, got {line!r:.80}") from None
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy must be in [0, 1], got {accuracy}")
    if not (seconds > 0 and isfinite(seconds)):
        raise ValueError(f"seconds must be above 0, got {seconds}")
    return {"accuracy": accuracy, "seconds": seconds, "operations": operations}


def in_words(row: Mapping[str, Any]) -> str:
    return f"{row['accuracy']:.2%} in {row['seconds']:.1f} s"


def spread(values: Sequence[float], scale: float, form: str) -> str:
    """Mean, and standard deviation where there are two or more."""
    text = format(scale * mean(values), form)
    return f"{text} ± {format(scale * stdev(values), form)}" if len(values) > 1 else text


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    sides = {side: [row for row in rows if row["side"] == side] for side in ("ours", "beside")}
    reached = mean(row["accuracy"] for row in sides["ours"])
    target = rows[0]["target"]
    verdict = "reaches" if reached >= target else "misses"
    words = [f"Our mean, {reached:.2%}, {verdict} the target of {target:.2%}."]
    if sides["beside"]:
        ours, theirs = (mean(row["seconds"] for row in sides[side]) for side in sides)
        words.append(f"Ours takes {ours / theirs:.3g} times the other's mean time.")
    if any(row.get("source") == "synthetic" for row in rows):
        words.append("On the SYNTHETIC stand-in: the accuracies say nothing about CIFAR-10.")
    shown = Table(
        title="Test accuracy, and what it cost",
        caption=" ".join(
            [
                "Below the runs their mean ± standard deviation. Time: training and answering the "
                "test set, which is also told apart. PFLOP: of training, counted.",
                *words,
            ]
        ),
    )
    shown.add_column("run")
    for column in ("accuracy", "one view", "time, s", "training, s", "answering, s", "PFLOP"):
        shown.add_column(column, justify="right")
    columns = (
        ("accuracy", 100, ".2f"),
        ("plain_accuracy", 100, ".2f"),
        ("seconds", 1, ".1f"),
        ("training_seconds", 1, ".1f"),
        ("answering_seconds", 1, ".1f"),
        ("operations", 1e-15, ".4f"),
    )
    for side, of_side in sides.items():
        if not of_side:
            continue
        shown.add_section()
        for row in of_side:
            values = [row.get(key) for key, _, _ in columns]
            cells = [
                "" if value is None else format(scale * value, form)
                for value, (_, scale, form) in zip(values, columns, strict=True)
            ]
            shown.add_row(f"{side}, {'seed' if side == 'ours' else 'run'} {row['run']}", *cells)
        summary = []
        for key, scale, form in columns:
            known = [row[key] for row in of_side if row.get(key) is not None]
            summary.append(spread(known, scale, form) if len(known) == len(of_side) else "")
        shown.add_row(f"[bold]{side}, n = {len(of_side)}[/]", *summary)
    return shown
