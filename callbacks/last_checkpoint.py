"""The newest checkpoint of a run, from which it goes on where it was cut off."""

import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.moved_checkpoints import in_folder


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`: written at every epoch's end, within one every so often, and at SIGTERM.

    A run that is killed repeats what it did since; one that SIGTERM ends while it trains on one
    device, without accumulating gradients, repeats nothing. Within an epoch nothing is written
    between optimizer steps that accumulate gradients, which no checkpoint holds, nor between a
    batch and its validation, from where Lightning would go on without that.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every: timedelta = timedelta(minutes=2),
        agree_every: int = 50,
    ) -> None:
        """
        Args:
            dirpath: folder of the checkpoint (default: checkpoints in the logger's folder).
            every: time between two checkpoints of one epoch.
            agree_every: optimizer steps after which several processes ask each other whether one is
                due, which waits for all of them.
        """
        super().__init__(
            dirpath=dirpath,
            filename="last",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.every = every
        self.agree_every = agree_every
        self._written = 0.0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(in_folder(state_dict, str(self.dirpath)))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._written = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps, accumulated = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        if accumulated or (trainer.world_size > 1 and steps % self.agree_every):
            return
        late = time.monotonic() - self._written >= self.every.total_seconds()
        # The clocks of several processes differ, and all of them take part in a checkpoint.
        due = trainer.strategy.broadcast(late or trainer.received_sigterm)
        ends = batch_idx + 1 == trainer.num_training_batches
        every = trainer.val_check_batch
        validated = every is not None and (batch_idx + 1) % every == 0
        if not due or ends or validated or trainer.global_step == trainer.max_steps:
            return
        # The curves up to here: the resumed run logs what follows.
        for logger in trainer.loggers:
            logger.save()
        path = f"{self.dirpath}/{self.filename}{self.FILE_EXTENSION}"
        trainer.save_checkpoint(path, weights_only=False)  # said, or Lightning tells so each time
        self._written = time.monotonic()
