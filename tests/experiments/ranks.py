"""Fork the processes of an experiment from this process, which has already imported torch.

Each line of JSON on stdin is a job: the environment variables of each process, and the command
line. A line on stdout contains their exit codes. If each process imported torch, this would take
most of a test's time. pytest's process cannot be forked after it has trained.
"""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

import datamodules.cifar10
import experiments.training.experiment
import experiments.training.processes
from callbacks import EMA, SWA, LastCheckpoint, Lookahead
from datamodules.synthetic import synthetic_cifar10
from experiments import console
from experiments.reporting.tables import show_result
from experiments.training.cli import ExperimentCLI
from experiments.training.launch import read_launch

synthetic = cache(synthetic_cifar10)


def few_images(split: str, **_: int) -> tuple[Tensor, Tensor]:
    """1,999 images to train on and validate with, and 300 to test."""
    images, labels = synthetic(split, per_class=200 if split == "train" else 30)  # type: ignore[arg-type]
    return (images[1:], labels[1:]) if split == "train" else (images, labels)


class Spy(Callback):
    """Saves, in each process, the values that must be equal in all processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.batches: list[Tensor] = []

    def look(self, trainer: Any, pl_module: Any, moment: str) -> None:
        seen = {
            "raw": pl_module.network.state_dict(),
            "random": torch.get_rng_state(),
            "batches": self.batches,
        }
        for callback in trainer.callbacks:
            if isinstance(callback, EMA | SWA) and callback.network is not None:
                seen["average"] = callback.network.state_dict()
            if isinstance(callback, Lookahead):
                seen["slow"] = callback.state_dict()["slow"]
        torch.save(seen, self.folder / f"{moment}-{trainer.current_epoch}-{trainer.global_rank}.pt")

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        torch.rand(1)  # as dropout does
        self.batches.append(batch[0].clone())

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.look(trainer, pl_module, "step")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.look(trainer, pl_module, "validation")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.look(trainer, pl_module, "end")


class Interrupt(Callback):
    """Ends all processes in the second step of an epoch, with a checkpoint after the first step."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for callback in trainer.callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.every, callback.agree_every = timedelta(0), 1

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, 1):
            raise InterruptedError


def work(job: dict[str, Any]) -> None:
    """Run `run.py` on few synthetic images and without pictures."""
    datamodules.cifar10.synthetic_cifar10 = few_images  # type: ignore[assignment]
    experiments.training.experiment.write_pictures = lambda *_: None
    experiments.training.processes.PATIENCE = 0.1  # the parent process does not end
    if job.get("group_norm"):
        # GroupNorm's statistics are of one image; BatchNorm's differ between devices by design.
        nn.BatchNorm2d = lambda channels: nn.GroupNorm(1, channels)  # type: ignore[assignment,misc]
    sys.argv = ["experiments/run.py", *job["argv"]]
    cli = ExperimentCLI(read_launch(job["argv"]))
    cli.trainer.callbacks.append(Spy(Path(job["folder"])))
    if "interrupt" in job:
        cli.trainer.callbacks.append(Interrupt(job["interrupt"]))
    experiments.training.experiment.run_experiment(cli, show_result)


def start(job: dict[str, Any], rank: int) -> int:
    """Fork a process of a job; its output goes to `{rank}.out` and `{rank}.err` in its folder."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for stream, ending in ((1, "out"), (2, "err")):
            with Path(job["folder"], f"{rank}.{ending}").open("w") as file:
                os.dup2(file.fileno(), stream)
        os.environ.update(job["environments"][rank])
        rank_zero_only.rank = rank  # as if Lightning were imported in this environment
        console.command(lambda: work(job))()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    few_images("train")
    few_images("test")
    for line in sys.stdin:
        job = json.loads(line)
        running = {start(job, rank): rank for rank in range(len(job["environments"]))}
        codes, limit = {}, time.monotonic() + job["seconds"]
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > limit:
                for each in running:
                    os.kill(each, signal.SIGKILL)
                limit = float("inf")
            else:
                time.sleep(0.02)
        print(json.dumps([codes[rank] for rank in sorted(codes)]), flush=True)


if __name__ == "__main__":
    main()
