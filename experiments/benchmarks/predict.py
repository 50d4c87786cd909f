"""`predict`: images per second in evaluation, with one view of each image and with several.

The timed part is the same as in `evaluate.py`: batches of the loader, normalisation, the network in
evaluation mode, and the average over views.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.table import Table
from torch import Tensor, nn

from datamodules.facts import CIFAR10_MEAN, CIFAR10_STD
from datamodules.normalisation import eval_batch_size
from datamodules.tensor_loader import EvalLoader
from experiments.benchmarks.timing import Ratio, alternate, ratio
from experiments.inference.evaluation import open_images
from experiments.inference.finished import open_run
from experiments.inference.strategies import PLAIN, STRATEGIES
from experiments.presets import PRESETS
from experiments.training.configuration import resolve_config
from experiments.training.machine import resolve_precision
from lightning_modules.networks import build_network
from lightning_modules.prediction import is_unsure

UNTRAINED = [PLAIN, "flip", "six-view"]
# An untrained network is unsure of all images.
TRAINED = [*UNTRAINED, "adaptive"]


@torch.inference_mode()
def measure(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure a row for each strategy; UserError without the run or its images."""
    device = torch.device(flags.device)
    split: str | None = None
    if flags.run:
        run = open_run(flags.run)
        module, precision = run.network(), run.record.precision
        # Validation images, or else test images.
        split, loader = next(iter(open_images(run, flags.root, device).items()))
        subject, names = run.record.name, TRAINED
    else:
        config = resolve_config(["--arch", flags.arch])
        module = build_network(PRESETS.get(flags.arch, flags.arch), config["model"]).eval()
        precision, subject, names = config["trainer"]["precision"], flags.arch, UNTRAINED
        loader = noise(flags.images, config["data"]["eval_batch_size"] or eval_batch_size(device))
    number_format: Any = flags.precision or precision
    fabric = Fabric(
        accelerator=flags.device,
        devices=1,
        precision=resolve_precision(number_format, flags.device),
    )
    network = fabric.setup_module(module)
    images, labels = (x[: flags.images].to(device) for x in (loader.images, loader.labels))
    loader = replace(loader, images=images, labels=labels)

    answers: dict[str, list[Tensor]] = {}

    def answer(name: str, way: nn.Module) -> None:
        answers[name] = [way(images) for images, _ in loader]

    ways = {
        name: STRATEGIES[name].build({"raw": network}, loader.mean, loader.std) for name in names
    }
    sides = {name: partial(answer, name, way) for name, way in ways.items()}
    seconds = alternate(sides, flags.repeats, fabric.device)

    predictions = {name: torch.cat(batches) for name, batches in answers.items()}
    rows = []
    for name, times in seconds.items():
        threshold = STRATEGIES[name].threshold
        over_plain = ratio(times, seconds[PLAIN])
        right = predictions[name].argmax(1) == loader.labels
        rows.append(
            {
                "network": subject,
                "precision": fabric.strategy.precision.precision,
                "strategy": name,
                "images": len(loader.images),
                "split": split,
                "seconds": times,
                "images_per_second": len(loader.images) / median(times),
                "over_plain": over_plain.median,
                "over_plain_low": over_plain.low,
                "over_plain_high": over_plain.high,
                "unsure": share(is_unsure(predictions[PLAIN], threshold)) if threshold else None,
                "accuracy": share(right) if split == "val" else None,
            }
        )
    return rows


def noise(count: int, batch_size: int) -> EvalLoader:
    """Random pixels: times do not depend on the pixels."""
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    labels = torch.zeros(count, dtype=torch.int64)
    return EvalLoader(
        images, labels, batch_size, torch.tensor(CIFAR10_MEAN), torch.tensor(CIFAR10_STD)
    )


def share(true: Tensor) -> float:
    """The share of true values in bool (N,)."""
    return true.double().mean().item()


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    of = {"val": "validation images", "test": "test images", None: "images of noise"}
    row = rows[0]
    shown = Table(
        title=f"{row['network']} in evaluation: {row['images']:,} {of[row['split']]}, "
        f"{row['precision']}",
        caption="Medians, and ratios with their range over the rounds. Unsure: the share of images "
        "that get more than one view.",
    )
    shown.add_column("strategy")
    for column in ("images/s", "time over plain", "unsure", "validation accuracy"):
        shown.add_column(column, justify="right")
    for row in rows:
        over_plain = Ratio(row["over_plain"], row["over_plain_low"], row["over_plain_high"])
        shown.add_row(
            row["strategy"],
            f"{row['images_per_second']:,.0f}",
            str(over_plain),
            "" if row["unsure"] is None else f"{row['unsure']:.1%}",
            "" if row["accuracy"] is None else f"{row['accuracy']:.2%}",
        )
    return shown
