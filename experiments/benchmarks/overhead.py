"""`overhead`: the time of an epoch in the Trainer, divided by a bare loop's.

The Trainer's side has everything that `run.py` sets up for a preset, without validation. An epoch
is timed from its start to the start of the next epoch, with the checkpoint in between.

The bare loop trains one epoch of the same batches after each epoch of the Trainer. It has the same
network, optimizer, clipping, autocast, EMA and Lookahead. Schedule, logging, progress and
checkpoints are the overhead. The first round of both sides is a warm-up with compilation.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from math import inf
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from torch import Tensor

from experiments.benchmarks.flags import BARE_PRECISIONS
from experiments.benchmarks.in_trainer import fit
from experiments.benchmarks.timing import Ratio, ratio
from experiments.console import UserError
from experiments.presets import EXPERIMENTS
from experiments.training.configuration import resolve_config
from experiments.training.length import batches_per_epoch
from experiments.training.machine import now, resolve_precision
from lightning_modules.speed_resnet import SpeedResNetClassifier

#: steps of the bare loop in the first round
WARM_UP = 2


def measure(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one row.

    UserError for a setting that the bare loop lacks, and for more steps than an epoch has.
    """
    arguments = arguments_of(flags)
    config = resolve_config(arguments)
    if (batches := batches_per_epoch(config)) < flags.steps:
        raise UserError(
            f"--steps must be at most {batches}, the batches of an epoch, got {flags.steps}"
        )
    seconds, bare, precision = alternate_epochs(arguments, flags.repeats)
    return [
        {
            "arch": flags.arch,
            "batch_size": flags.batch_size,
            "precision": precision,
            "steps": flags.steps,
            "seconds": seconds,
            "bare_seconds": bare,
            "ratio": asdict(ratio(seconds, bare)),
        }
    ]


def alternate_epochs(
    arguments: Sequence[str], repeats: int, deadline: float = inf
) -> tuple[list[float], list[float], str]:
    """Seconds of the Trainer's and the bare loop's epochs, and their precision.

    `arguments` are flags of `run.py`. After `deadline`, on the clock of `time.perf_counter`, only
    the first timed round is completed.
    """
    always = ["--trainer.max_steps=-1", f"--trainer.max_epochs={repeats + 1}"]
    arguments = [*arguments, "--data.val_fraction=0", *always]
    refuse_others(resolve_config(arguments))
    epochs = Epochs(deadline)
    with TemporaryDirectory() as folder:
        cli = fit([*arguments, f"--output={folder}", "--name=overhead"], epochs)
    return epochs.seconds, epochs.bare_seconds, str(cli.trainer.precision)


def refuse_others(config: Mapping[str, Any]) -> None:
    """Raise UserError for a setting that the bare loop lacks."""
    trainer = config["trainer"]
    precision = resolve_precision(trainer["precision"], trainer["accelerator"])
    followed = {
        "accumulate_grad_batches": (trainer["accumulate_grad_batches"], (1,)),
        "gradient_clip_algorithm": (trainer["gradient_clip_algorithm"], (None, "norm")),
        "precision": (precision, BARE_PRECISIONS),
    }
    for name, (value, same) in followed.items():
        if value not in same:
            raise UserError(
                f"--trainer.{name} must be {' or '.join(map(str, same))}, as in the bare loop, "
                f"got {value}"
            )


class Epochs(Callback):
    """Times each epoch of the Trainer, and an epoch of the bare loop after it."""

    def __init__(self, deadline: float = inf) -> None:
        self.deadline = deadline
        self.seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self._start: float | None = None
        self._warm = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._start is not None:
            self._end_round(trainer, pl_module)
        self._start = now(pl_module.device)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._warm and time.perf_counter() > self.deadline:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_round(trainer, pl_module)

    def _end_round(self, trainer: Trainer, module: LightningModule) -> None:
        assert self._start is not None
        taken = now(module.device) - self._start
        steps = int(trainer.num_training_batches)
        bare = bare_epoch(trainer, module, steps if self._warm else min(steps, WARM_UP))
        if self._warm:
            self.seconds.append(taken)
            self.bare_seconds.append(bare)
        self._warm = True


def bare_epoch(trainer: Trainer, module: LightningModule, steps: int) -> float:
    """Seconds of a bare loop over the first batches of an epoch, within a `fit`.

    It includes EMA and Lookahead, which are hooks of the optimizer's step.
    """
    (optimizer,), loader = trainer.optimizers, trainer.train_dataloader
    assert loader is not None
    clip, context = trainer.gradient_clip_val, trainer.precision_plugin.train_step_context
    start = now(module.device)
    for index, batch in enumerate(islice(loader, steps)):
        with context():
            loss = module.training_step(batch, index)
        assert isinstance(loss, Tensor)
        # The module's own methods, which a captured step may replace.
        module.optimizer_zero_grad(trainer.current_epoch, index, optimizer)
        module.backward(loss)
        module.on_after_backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    return now(module.device) - start


def arguments_of(flags: argparse.Namespace) -> list[str]:
    """Flags of `run.py` for epochs of `--steps` batches."""
    # The bare loop does not freeze SpeedResNet's first bias during training.
    freezes = EXPERIMENTS[flags.arch] is SpeedResNetClassifier
    always = ["--model.whitening_bias=1"] if freezes else []
    return [
        f"--arch={flags.arch}",
        f"--data.batch_size={flags.batch_size}",
        "--data.val_fraction=0",
        f"--trainer.limit_train_batches={flags.steps}",
        f"--trainer.log_every_n_steps={flags.steps}",
        f"--trainer.precision={flags.precision}",
        f"--trainer.accelerator={flags.device}",
        *always,
        *flags.run_flags,
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    (row,) = rows
    shown = Table(
        title=f"An epoch of {row['steps']} steps: {row['arch']}, batch {row['batch_size']:,}, "
        f"{row['precision']}",
        caption="Medians, and the ratio of the medians with its range over the rounds. The Trainer "
        "copies its state for a checkpoint, which a thread writes. There is no validation.",
    )
    shown.add_column("side")
    for column in ("seconds", "ms a step", "ratio"):
        shown.add_column(column, justify="right")
    for name, key in (("Trainer", "seconds"), ("bare loop", "bare_seconds")):
        taken = median(row[key])
        times = str(Ratio(**row["ratio"])) if key == "seconds" else ""
        shown.add_row(name, f"{taken:.3g}", f"{1000 * taken / row['steps']:,.1f}", times)
    return shown
