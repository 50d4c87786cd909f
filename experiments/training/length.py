"""How many batches a configuration trains on, before there is any data."""

from typing import Any


def batches_per_epoch(config: dict[str, Any]) -> int:
    """Training batches of an epoch on CIFAR-10, of which each class has 5,000 images."""
    held_out = 10 * round(5_000 * config["data"]["val_fraction"])
    batches = (50_000 - held_out) // config["data"]["batch_size"]
    limit = config["trainer"]["limit_train_batches"]
    if limit is None:
        return batches
    return int(batches * limit) if isinstance(limit, float) else min(batches, limit)


def steps_of_epochs(config: dict[str, Any]) -> float:
    """Optimizer steps of all epochs, whatever `max_steps` says; infinite where they never end."""
    epochs, accumulated = (config["trainer"][x] for x in ("max_epochs", "accumulate_grad_batches"))
    if epochs == -1:
        return float("inf")
    return epochs * -(-batches_per_epoch(config) // accumulated)
