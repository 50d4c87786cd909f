"""Networks without weights, for counting what is in them."""

from collections.abc import Mapping
from typing import Any

import torch

from experiments.training.presets import EXPERIMENTS
from lightning_modules.classifier import ImageClassifier


def on_meta(arch: str, hparams: Mapping[str, Any]) -> ImageClassifier:
    """What `--arch` trains with these hyper-parameters, on the meta device and not compiled."""
    with torch.device("meta"):
        return EXPERIMENTS[arch](**dict(hparams) | {"compile": False})
