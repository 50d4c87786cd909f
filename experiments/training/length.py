"""The length of a training in batches and steps, from its configuration alone."""

from typing import Any

from datamodules.datasets import open_data_set


def images_of_classes(config: dict[str, Any]) -> list[int]:
    """Number of training images of each class, without the validation images."""
    data = config["data"]  # of an older record perhaps, without a data set
    name, size = data.get("dataset", "cifar10"), data.get("image_size", 32)
    counts = open_data_set(name, data["root"], size).counts
    if data["source"] == "synthetic":
        counts = (50_000 // len(counts),) * len(counts)
    return [count - round(count * data["val_fraction"]) for count in counts]


def training_images(config: dict[str, Any]) -> int:
    """Number of training images without the validation images."""
    return sum(images_of_classes(config))


def batches_per_epoch(config: dict[str, Any]) -> int:
    """Number of training batches in an epoch."""
    # The data module rejects a batch size below 1.
    batches = training_images(config) // max(1, config["data"]["batch_size"])
    limit = config["trainer"]["limit_train_batches"]
    if limit is None:
        return batches
    return int(batches * limit) if isinstance(limit, float) else min(batches, limit)


def steps_of_epochs(config: dict[str, Any]) -> float:
    """Optimizer steps of all epochs, without `max_steps`; may be infinite."""
    epochs, accumulated = (config["trainer"][x] for x in ("max_epochs", "accumulate_grad_batches"))
    if epochs in (None, -1):
        return float("inf")
    return epochs * -(-batches_per_epoch(config) // accumulated)
