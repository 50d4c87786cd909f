"""Checks of the Trainer's flags, before a run writes its first file.

Lightning reports some of these mistakes after an epoch, some with a traceback, and some never.
"""

import copy
import logging
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from experiments.console import near
from experiments.training.length import batches_per_epoch
from experiments.training.trainer import Trainer

#: flag that another part of this project decides -> allowed values, and the reason
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "limit_test_batches": ((None,), "every image is evaluated"),
    "limit_predict_batches": ((None,), "every image is evaluated"),
    "overfit_batches": ((0,), "epochs differ in their images; limit_train_batches shortens them"),
    "logger": ((None,), "curves go to metrics.csv, and to Weights & Biases as --wandb says"),
    "default_root_dir": ((None,), "--output and --name choose the folder"),
    "enable_checkpointing": ((None, True), "evaluation reads checkpoints"),
    "barebones": ((False,), "a run is logged and evaluated"),
    "fast_dev_run": ((False, 0), "--quick is a short run that is evaluated"),
}
#: flag -> its smallest value
LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "num_nodes": 1,
}


def refuse_trainer_flags(config: dict[str, Any]) -> None:
    """Reject wrong values: ValueError, which names the flag and its value."""
    trainer = config["trainer"]
    for name, (usual, reason) in REFUSED.items():
        if trainer[name] not in usual:
            raise ValueError(f"--trainer.{name} cannot be set: {reason}")
    for name, least in LEAST.items():
        if trainer[name] is not None and trainer[name] < least:
            raise ValueError(f"--trainer.{name} must be {least} or more, got {trainer[name]}")
    for name in ("max_epochs", "max_steps"):
        if trainer[name] is not None and (trainer[name] == 0 or trainer[name] < -1):
            raise ValueError(
                f"--trainer.{name} must be 1 or more, or -1 for no limit, got {trainer[name]}"
            )
    if trainer["max_epochs"] in (None, -1) and trainer["max_steps"] == -1:
        raise ValueError(
            "--trainer.max_epochs or --trainer.max_steps must be 1 or more, because schedules need "
            f"a length of training: got {trainer['max_epochs']} and -1"
        )
    _refuse_batches(config)
    try:
        Timer(trainer["max_time"])
    except MisconfigurationException as error:
        raise ValueError(
            f"--trainer.max_time must be DD:HH:MM:SS, got {trainer['max_time']}"
        ) from error
    available = {
        "gpu": torch.cuda.is_available() or torch.backends.mps.is_available(),
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(trainer["accelerator"], True):
        raise ValueError(
            f"--trainer.accelerator {trainer['accelerator']}: this machine has none, or PyTorch "
            "cannot use it; auto uses the available device"
        )


def _refuse_batches(config: dict[str, Any]) -> None:
    """Reject limits that leave no batch of an epoch: ValueError."""
    trainer, data = config["trainer"], config["data"]
    for split, needed in (("train", True), ("val", data["val_fraction"] > 0)):
        limit = trainer[f"limit_{split}_batches"]
        if needed and limit == 0:
            raise ValueError(f"--trainer.limit_{split}_batches {limit} leaves no batch of an epoch")
    interval, batches = trainer["val_check_interval"], batches_per_epoch(config)
    if isinstance(interval, float):
        wrong = not 0 < interval <= 1
    else:
        within = isinstance(interval, int) and trainer["check_val_every_n_epoch"] is not None
        wrong = within and not 1 <= interval <= batches
    if wrong:
        raise ValueError(
            f"--trainer.val_check_interval must be from 1 to the {batches} batches of an epoch, or "
            f"a share of it in (0, 1], got {interval}"
        )


def refuse_monitors(
    callbacks: Sequence[Callback], suffixes: Collection[str], validated: bool
) -> None:
    """Reject a user's callback that monitors a metric of no run: ValueError.

    `suffixes` are the names of the validated weights, such as "" and "_ema"; `validated` is false
    if the run has no validation images.
    """
    metrics = [f"val/{name}{suffix}" for name in ("loss", "acc") for suffix in suffixes]
    metrics += ["train/loss", "train/acc", "train/acc_soft"]
    # A user's own callback may log the metric that another one monitors.
    known = all(type(callback).__module__.startswith("lightning.") for callback in callbacks)
    for callback in callbacks:
        name, monitor = type(callback).__name__, getattr(callback, "monitor", None)
        if monitor and monitor.startswith("val/") and not validated:
            raise ValueError(
                f"--trainer.callbacks: {name} monitors {monitor}, but --data.val_fraction 0 leaves "
                "no validation images: set it above 0 or drop the monitor"
            )
        if isinstance(callback, EarlyStopping) and known and callback.monitor not in metrics:
            hint = near(callback.monitor, metrics)
            raise ValueError(
                f"--trainer.callbacks: {name} monitors {monitor}{hint}, but a "
                f"run logs {', '.join(metrics)}"
            )


def try_trainer(arguments: Mapping[str, Any], given: Collection[str]) -> Trainer:
    """Make a Trainer that writes nothing, to check its `arguments`.

    ValueError if Lightning rejects them. The message begins with the flag of the command line,
    `given`, that Lightning's message names.
    """
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    without = {
        "logger": False,
        "callbacks": None,
        "max_time": None,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    # Two Trainers cannot share a strategy.
    trial = copy.deepcopy({k: v for k, v in arguments.items() if k not in without}) | without
    try:
        logger.setLevel(logging.ERROR)  # the real Trainer logs it again
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Trainer(**trial)
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        message = str(error)
        flags = {text.partition("=")[0] for text in given if text.startswith("--trainer.")}
        names = [flag.removeprefix("--trainer.") for flag in flags]
        about = [name for name in names if re.search(rf"\b{re.escape(name)}\b", message)]
        raise ValueError(
            f"--trainer.{about[0]}: {message}" if len(about) == 1 else message
        ) from error
    finally:
        logger.setLevel(level)
