"""What a run goes on from."""

from pathlib import Path
from typing import Any

import torch

from experiments.training.launch import fail
from lightning_modules.classifier import ImageClassifier
from lightning_modules.optimizers import OPTIMIZER_HPARAMS


def read_checkpoint(path: Path, model: ImageClassifier) -> dict[str, Any]:
    """A checkpoint that fits a network and its optimizer; ends the process where it does not.

    MisconfigurationException, in one line, where it is of another network.
    """
    try:
        checkpoint = torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # which one depends on the bytes that unpickling meets
        fail(f"--ckpt_path {path} is not a checkpoint ({type(error).__name__})")
    if not isinstance(checkpoint, dict):
        fail(f"--ckpt_path {path} is not a checkpoint but a {type(checkpoint).__name__}")
    model.on_load_checkpoint(checkpoint)
    if "optimizer_states" not in checkpoint:
        fail(f"--ckpt_path {path} holds weights alone: name the last.ckpt of its run")
    theirs = checkpoint["hyper_parameters"]
    for name in OPTIMIZER_HPARAMS:
        # The optimizer's state holds these, and would go on with them whatever the flag says.
        if name in theirs and theirs[name] != (ours := model.hparams[name]):
            fail(f"--model.{name} must stay {theirs[name]}, as in --ckpt_path {path}, got {ours}")
    return checkpoint
