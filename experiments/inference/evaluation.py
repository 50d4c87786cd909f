"""Compute the logits and scores of a run's networks."""

import time
from collections.abc import Iterable, Mapping
from itertools import islice
from math import ceil
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from datamodules.tensor_loader import EvalLoader
from experiments.console import track
from experiments.inference.finished import FinishedRun, Weights
from experiments.records.record import Calibration, Score, StrategyScore
from experiments.training.devices import synchronise
from experiments.training.trainer import Precision, resolve_precision
from lightning_modules.classifier import ImageClassifier
from lightning_modules.prediction import log_probabilities, see

CLASSES = 10
#: images for the time of a strategy
TIMED = 1_000


def predict(
    trainer: Trainer, module: ImageClassifier, weights: Weights, loader: Iterable[Any]
) -> Tensor:
    """Logits float32 (N, 10), on the CPU, of every image of a loader."""
    module.network.load_state_dict(weights.state)
    batches = trainer.predict(module, dataloaders=loader)
    assert batches is not None
    return torch.cat([batch.cpu() for batch in batches])  # type: ignore[union-attr]


def score(logits: Tensor, labels: Tensor, weights: Weights) -> Score:
    """Accuracy, negative log-likelihood and calibration error of logits (N, 10)."""
    probabilities = logits.softmax(dim=1)
    calibration = multiclass_calibration_error(probabilities, labels, CLASSES, n_bins=15, norm="l1")
    return Score(
        accuracy=(logits.argmax(dim=1) == labels).double().mean().item(),
        nll=F.cross_entropy(logits, labels).item(),
        ece=calibration.item(),
        images=len(labels),
        checkpoint=weights.checkpoint,
        epoch=weights.epoch,
    )


def open_networks(
    wanted: Mapping[str, tuple[FinishedRun, str]], precision: Precision | None
) -> tuple[dict[str, nn.Module], torch.device, str]:
    """Open networks by name, each with the wanted run and weights; also device and precision.

    By default a network computes in the precision of its training.
    """
    fabrics: dict[Any, Fabric] = {}
    networks: dict[str, nn.Module] = {}
    for name, (run, weights) in wanted.items():
        wanted_precision: Any = precision or run.record.precision
        if wanted_precision not in fabrics:
            chosen = resolve_precision(wanted_precision, "auto")
            fabrics[wanted_precision] = Fabric(devices=1, precision=chosen)
        networks[name] = fabrics[wanted_precision].setup_module(run.network(weights))
    # A CPU may take another precision than the wanted one: fp16 needs a GPU.
    taken = {fabric.strategy.precision.precision for fabric in fabrics.values()}
    return networks, fabrics.popitem()[1].device, ", ".join(sorted(taken))


def open_images(run: FinishedRun, root: str | None) -> dict[str, EvalLoader]:
    """Loaders of the run's validation images, if it has any, and test images: "val" and "test"."""
    data = run.data(root)
    data.prepare_data()
    data.setup("validate")
    data.setup("test")
    loaders = {"val": data.val_dataloader(), "test": data.test_dataloader()}
    return {split: loader for split, loader in loaders.items() if loader}


@torch.inference_mode()
def look(
    networks: Mapping[str, nn.Module],
    views: Iterable[str],
    loader: EvalLoader,
    device: torch.device,
    name: str = "",
) -> dict[str, dict[str, Tensor]]:
    """Log-probabilities float32 (N, 10), on the CPU, by network and view.

    With a `name` it shows the progress.
    """
    views = list(views)
    mean, std = loader.mean.to(device), loader.std.to(device)
    batches: dict[str, dict[str, list[Tensor]]] = {
        name: {view: [] for view in views} for name in networks
    }
    for images, _ in track(loader, name, len(loader)) if name else loader:
        on_device = images.to(device)
        for view in views:
            viewed = see(on_device, view, mean, std)
            for key, network in networks.items():
                batches[key][view].append(log_probabilities(network(viewed)).cpu())
    return {
        name: {view: torch.cat(parts) for view, parts in by_view.items()}
        for name, by_view in batches.items()
    }


def calibration(logits: Tensor, labels: Tensor) -> Calibration:
    """Calibration of logits or log-probabilities (N, 10) with labels int64 (N,), in 64 bits.

    Classwise: the calibration error of each class's probability, over all images, averaged over
    classes (Nixon et al. 2019, Kull et al. 2019).
    """
    logits = logits.double()
    probabilities = logits.softmax(dim=1)
    is_label = F.one_hot(labels, CLASSES)
    by_class = zip(probabilities.T.contiguous(), is_label.T.contiguous(), strict=True)
    classwise = [binary_calibration_error(p, y, n_bins=15, norm="l1") for p, y in by_class]
    return Calibration(
        nll=F.cross_entropy(logits, labels).item(),
        brier=(probabilities - is_label).square().sum(dim=1).mean().item(),
        ece=multiclass_calibration_error(
            probabilities, labels, CLASSES, n_bins=15, norm="l1"
        ).item(),
        classwise_ece=torch.stack(classwise).mean().item(),
    )


def score_strategy(
    predictions: Tensor, baseline: Tensor, labels: Tensor, temperature: float | None
) -> StrategyScore:
    """Score log-probabilities (N, 10) of a strategy against the baseline's."""
    correct = predictions.argmax(dim=1) == labels
    plain = baseline.argmax(dim=1) == labels
    low, high = paired_bootstrap(correct, plain)
    return StrategyScore(
        accuracy=correct.double().mean().item(),
        gain=(correct.double() - plain.double()).mean().item(),
        gain_low=low,
        gain_high=high,
        images=len(labels),
        as_it_is=calibration(predictions, labels),
        fitted=calibration(predictions / temperature, labels) if temperature else None,
    )


@torch.inference_mode()
def seconds_per_1000(module: nn.Module, loader: EvalLoader, device: torch.device) -> float:
    """Seconds of a module for 1,000 images, which are on the device before."""
    batches = [images.to(device) for images, _ in islice(loader, ceil(TIMED / loader.batch_size))]
    synchronise(device)
    start = time.perf_counter()
    for images in batches:
        module(images)
    synchronise(device)
    return (time.perf_counter() - start) * 1_000 / sum(map(len, batches))


def paired_bootstrap(
    correct: Tensor, baseline: Tensor, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of `correct - baseline`, by resampling images.

    `correct` and `baseline` are bool (N,), for the same images in the same order (Efron and
    Tibshirani 1993). The interval covers other test images, not other training runs.
    """
    difference = correct.numpy().astype(np.int64) - baseline.numpy()
    values, counts = np.unique(difference, return_counts=True)
    # The counts of the three values in N draws with replacement are multinomial: the same
    # distribution, without N random numbers for each resample.
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(difference), counts / len(difference), size=resamples)
    tail = (1 - level) / 2
    low, high = np.quantile(draws @ values / len(difference), [tail, 1 - tail])
    return float(low), float(high)
