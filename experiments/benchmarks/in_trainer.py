"""Training as `run.py` sets it up, with callbacks that measure it."""

from collections.abc import Sequence
from math import inf
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from experiments.training.cli import ExperimentCLI
from experiments.training.launch import read_launch
from experiments.training.machine import now


def fit(arguments: Sequence[str], *callbacks: Callback) -> ExperimentCLI:
    """Train as `run.py` with these arguments, without evaluation and record.

    The callbacks come before the experiment's own. The run's folder is free afterwards.
    """
    cli = ExperimentCLI(read_launch(list(arguments)))
    cli.trainer.callbacks[:0] = callbacks
    try:
        cli.trainer.fit(cli.model, cli.datamodule)
    finally:
        for logger in cli.trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
        if cli.lock:
            cli.lock.close()
    return cli


class StepWindows(Callback):
    """Seconds per training step over windows of steps; the last one ends training.

    A window begins and ends after a step, with a synchronised device. It includes data, callbacks
    and loggers, but no checkpoint at the end of an epoch, because it is within one epoch. If an
    epoch is shorter than a window, the window is as long as the epoch. After `deadline`, on the
    clock of `time.perf_counter`, no window follows the first.
    """

    def __init__(self, warm_up: int, length: int, count: int, deadline: float = inf) -> None:
        self.warm_up, self.length, self.count = warm_up, length, count
        self.deadline = deadline
        self.seconds: list[float] = []
        self._began: tuple[int, float] | None = None  # the step before the window, and its end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step < self.warm_up or trainer.should_stop:
            return
        last = int(trainer.num_training_batches) - 1
        length = max(1, min(self.length, last))
        if self._began is None:
            if batch_idx + length <= last:
                self._began = batch_idx, now(pl_module.device)
            return
        first, start = self._began
        if batch_idx - first < length:
            return
        end = now(pl_module.device)
        self.seconds.append((end - start) / length)
        self._began = (batch_idx, end) if batch_idx + length <= last else None
        if len(self.seconds) >= self.count or end > self.deadline:
            trainer.should_stop = True
