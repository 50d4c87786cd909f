"""Compute the logits and scores of a run's networks."""

import shlex
import sys
from collections.abc import Collection, Iterable, Mapping
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

from datamodules.normalisation import eval_batch_size
from datamodules.tensor_loader import EvalLoader
from experiments.console import track
from experiments.inference.finished import FinishedRun, Weights
from experiments.presets import Precision
from experiments.records.provenance import origin
from experiments.records.record import Calibration, Score, StrategyScore
from experiments.training.machine import now, resolve_precision
from lightning_modules.classifier import ImageClassifier
from lightning_modules.layers.routing import gates_of
from lightning_modules.prediction import log_probabilities, see

#: images for the time of a strategy
TIMED = 1_000


def predict(
    trainer: Trainer, module: ImageClassifier, weights: Weights, loader: Iterable[Any]
) -> Tensor:
    """Return logits float32 (N, C) on the CPU for all images of a loader."""
    module.network.load_state_dict(weights.state)
    batches = trainer.predict(module, dataloaders=loader)
    assert batches is not None
    return torch.cat([batch.cpu() for batch in batches])  # type: ignore[union-attr]


def share_of_blocks(
    trainer: Trainer, module: ImageClassifier, weights: Weights, loader: Iterable[Any]
) -> float | None:
    """Return the share of gated blocks that a loader's images use, or None."""
    gates = gates_of(module.network)
    if not gates:
        return None
    used: list[Tensor] = []
    hooks = [
        gate.register_forward_hook(lambda *arguments: used.append(arguments[2].flatten()))
        for gate in gates
    ]
    # A compiled network would ignore the hooks.
    with torch.compiler.set_stance("force_eager"):
        predict(trainer, module, weights, loader)
    for hook in hooks:
        hook.remove()
    return torch.cat(used).double().mean().item()


def score(logits: Tensor, labels: Tensor, weights: Weights) -> Score:
    """Compute accuracy, NLL and calibration error of logits (N, C)."""
    probabilities = logits.softmax(dim=1)
    classes = logits.shape[1]
    calibration = multiclass_calibration_error(probabilities, labels, classes, n_bins=15, norm="l1")
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
    """Open networks by name; also return the device and the precision.

    `wanted` maps names to runs and their kind of weights. By default a network computes in the
    precision of its training.
    """
    fabrics: dict[Any, Fabric] = {}
    networks: dict[str, nn.Module] = {}
    for name, (run, weights) in wanted.items():
        wanted_precision: Any = precision or run.record.precision
        if wanted_precision not in fabrics:
            chosen = resolve_precision(wanted_precision, "auto")
            fabrics[wanted_precision] = Fabric(devices=1, precision=chosen)
        networks[name] = fabrics[wanted_precision].setup_module(run.network(weights))
    # A CPU may use another precision than the wanted one, because fp16 needs a GPU.
    taken = {fabric.strategy.precision.precision for fabric in fabrics.values()}
    return networks, fabrics.popitem()[1].device, ", ".join(sorted(taken))


def open_images(run: FinishedRun, root: str | None, device: torch.device) -> dict[str, EvalLoader]:
    """Return the loaders "val" and "test" of the splits that the run's data have.

    Images are on the CPU, in batches for the device.
    """
    data = run.data(root)
    data.hparams["eval_batch_size"] = data.hparams["eval_batch_size"] or eval_batch_size(device)
    data.setup("validate")
    data.setup("test")
    loaders = {"val": data.val_dataloader()}
    if data.data_set.has_test:
        loaders["test"] = data.test_dataloader()
    return {split: loader for split, loader in loaders.items() if loader}


