"""The best checkpoint of one kind of weights: raw, EMA or SWA."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from callbacks.moved_checkpoints import in_folder


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best{suffix}.ckpt`: where `val/acc{suffix}` was highest, the first of equals.

    Lightning's ModelCheckpoint ends the run where its metric is absent after a validation, and
    `val/acc_swa` is absent until SWA has started. This one waits, and warns at the end of training
    where the metric never came. A checkpoint is whole, averages and optimizer included, whichever
    of its weights were the best.

    MisconfigurationException where there is no validation set to choose by.
    """

    def __init__(self, dirpath: str | None = None, suffix: str = "") -> None:
        """
        Args:
            dirpath: folder of the checkpoint (default: checkpoints in the logger's folder).
            suffix: which weights choose: "" for the raw ones, "_ema" or "_swa".
        """
        super().__init__(
            dirpath=dirpath,
            filename=f"best{suffix}",
            monitor=f"val/acc{suffix}",
            mode="max",
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(in_folder(state_dict, str(self.dirpath)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Before the first validation the loaders may not have been asked for yet.
        empty = trainer.val_dataloaders is not None and sum(trainer.num_val_batches) == 0
        if empty or not trainer.enable_validation:
            raise MisconfigurationException(
                f"the validation set must not be empty where {self.filename}.ckpt is chosen by "
                f"{self.monitor}"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not self.best_model_path:
            rank_zero_warn(
                f"{self.filename}.ckpt was not written: no {self.monitor} was ever logged"
            )
