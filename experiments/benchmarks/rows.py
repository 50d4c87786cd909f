"""`rows`: images per second of several trainings at once, over one training alone.

Each training is a process. As with `reproduce.py --rows-at-once`, trainings at once share the
processors as threads. The times begin after a warm-up with compilation, in all processes at the
same moment. There is no validation.
"""

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from statistics import median
from tempfile import TemporaryDirectory
from threading import Barrier, BrokenBarrierError
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table

from experiments.benchmarks.in_trainer import fit
from experiments.benchmarks.timing import Ratio, ratio, short
from experiments.console import UserError, track
from experiments.records.provenance import processors
from experiments.training.allocator import keep_freed_memory
from experiments.training.configuration import resolve_config
from experiments.training.machine import now


def measure(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one row; UserError for a mistake in the flags of `run.py`."""
    arguments = [
        f"--arch={flags.arch}",
        "--data.val_fraction=0",
        f"--trainer.accelerator={flags.device}",
        "--trainer.enable_progress_bar=false",
        "--wandb=disabled",
        *flags.run_flags,
    ]
    batch_size = resolve_config(arguments)["data"]["batch_size"]
    speeds: dict[int, list[float]] = {1: [], flags.rows_at_once: []}
    for _ in track(range(flags.repeats), "rounds", flags.repeats):
        for count, found in speeds.items():
            per_second = sum(batches_per_second(arguments, count, flags.warm_up, flags.window))
            found.append(per_second * batch_size)
    alone, together = speeds[1], speeds[flags.rows_at_once]
    return [
        {
            "arch": flags.arch,
            "batch_size": batch_size,
            "rows_at_once": flags.rows_at_once,
            "alone": alone,
            "together": together,
            "gain": asdict(ratio(together, alone)),
        }
    ]


def batches_per_second(
    arguments: Sequence[str], count: int, warm_up: int, window: int
) -> list[float]:
    """Speeds of `count` trainings at once; `arguments` are flags of `run.py`."""
    context, threads = get_context("spawn"), max(1, processors() // count) if count > 1 else None
    with context.Manager() as manager, ProcessPoolExecutor(count, context) as pool:
        job = list(arguments), warm_up, window, manager.Barrier(count), threads
        calls = [pool.submit(_train, *job) for _ in range(count)]
    errors = [error for call in calls if (error := call.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise error
    return [call.result() for call in calls]


def _train(
    arguments: list[str], warm_up: int, window: int, barrier: Barrier, threads: int | None
) -> float:
    """Train; return batches per second of the window after the warm-up."""
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    pace = Pace(warm_up, window, barrier)
    try:
        with TemporaryDirectory() as folder:
            fit([*arguments, f"--output={folder}", "--name=row"], pace)
        if not pace.seconds:
            raise UserError(
                f"--warm-up {warm_up} and --window {window} must fit into the training, which has "
                f"{pace.batches} batches"
            )
    except BaseException:
        barrier.abort()  # otherwise the other processes would wait forever
        raise
    return window / pace.seconds


class Pace(Callback):
    """Times a window of batches that begins in all processes at once.

    The window ends the training.
    """

    def __init__(self, warm_up: int, window: int, barrier: Barrier) -> None:
        self.warm_up, self.window, self.barrier = warm_up, window, barrier
        self.batches = 0
        self.seconds = 0.0
        self._start = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        if self.batches == self.warm_up:
            now(pl_module.device)  # finishes the warm-up
            self.barrier.wait()
            self._start = now(pl_module.device)
        elif self.batches == self.warm_up + self.window:
            self.seconds = now(pl_module.device) - self._start
            trainer.should_stop = True


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    (row,) = rows
    shown = Table(
        title=f"Trainings at once: {row['arch']}, batch {row['batch_size']:,}",
        caption="Images per second of all trainings together: medians, and the ratio of the "
        "medians with its range over the rounds.",
    )
    for column in ("trainings", "images/s", "gain"):
        shown.add_column(column, justify="right")
    shown.add_row("1", short(median(row["alone"])), "")
    gain = str(Ratio(**row["gain"]))
    shown.add_row(str(row["rows_at_once"]), short(median(row["together"])), gain)
    return shown