@torch.inference_mode()
def look(
    networks: Mapping[str, nn.Module],
    views: Mapping[str, Collection[str]],
    loader: EvalLoader,
    device: torch.device,
    name: str = "",
) -> dict[str, dict[str, Tensor]]:
    """Return log-probabilities float32 (N, C) on the CPU by network and view.

    `views` names the views of each network. With a `name` it shows the progress.
    """
    different = dict.fromkeys(view for of_network in views.values() for view in of_network)
    mean, std = loader.mean.to(device), loader.std.to(device)
    batches: dict[str, dict[str, list[Tensor]]] = {
        name: {view: [] for view in views[name]} for name in networks
    }
    for images, _ in track(loader, name, len(loader)) if name else loader:
        on_device = images.to(device)
        for view in different:
            viewed = see(on_device, view, mean, std)
            for key, network in networks.items():
                if view not in views[key]:
                    continue
                batches[key][view].append(log_probabilities(network(viewed)).cpu())
    return {
        name: {view: torch.cat(parts) for view, parts in by_view.items()}
        for name, by_view in batches.items()
    }


def provenance(run: FinishedRun, device: torch.device, precision: str) -> dict[str, Any]:
    """Return the fields that the records of an evaluation and of a shift share."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "source": run.record.source,
        **origin(device),
        "precision": precision,
    }


def calibration(logits: Tensor, labels: Tensor) -> Calibration:
    """Compute the calibration of logits (N, C) for labels int64 (N,), in 64 bits.

    The classwise error is the mean over classes of the calibration error of a class's probability
    (Nixon et al. 2019, Kull et al. 2019).
    """
    logits = logits.double()
    probabilities = logits.softmax(dim=1)
    classes = logits.shape[1]
    is_label = F.one_hot(labels, classes)
    by_class = zip(probabilities.T.contiguous(), is_label.T.contiguous(), strict=True)
    classwise = [binary_calibration_error(p, y, n_bins=15, norm="l1") for p, y in by_class]
    return Calibration(
        nll=F.cross_entropy(logits, labels).item(),
        brier=(probabilities - is_label).square().sum(dim=1).mean().item(),
        ece=multiclass_calibration_error(
            probabilities, labels, classes, n_bins=15, norm="l1"
        ).item(),
        classwise_ece=torch.stack(classwise).mean().item(),
    )


def measure(predictions: Tensor, labels: Tensor, temperature: float | None) -> dict[str, Any]:
    """Measure log-probabilities (N, C), also divided by a temperature."""
    return {
        "accuracy": (predictions.argmax(dim=1) == labels).double().mean().item(),
        "as_it_is": calibration(predictions, labels),
        "fitted": calibration(predictions / temperature, labels) if temperature else None,
    }


def score_strategy(
    predictions: Tensor, baseline: Tensor, labels: Tensor, temperature: float | None
) -> StrategyScore:
    """Score log-probabilities (N, C) of a strategy against a baseline."""
    correct = predictions.argmax(dim=1) == labels
    plain = baseline.argmax(dim=1) == labels
    low, high = paired_bootstrap(correct, plain)
    return StrategyScore(
        gain=(correct.double() - plain.double()).mean().item(),
        gain_low=low,
        gain_high=high,
        images=len(labels),
        **measure(predictions, labels, temperature),
    )


@torch.inference_mode()
def seconds_per_1000(module: nn.Module, loader: EvalLoader, device: torch.device) -> float:
    """Measure a module's seconds for 1,000 images that are on the device."""
    batches = [images.to(device) for images, _ in islice(loader, ceil(TIMED / loader.batch_size))]
    start = now(device)
    for images in batches:
        module(images)
    return (now(device) - start) * 1_000 / sum(map(len, batches))


def paired_bootstrap(correct: Tensor, baseline: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the mean of `correct - baseline`.

    It resamples images (Efron and Tibshirani 1993). `correct` and `baseline` are bool (N,) for the
    same images. The interval is for other test images, not for other training runs.
    """
    difference = correct.numpy().astype(np.int64) - baseline.numpy()
    values, counts = np.unique(difference, return_counts=True)
    # The counts of the three values in N draws with replacement have a multinomial distribution, so
    # N random numbers per resample are not necessary.
    generator = np.random.default_rng(0)
    draws = generator.multinomial(len(difference), counts / len(difference), size=10_000)
    tail = (1 - level) / 2
    low, high = np.quantile(draws @ values / len(difference), [tail, 1 - tail])
    return float(low), float(high)
