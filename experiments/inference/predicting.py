"""Predict classes of unlabelled images with a finished run."""

import torch
from torch import Tensor

from datamodules.normalisation import MEAN, STD, eval_batch_size, normalise
from experiments.console import track
from experiments.inference.finished import FinishedRun
from experiments.inference.strategies import PLAIN, Strategy


def default_strategy(run: FinishedRun) -> str:
    """Return the best known strategy on validation."""
    evaluation = run.evaluation()
    if evaluation and evaluation.chosen:
        return evaluation.chosen
    return PLAIN if run.record.selected in ("raw", None) else run.record.selected


def probabilities(run: FinishedRun, strategy: Strategy, images: Tensor) -> Tensor:
    """Return probabilities float32 (N, 10) on the CPU of images uint8 (N, 3, 32, 32)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    networks = {name: run.network(name) for name in strategy.networks}
    network = strategy.build(networks, mean, std)
    batches = images.split(eval_batch_size(device))
    with torch.inference_mode():
        answers = [
            network(normalise(batch.to(device), mean, std)).cpu()
            for batch in track(batches, "batches of images", len(batches))
        ]
    return torch.cat(answers).exp()
