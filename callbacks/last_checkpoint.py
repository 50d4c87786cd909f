"""Checkpoint of the newest state, to resume an interrupted run."""

import os
import signal
import threading
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from callbacks.snapshot import is_finite, snapshot


@final
class LastCheckpoint(Checkpoint):
    """Saves the whole state of a run as `last.ckpt`, so that the run can be resumed.

    It saves at most once per `every`, after an epoch or, if epochs are long, after a step. It also
    saves when training ends: after the last epoch, at a time limit, at Ctrl-C or SIGTERM, and after
    an error. A killed run repeats its work since the last save. After an error, at most one epoch
    is repeated. On one device, Ctrl-C and SIGTERM wait for the end of the optimizer step or the
    validation, and nothing is repeated. A second signal ends the run at once.
    """

    #: optimizer steps between two checks whether a save is due; it synchronises several processes
    agree_every = 50

    def __init__(self, dirpath: str, every: timedelta = timedelta(seconds=30)) -> None:
        """
        Args:
            dirpath: folder of the checkpoint.
            every: minimum time between two saves.
        """
        self.path = Path(dirpath) / "last.ckpt"
        self.every = every
        self._written = 0.0
        self._exists = False
        self._unwritten: dict[str, Any] = {}
        self._handlers: dict[int, Any] = {}  # of Lightning, while ours wait for a step's end
        self._asked: int | None = None  # the signal that ends the run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._asked = None
        # Several processes: Lightning agrees on SIGTERM, and Ctrl-C ends each of them at once.
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:  # as in a shell's background jobs
                    self._handlers[number] = signal.signal(number, self._ask)
        self._written = monotonic()
        self._exists = self.path.exists()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not before, because Lightning logs an epoch's metrics after its hooks have ended.
        if self._late() or not self._exists or self._asked is not None:
            self._write(trainer)
        self._obey()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # No checkpoint contains gradients, so none is saved while gradients accumulate.
        steps, accumulated = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        if accumulated or (trainer.world_size > 1 and steps % self.agree_every):
            return
        # All processes must save together, and their clocks differ.
        asked = self._asked is not None or trainer.received_sigterm
        due = trainer.strategy.broadcast(self._late() or asked)
        # A run that resumes between a batch and its validation would skip that validation.
        ends = batch_idx + 1 == trainer.num_training_batches
        every = trainer.val_check_batch
        whole_run = trainer.check_val_every_n_epoch is None
        batches = trainer.fit_loop.total_batch_idx if whole_run else batch_idx
        validated = every is not None and (batches + 1) % every == 0
        if not due or ends or validated or trainer.global_step == trainer.max_steps:
            return
        # A resumed run logs only the steps after the checkpoint.
        for logger in trainer.loggers:
            logger.save()
        self._copy(trainer)
        self._write(trainer)
        self._obey()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy(trainer)
        # Lightning acts on SIGTERM after it has logged the epoch. Ctrl-C must wait for that.
        if self._asked == signal.SIGTERM:
            self._obey()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)
        self._obey()
        self._restore_handlers()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._write(trainer)
        self._restore_handlers()

    def _ask(self, number: int, frame: Any) -> None:
        """Keep the first signal until the end of the step; pass the second to Lightning."""
        if self._asked is None:
            self._asked = number
            # Not print: a signal handler may interrupt another print.
            os.write(2, b"\nEnding after the current step. Press Ctrl-C again to end at once.\n")
        else:
            self._asked = number
            self._obey()

    def _obey(self) -> None:
        """Pass the signal to Lightning, which ends the run."""
        if self._asked is not None and self._handlers:
            self._restore_handlers()
            signal.raise_signal(self._asked)

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _late(self) -> bool:
        return monotonic() - self._written >= self.every.total_seconds()

    def _copy(self, trainer: Trainer) -> None:
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        self._unwritten = snapshot(state)

    def _is_sound(self) -> bool:
        """Return whether all weights are finite; else the last file stays."""
        callbacks = self._unwritten["callbacks"]
        averages = [callbacks.get(name, {}).get("average", {}) for name in ("EMA", "SWA")]
        return all(map(is_finite, [self._unwritten["state_dict"], *averages]))

    def _write(self, trainer: Trainer) -> None:
        if self._unwritten and self._is_sound():
            trainer.strategy.save_checkpoint(self._unwritten, self.path)
            self._unwritten = {}
            self._written = monotonic()
            self._exists = True
