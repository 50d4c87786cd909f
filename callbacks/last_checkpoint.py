"""The newest checkpoint of a run, which continues an interrupted run."""

from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from callbacks.snapshot import snapshot


@final
class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, a run's whole state, written at most every so often.

    Every epoch's end leaves a copy of the state in memory. The copy is written if the file is
    missing or old, and at the latest when training ends: after the last epoch, at the time limit,
    at SIGTERM and after an error. Long epochs write the file on their way, too.

    A killed run repeats its work since the file was written. A run that ends by itself repeats the
    epoch at most, and after SIGTERM it repeats nothing if it trains on one device without
    accumulating gradients. Within an epoch nothing is written between optimizer steps that
    accumulate gradients, because no checkpoint holds gradients, or between a batch and its
    validation, which Lightning would leave out.
    """

    def __init__(
        self, dirpath: str, every: timedelta = timedelta(seconds=30), agree_every: int = 50
    ) -> None:
        """
        Args:
            dirpath: folder of the checkpoint.
            every: least time between two writes.
            agree_every: optimizer steps after which several processes ask each other whether a
                write is due, which waits for all of them.
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
        steps, accumulated = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        if accumulated or (trainer.world_size > 1 and steps % self.agree_every):
            return
        # The clocks of several processes differ, and all of them take part in a checkpoint.
        due = trainer.strategy.broadcast(self._late() or trainer.received_sigterm)
        ends = batch_idx + 1 == trainer.num_training_batches
        every = trainer.val_check_batch
        validated = every is not None and (batch_idx + 1) % every == 0
        if not due or ends or validated or trainer.global_step == trainer.max_steps:
            return
        # The curves up to here: the resumed run logs what follows.
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

    def _is_sound(self) -> bool:
        """Whether all weights are finite: a diverged run keeps its last sound checkpoint."""
        weights = self._unwritten["state_dict"].values()
        return all(x.isfinite().all() for x in weights if x.is_floating_point())

    def _write(self, trainer: Trainer) -> None:
        if self._unwritten and self._is_sound():
            trainer.strategy.save_checkpoint(self._unwritten, self.path)
            self._unwritten = {}
            self._written = monotonic()
            self._exists = True


@final
class LastStep(Callback):
    """Where `max_steps` ends training within an epoch, stops it so that validation still follows.

    Lightning itself leaves such an epoch without one, and the best checkpoint would be chosen among
    the weights before it. Trainings of 9.9 epochs end like that.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True
