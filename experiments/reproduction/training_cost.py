"""The cost of a training: counted operations, and seconds estimated from measurements."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional as F

from experiments.benchmarks.timing import seconds_of
from experiments.claims.claims import operations_of
from experiments.presets import EXPERIMENTS
from experiments.records.provenance import describe_device
from experiments.records.record import Record
from experiments.training.experiment import operations_per_image
from experiments.training.length import batches_per_epoch
from experiments.training.machine import resolve_precision

#: A backward pass takes two operations for each one of the forward pass.
PASSES = 3


def operations_of_training(config: dict[str, Any]) -> int:
    """Operations of a training's forward and backward passes; a multiply-add is two."""
    steps = batches_per_epoch(config) * config["trainer"]["max_epochs"]
    if (most := config["trainer"]["max_steps"]) > 0:
        steps = min(steps, most * config["trainer"]["accumulate_grad_batches"])
    # AugMix has three views of each image, and SAM two gradients per step. Old records lack these
    # settings.
    views = 3 if config["data"].get("policy") == "augmix" else 1
    gradients = 2 if config["model"].get("sharpness", "none") != "none" else 1
    return PASSES * operations_of(config) * steps * config["data"]["batch_size"] * views * gradients


class Stopwatch:
    """Seconds that trainings take on this device, validation included."""

    def __init__(self, records: Iterable[Record]) -> None:
        """Use the `records` of this device only."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        name = describe_device(self.device)
        self.records = [r for r in records if r.device == name and r.training_seconds > 0]
        self._measured: dict[tuple[str, str], float] = {}

    def seconds(self, config: dict[str, Any]) -> tuple[float, str | None]:
        """Estimate the seconds of a training, and name the record of its speed.

        It is the record with the same architecture and precision that is nearest in operations per
        image. Without such a record (None), one step is timed now, because architectures differ
        several times in operations per second.
        """
        operations = operations_of_training(config)
        precision = resolve_precision(config["trainer"]["precision"], self.device.type)
        kind = config["arch"], precision
        if alike := [record for record in self.records if (record.arch, record.precision) == kind]:
            per_image = operations_of(config)

            def distance(record: Record) -> float:
                return abs(math.log(record.operations_per_image / per_image))

            nearest = min(alike, key=distance)
            done = operations_of_training(nearest.config)
            return operations * nearest.training_seconds / done, nearest.name
        if kind not in self._measured:
            self._measured[kind] = self._operations_per_second(config, precision)
        return operations / self._measured[kind], None

    def _operations_per_second(self, config: dict[str, Any], precision: str) -> float:
        """Of a forward and backward pass of random images: the fastest of three."""
        module = EXPERIMENTS[config["arch"]](**config["model"] | {"compile": False})
        module = module.to(self.device)
        # A GPU is slow with few images, and a CPU no faster with many.
        count = config["data"]["batch_size"] if self.device.type == "cuda" else 16
        images = torch.randn(count, 3, 32, 32, device=self.device)
        labels = torch.zeros(count, dtype=torch.int64, device=self.device)
        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)

        def step() -> None:
            with torch.autocast(self.device.type, mixed, enabled=mixed is not None):
                loss = F.cross_entropy(module(images), labels)
            loss.backward()

        seconds = min(seconds_of(step, self.device) for _ in range(3))
        return PASSES * operations_per_image(module) * count / seconds
