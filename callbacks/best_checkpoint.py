"""Checkpoint of the best weights: raw, EMA or SWA."""

import math
from pathlib import Path
from typing import Any, cast, final

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from callbacks.ema import Average
from callbacks.lookahead import HasNetwork


@final
class BestCheckpoint(Checkpoint):
    """Saves the weights with the highest `val/acc{suffix}` as `best{suffix}.ckpt`.

    The file contains only weights and hyper-parameters. For EMA and SWA the weights are the
    averaged ones. If two epochs have the same accuracy, the first one is kept. Raises
    MisconfigurationException if there is no validation set, and warns if the metric never exists.
    """

    def __init__(self, dirpath: str, suffix: str = "") -> None:
        """
        Args:
            dirpath: folder of the checkpoint.
            suffix: kind of weights: "" for raw weights, "_ema" or "_swa".
        """
        self.path = Path(dirpath) / f"best{suffix}.ckpt"
        self.suffix = suffix
        self.monitor = f"val/acc{suffix}"
        self.best: dict[str, Any] = {"score": -math.inf, "global_step": 0}

    @property
    def state_key(self) -> str:
        return f"{type(self).__name__}{self.suffix}"

    def state_dict(self) -> dict[str, Any]:
        return self.best

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A killed run resumes from a checkpoint. The file may be newer than it, or missing.
        # Then this keeps no best score, so the next validation replaces the file.
        if self.path.exists():
            file = torch.load(self.path, "cpu", weights_only=True, mmap=True)
            if all(file.get(name) == value for name, value in state_dict.items()):
                self.best = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The loaders may not exist before the first validation.
        empty = trainer.val_dataloaders is not None and sum(trainer.num_val_batches) == 0
        if empty or not trainer.enable_validation:
            raise MisconfigurationException(
                f"the validation set must not be empty, because {self.monitor} chooses "
                f"{self.path.name}: hold images out, for example with --data.val_fraction 0.2"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        # The metric is missing until SWA starts.
        score = float(trainer.callback_metrics.get(self.monitor, -math.inf))
        if not score > self.best["score"]:
            return
        self.best = {"score": score, "global_step": trainer.global_step}
        weights = self._network(trainer, pl_module).state_dict()
        checkpoint = {
            **self.best,
            "epoch": trainer.current_epoch,
            "pytorch-lightning_version": lightning.__version__,
            "architecture": type(pl_module).__name__,
            "hyper_parameters": dict(pl_module.hparams),
            "state_dict": {f"network.{name}": value for name, value in weights.items()},
        }
        trainer.strategy.save_checkpoint(checkpoint, self.path)

    def _network(self, trainer: Trainer, pl_module: LightningModule) -> nn.Module:
        if not self.suffix:
            return cast(HasNetwork, pl_module).network
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it undeclared
        # There is exactly one: EMA and SWA cannot be combined.
        [average] = [callback for callback in callbacks if isinstance(callback, Average)]
        assert average.network is not None
        return average.network

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.best["score"] == -math.inf:
            rank_zero_warn(f"{self.path.name} was not written: no {self.monitor} was ever logged")


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
