"""Checks of hyper-parameters, batches and checkpoints for all architectures."""

from collections.abc import Mapping
from math import isinf
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_modules.optimizers import OptimizerName, Schedule

CompileMode = Literal["auto", "graph", "reduce-overhead", "max-autotune"]

#: hyper-parameter -> lower bound, upper bound, and a description of the allowed values
RANGES: dict[str, tuple[float, float, str]] = {
    "lr": (0, float("inf"), "above 0"),
    "momentum": (0, 1, "in [0, 1)"),
    "weight_decay": (0, float("inf"), "0 or more"),
    "rising": (0, 1, "in [0, 1), a share of training"),
    "warmup": (0, 1, "in [0, 1), a share of training"),
    "warmup_lr": (0, float("inf"), "0 or more"),
    "gamma": (0, 1, "above 0 and at most 1"),
    "bias_lr_factor": (0, float("inf"), "above 0"),
    "muon_lr": (0, float("inf"), "above 0"),
    "muon_momentum": (0, 1, "in [0, 1)"),
    "muon_steps": (1, float("inf"), "1 or more"),
    "label_smoothing": (0, 1, "in [0, 1)"),
    "jsd_weight": (0, float("inf"), "0 or more"),
}


def check_hyperparameters(hparams: Mapping[str, Any], classifier: str, normalises: bool) -> None:
    """Raise ValueError for a wrong hyper-parameter, with its name and value.

    `classifier` is the name of the class. `normalises` says whether a normalisation follows each of
    its convolutions, which Muon needs.
    """
    for name, (low, high, expected) in RANGES.items():
        above = hparams[name] > low if "above" in expected else hparams[name] >= low
        below = hparams[name] < high if ")" in expected or isinf(high) else hparams[name] <= high
        if not (above and below):  # NaN is neither
            raise ValueError(f"{name} must be {expected}, got {hparams[name]}")
    choices = {"schedule": Schedule, "optimizer": OptimizerName, "compile": CompileMode}
    for name, known in {**choices, "channels_last": Literal["auto"]}.items():
        value = hparams[name]
        if not isinstance(value, bool) and value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
    if hparams["rising"] == 0 and hparams["schedule"] in ("onecycle", "warmup_onecycle"):
        raise ValueError(f"rising must be above 0 if schedule is {hparams['schedule']}, got 0")
    milestones = list(hparams["milestones"])
    if milestones != sorted(x for x in milestones if 0 < x < 1):
        raise ValueError(f"milestones must be rising shares of training, got {milestones}")
    if not all(0 <= factor <= 1 for factor in hparams["triangle"]):
        raise ValueError(f"triangle must be two factors in [0, 1], got {hparams['triangle']}")
    if hparams["nesterov"] and hparams["momentum"] == 0:
        raise ValueError("nesterov needs a momentum above 0, got momentum 0")
    if hparams["optimizer"] == "muon" and not normalises:
        raise ValueError(
            f"optimizer must be 'sgd' for {classifier}, got 'muon', which needs a normalisation "
            "after each convolution"
        )
    if hparams["optimizer"] == "muon" and hparams["fused"]:
        raise ValueError("fused must be False if optimizer is 'muon', got True")


def check_batch(images: Tensor, targets: Tensor | None = None, *, classes: int) -> None:
    """Raise ValueError for wrong dtypes and for labels out of range.

    Images must be floats. The range of labels is checked on the CPU only, because a GPU would have
    to wait. Our data module checks it once, when it reads the files.
    """
    if not images.is_floating_point():
        raise ValueError(f"images must be normalised floats, got {images.dtype}")
    if targets is None or targets.is_floating_point():
        return
    if targets.dtype != torch.int64:
        raise ValueError(f"labels must be int64, or floats if they are soft, got {targets.dtype}")
    if targets.is_cpu and len(targets):
        low, high = map(int, targets.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"labels must be from 0 to {classes - 1}, got {low} to {high}")


def check_checkpoint(
    checkpoint: Mapping[str, Any], architecture: str, state: Mapping[str, Tensor]
) -> None:
    """Raise MisconfigurationException for a checkpoint of another network.

    `architecture` and `state` are the class name and the `state_dict` of the classifier.
    """
    saved = checkpoint.get("architecture")
    if saved != architecture:
        raise MisconfigurationException(
            f"the checkpoint is of {saved}, the network is {architecture}"
        )
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    found = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    if found != shapes:
        name = min(n for n in shapes.keys() | found.keys() if shapes.get(n) != found.get(n))
        raise MisconfigurationException(
            f"the checkpoint is of a {saved} with other hyper-parameters: {name} has shape "
            f"{found.get(name)} there and {shapes.get(name)} here"
        )
