"""Checkpoint of the newest state, to resume an interrupted run."""

from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from callbacks.snapshot import snapshot


@final
class LastCheckpoint(Checkpoint):
    """Saves the whole state of a run as `last.ckpt`, so that the run can be resumed.

    It saves the state at the end of an epoch, or within a long epoch, if the last save was `every`
    ago, and whenever training ends: after the last epoch, at a time limit, at SIGTERM and after an
    error. A killed run repeats its work since the last save. After an error, at most one epoch is
    repeated; after SIGTERM nothing, if one device trains without gradient accumulation.
    """

    def __init__(
        self, dirpath: str, every: timedelta = timedelta(seconds=30), agree_every: int = 50
    ) -> None:
        """
        Args:
            dirpath: folder of the checkpoint.
            every: minimum time between two saves.
            agree_every: optimizer steps between two checks whether a save is due, if there are
                several processes. A check synchronises them.
        """
        self.path = Path(dirpath) / "last.ckpt"
        self.every = every
        self.agree_every = agree_every
        self._written = 0.0
        self._exists = False
        self._unwritten: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._written = monotonic()
        self._exists = self.path.exists()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # No checkpoint contains gradients, so none is saved while gradients accumulate.
        steps, accumulated = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        if accumulated or (trainer.world_size > 1 and steps % self.agree_every):
            return
        # All processes must save together, and their clocks differ.
        due = trainer.strategy.broadcast(self._late() or trainer.received_sigterm)
        # A run that resumes between a batch and its validation would skip that validation.
        ends = batch_idx + 1 == trainer.num_training_batches
        every = trainer.val_check_batch
        validated = every is not None and (batch_idx + 1) % every == 0
        if not due or ends or validated or trainer.global_step == trainer.max_steps:
            return
        # A resumed run logs only the steps after the checkpoint.
        for logger in trainer.loggers:
            logger.save()
        self._copy(trainer)
        self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy(trainer)
        if self._late() or not self._exists:
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._write(trainer)

    def _late(self) -> bool:
        return monotonic() - self._written >= self.every.total_seconds()

    def _copy(self, trainer: Trainer) -> None:
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        self._unwritten = snapshot(state)

    def _write(self, trainer: Trainer) -> None:
        if self._unwritten:
            trainer.strategy.save_checkpoint(self._unwritten, self.path)
            self._unwritten = {}
            self._written = monotonic()
            self._exists = True


@final
class LastStep(Callback):
    """Validates after the last step if `max_steps` ends training within an epoch.

    Lightning skips this validation, so the best checkpoint could not contain the final weights.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True
