"""`time-to-accuracy`: train a preset with several seeds; report accuracy, time and operations.

Each run is a process of `run.py`. Its network then predicts the test images as `evaluate.py` does.
`training_seconds` comes from the record: from the first step to the end of the last epoch.
`answering_seconds` is the time of predicting the whole test set, including normalisation. `seconds`
is their sum. Only training's operations are counted.

With `--airbench` the other program is a file of KellerJordan/cifar10-airbench, unchanged on a GPU.
All runs are in this process, and the first run of each side is a warm-up. Our seconds then include
the same parts as the file's: computing the first layer, training with augmentation, and predicting
the test set. They also include Lightning's start, loggers and checkpoints, which the file lacks.
"""

import argparse
import contextlib
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import zip_longest
from math import inf, isfinite
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from torch import nn

from datamodules.tensor_loader import EvalLoader
from experiments.benchmarks import airbench
from experiments.benchmarks.in_trainer import fit
from experiments.benchmarks.operations import FILE, CountOperations
from experiments.console import UserError
from experiments.inference.evaluation import open_images, open_networks
from experiments.inference.finished import open_run
from experiments.inference.strategies import STRATEGIES, Strategy
from experiments.records.provenance import ROOT
from experiments.training.cli import ExperimentCLI
from experiments.training.machine import now

RUN = ROOT / "experiments" / "run.py"
COUNTER = f"{CountOperations.__module__}.{CountOperations.__name__}"


