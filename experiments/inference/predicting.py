"""Predict classes of unlabelled images with a finished run or an exported network."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from datamodules.normalisation import eval_batch_size, normalise
from experiments.console import UserError, track
from experiments.inference.finished import FinishedRun, is_export, open_network, open_run
from experiments.inference.strategies import PLAIN, Strategy
from experiments.records.images import ImageFacts


@dataclass(frozen=True)
class Predictor:
    """The networks of a finished run, or an exported network."""

    name: str
    images: ImageFacts
    default: str  # the strategy if the user names none
    network: Callable[[str], nn.Module]  # by the name of its weights


def open_predictor(folder: Path) -> Predictor:
    """Open a finished run or an exported folder; UserError for any other folder."""
    if not is_export(folder):
        run = open_run(folder)
        return Predictor(run.record.name, run.images, _best_strategy(run), run.network)
    exported = open_network(folder)
    default = PLAIN
    if (folder / "result.json").exists():
        run = open_run(folder)
        # The single network has the names of raw weights: flip, which has the views of ema+flip.
        default = _best_strategy(run).removeprefix(run.record.weights[0]).lstrip("+") or PLAIN

    def network(weights: str) -> nn.Module:
        if weights != "raw":
            raise UserError(f"{folder} has a single network: name a --strategy without {weights}")
        return exported.network

    return Predictor(folder.resolve().name, exported.images, default, network)


def _best_strategy(run: FinishedRun) -> str:
    """Return the best known strategy on validation."""
    evaluation = run.evaluation()
    if evaluation and evaluation.chosen:
        return evaluation.chosen
    return PLAIN if run.record.selected in ("raw", None) else run.record.selected


def probabilities(predictor: Predictor, strategy: Strategy, images: Tensor) -> Tensor:
    """Return probabilities float32 (N, C) on the CPU of images uint8 (N, 3, H, W)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = predictor.images
    mean, std = (torch.tensor(x, device=device) for x in (facts.mean, facts.std))
    networks = {name: predictor.network(name) for name in strategy.networks}
    network = strategy.build(networks, mean, std)
    batches = images.split(eval_batch_size(device))
    with torch.inference_mode():
        answers = [
            network(normalise(batch.to(device), mean, std)).cpu()
            for batch in track(batches, "batches of images", len(batches))
        ]
    return torch.cat(answers).exp()
