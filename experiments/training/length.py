"""How many batches a configuration trains on, before there is any data."""

from typing import Any


def training_images(config: dict[str, Any]) -> int:
    """Images of CIFAR-10, of which each class has 5,000, that are not held out."""
    return 50_000 - 10 * round(5_000 * config["data"]["val_fraction"])


def batches_per_epoch(config: dict[str, Any]) -> int:
    """Training batches of an epoch."""
    # The data module answers a size below 1.
    batches = training_images(config) // max(1, config["data"]["batch_size"])
    limit = config["trainer"]["limit_train_batches"]
    if limit is None:
        return batches
    return int(batches * limit) if isinstance(limit, float) else min(batches, limit)


def steps_of_epochs(config: dict[str, Any]) -> float:
    """Optimizer steps of all epochs, whatever `max_steps` says; infinite where they never end."""
    epochs, accumulated = (config["trainer"][x] for x in ("max_epochs", "accumulate_grad_batches"))
    if epochs in (None, -1):
        return float("inf")
    return epochs * -(-batches_per_epoch(config) // accumulated)
