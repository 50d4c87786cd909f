"""How long a Trainer will train, asked before it has its loader."""

from math import ceil, inf

from lightning.pytorch import Trainer


def epochs_of_training(trainer: Trainer, batches: int) -> float:
    """Epochs of so many batches that training has, of which `max_steps` may cut the last short.

    Infinite where neither `max_epochs` nor `max_steps` ends it. As Lightning's
    `estimated_stepping_batches`, which schedules follow, and which would ask for the loader that
    this is for.
    """
    limit = trainer.limit_train_batches
    taken = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = max(1, ceil(taken / trainer.accumulate_grad_batches))
    epochs = inf if trainer.max_epochs == -1 else trainer.max_epochs or 1
    return epochs if trainer.max_steps == -1 else min(epochs, trainer.max_steps / steps)
