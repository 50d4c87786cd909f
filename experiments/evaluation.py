"""From the checkpoints of a run to logits and scores."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from experiments.record import Score
from lightning_modules.classifier import ImageClassifier

CLASSES = 10


@dataclass(frozen=True)
class Weights:
    """One set of a network's weights, and where it comes from."""

    name: str
    state: dict[str, Any]
    checkpoint: str
    epoch: int


def load_weights(folder: Path, name: str) -> Weights | None:
    """The raw, "ema" or "swa" weights of a run: the best on validation, else the last.

    None where the run has none of them, as when averaging never began.
    """
    best = folder / ("best.ckpt" if name == "raw" else f"best_{name}.ckpt")
    path = best if best.exists() else folder / "last.ckpt"
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if name == "raw":
        prefix = "network."
        state = {
            key.removeprefix(prefix): value
            for key, value in checkpoint["state_dict"].items()
            if key.startswith(prefix)
        }
    else:
        callback = checkpoint["callbacks"].get(name.upper())
        if not callback or not callback["updates"]:
            return None
        state = callback["average"]
    # A checkpoint at an epoch's end is written before that epoch is counted.
    return Weights(name, state, path.name, checkpoint["epoch"] + 1)


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
        accuracy=multiclass_accuracy(logits, labels, CLASSES, average="micro").item(),
        nll=F.cross_entropy(logits, labels).item(),
        ece=calibration.item(),
        images=len(labels),
        checkpoint=weights.checkpoint,
        epoch=weights.epoch,
    )