def measure(flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure a row for each run."""
    if flags.airbench and (flags.beside or flags.beside_runs):
        raise UserError("--airbench takes the place of --beside: give one")
    for row in run_warm(flags) if flags.airbench else run_all(flags):
        words = f"{row['accuracy']:.2%} in {row['seconds']:.1f} s"
        print(f"{row['side']}, run {row['run']}: {words}", flush=True)
        yield row


def run_all(flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Our runs and the other program's runs, in turns."""
    seeds = range(flags.first_seed, flags.first_seed + flags.seeds)
    others = range((flags.beside_runs or flags.seeds) if flags.beside else 0)
    began = f"{datetime.now():%Y%m%d-%H%M%S}"
    for seed, other in zip_longest(seeds, others):
        if seed is not None:
            row = train(flags.runs / f"{flags.arch}-{began}-seed{seed}", seed, flags)
            yield {"side": "ours", "run": seed, "target": flags.target, **row}
        if other is not None:
            row = run_beside(flags.beside)
            yield {"side": "beside", "run": other, "target": flags.target, **row}


def arguments_of(folder: Path, seed: int, flags: argparse.Namespace) -> list[str]:
    """Flags of `run.py` for a run in a folder."""
    return [
        f"--arch={flags.arch}",
        f"--trainer.accelerator={flags.device}",
        *flags.run_flags,
        f"--seed={seed}",
        f"--name={folder.name}",
        f"--output={folder.parent}",
    ]


def train(folder: Path, seed: int, flags: argparse.Namespace) -> dict[str, Any]:
    """Train with a seed in a new process, and predict the test images.

    A training that fails ends this process as well.
    """
    name = folder.name
    # The test set is needed, even if the flags disable it.
    always = [f"--trainer.callbacks+={COUNTER}", "--test=true"]
    if code := start([*arguments_of(folder, seed, flags), *always]):
        raise UserError(f"{name} ended with exit code {code}: see above")
    run = open_run(folder)
    record = run.record
    strategy = STRATEGIES[flags.strategy]
    networks, device, _ = open_networks({name: (run, name) for name in strategy.networks}, None)
    accuracy, seconds = answer(networks, open_images(run, None, device)["test"], device, strategy)
    return {
        "accuracy": accuracy,
        "plain_accuracy": record.scores["test"]["raw"].accuracy,
        "seconds": record.training_seconds + seconds,
        "training_seconds": record.training_seconds,
        "answering_seconds": seconds,
        "operations": json.loads((run.folder / FILE).read_text("utf-8"))["operations"],
        "steps": record.steps,
        "folder": str(run.folder),
        "source": record.source,
    }


def run_warm(flags: argparse.Namespace, deadline: float = inf) -> Iterator[dict[str, Any]]:
    """Our runs and airbench's in turns in this process, after a warm-up run of each.

    After `deadline`, on the clock of `time.perf_counter`, no round follows the first that counts.
    """
    if not flags.airbench.is_file():
        raise UserError(f"--airbench {flags.airbench} is not a file")
    device = torch.device(flags.device)
    if device.type == "cpu":
        airbench.stand_in_for_cuda()
    program = airbench.load_program(flags.airbench, device)
    with TemporaryDirectory() as folder:
        for number in range(-1, flags.seeds):
            if number > 0 and time.perf_counter() > deadline:
                break
            seed = flags.first_seed + max(number, 0)
            cli, ours = train_here(Path(folder) / f"{number}", seed, flags)
            gc.collect()
            if number < 0:
                write_data(cli, Path(folder) / "cifar10")
            with contextlib.chdir(folder):
                theirs = airbench.run(program)
            if number >= 0:
                yield {"side": "ours", "run": seed, "target": flags.target, **ours}
                yield {"side": "beside", "run": number, "target": flags.target, **theirs}


class FitClock(Callback):
    """The seconds from the computation of the first layer to the end of training."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = now(pl_module.device)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = now(pl_module.device) - self._start


def train_here(
    folder: Path, seed: int, flags: argparse.Namespace
) -> tuple[ExperimentCLI, dict[str, Any]]:
    """Train in this process, and predict the test images with the last weights."""
    clock = FitClock()
    cli = fit(arguments_of(folder, seed, flags), clock)
    device = torch.device(flags.device)
    precision: Any = cli.trainer.precision
    fabric = Fabric(accelerator=device.type, devices=1, precision=precision)
    network = fabric.setup_module(cli.model.eval())
    data = cli.datamodule
    data.setup("test")
    # Views are batches of many sizes, which are not worth a compilation each.
    with torch.compiler.set_stance("force_eager"):
        accuracy, seconds = answer(
            {"raw": network}, data.test_dataloader(), fabric.device, STRATEGIES[flags.strategy]
        )
    return cli, {
        "accuracy": accuracy,
        "seconds": clock.seconds + seconds,
        "training_seconds": clock.seconds,
        "answering_seconds": seconds,
        "operations": None,
        "steps": cli.trainer.global_step,
        "precision": str(precision),
        "source": data.source,
    }


def write_data(cli: ExperimentCLI, folder: Path) -> None:
    """Write the experiment's images in airbench's format."""
    data = cli.datamodule
    for train, loader in ((True, data.train_dataloader()), (False, data.test_dataloader())):
        airbench.write_images(folder, train, loader.images, loader.labels, data.classes)


def start(arguments: Sequence[str]) -> int:
    """The exit code of `run.py` with these arguments."""
    return subprocess.run([sys.executable, str(RUN), *arguments], check=False).returncode


@torch.inference_mode()
def answer(
    networks: Mapping[str, nn.Module], loader: EvalLoader, device: torch.device, strategy: Strategy
) -> tuple[float, float]:
    """Accuracy of a strategy on a loader's images, and its seconds."""
    loader = replace(loader, images=loader.images.to(device), labels=loader.labels.to(device))
    module = strategy.build(networks, loader.mean, loader.std)
    start = now(device)
    classes = torch.cat([module(images).argmax(dim=1) for images, _ in loader])
    seconds = now(device) - start
    return (classes == loader.labels).double().mean().item(), seconds


def run_beside(command: str) -> dict[str, Any]:
    """Run another program; UserError if it fails or reports nothing."""
    ended = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode != 0:
        raise UserError(f"--beside {command}: ended with exit code {ended.returncode}")
    try:
        return read_report(ended.stdout)
    except ValueError as error:
        raise UserError(f"--beside {command}: {error}") from None


def read_report(output: str) -> dict[str, Any]:
    """Read accuracy and seconds from the other program's last line, else ValueError."""
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


def spread(values: Sequence[float], scale: float, form: str) -> str:
    """The mean, with the standard deviation of two or more values."""
    text = format(scale * mean(values), form)
    return f"{text}\n± {format(scale * stdev(values), form)}" if len(values) > 1 else text


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
        words.append("On SYNTHETIC images: the accuracies say nothing about CIFAR-10.")
    shown = Table(
        title="Test accuracy and its cost",
        pad_edge=False,
        caption=" ".join(
            [
                "The last line is mean ± standard deviation. Seconds: training and predicting the "
                "test set, also listed separately. PFLOP: counted operations of training.",
                *words,
            ]
        ),
    )
    shown.add_column("run")
    for column in ("accuracy", "one view", "seconds", "training", "predicting", "PFLOP"):
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
            shown.add_row(f"{'seed' if side == 'ours' else 'run'} {row['run']}", *cells)
        summary = []
        for key, scale, form in columns:
            known = [row[key] for row in of_side if row.get(key) is not None]
            summary.append(spread(known, scale, form) if len(known) == len(of_side) else "")
        shown.add_row(f"[bold]{side}, n = {len(of_side)}[/]", *summary)
    return shown
