"""Where the curves of a run go: always a CSV file, and W&B where it is wanted."""

import csv
import importlib.util
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

WandbMode = Literal["offline", "online", "disabled"]


def csv_logger(folder: Path, keep_steps: int = 0) -> CSVLogger:
    """A logger into `folder/metrics.csv` that keeps what was logged before step `keep_steps`.

    Lightning's logger deletes the file of an earlier launch: its rows are logged again, those apart
    that the resumed run is going to repeat.
    """
    path = folder / "metrics.csv"
    rows: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < keep_steps]
    logger = CSVLogger(folder, name="", version="")
    for row in rows:
        step = int(row.pop("step"))
        logger.log_metrics({key: float(value) for key, value in row.items() if value}, step)
    if rows:
        logger.save()
    return logger


def wandb_logger(folder: Path, mode: WandbMode, config: dict[str, Any]) -> WandbLogger | None:
    """A W&B logger that continues the run of an earlier launch; None where it is off.

    Offline needs no account and no network. The package may be missing, unless W&B was asked for by
    `online`: MisconfigurationException then, as where W&B does not accept the user.
    """
    if mode == "disabled":
        return None
    if importlib.util.find_spec("wandb") is None:
        if mode == "online":
            raise MisconfigurationException("--wandb online needs the package wandb: install it")
        rank_zero_warn("wandb is not installed: the curves go to metrics.csv alone.")
        return None
    import wandb  # noqa: PLC0415  a machine may be without it

    identity = folder / "wandb_id.txt"
    if not identity.exists():
        identity.write_text(uuid4().hex[:8])
    logger = WandbLogger(
        project="sub5m",
        name=folder.name,
        id=identity.read_text(),
        save_dir=folder,
        offline=mode == "offline",
        resume="allow",
        settings=wandb.Settings(silent=mode == "offline"),
    )
    try:
        logger.experiment.config.update(config, allow_val_change=True)
    except wandb.Error as error:
        raise MisconfigurationException(
            f"--wandb online: {str(error).rstrip('.')}. Log in with `wandb login`, or use --wandb "
            "offline"
        ) from error
    return logger


def log_media(
    logger: WandbLogger, grid: Path, logits: Tensor, labels: Tensor, classes: tuple[str, ...]
) -> None:
    """Send the grid of augmented images and the confusion matrix of one split's logits to W&B."""
    import wandb  # noqa: PLC0415  a machine may be without it

    predictions = logits.argmax(dim=1)
    logger.experiment.log(
        {
            "augmented training images": wandb.Image(str(grid)),
            "confusion matrix": wandb.plot.confusion_matrix(
                y_true=labels.tolist(), preds=predictions.tolist(), class_names=list(classes)
            ),
        }
    )
