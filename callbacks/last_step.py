"""An end by optimizer steps that is validated like an epoch's."""

from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer


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
