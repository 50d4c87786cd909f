"""A run that has finished, opened again: its record, its network with its weights, its images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from torch import nn

from datamodules import CIFAR10DataModule
from datamodules.tensor_loader import EvalLoader
from experiments.console import UserError
from experiments.inference.evaluation import load_weights
from experiments.presets import EXPERIMENTS
from experiments.records.record import (
    Evaluation,
    Record,
    Shift,
    read_evaluation,
    read_record,
    read_shift,
)
from experiments.training.trainer import Precision, resolve_precision
from lightning_modules.classifier import ImageClassifier

T = TypeVar("T")

#: where a run's folder has its answers to CIFAR-10-C, by where the corrupted images come from
SHIFT_FILES = {"generated": "shift.json", "published": "shift_published.json"}


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run and its record."""

    folder: Path
    record: Record

    def module(self, weights: str = "raw") -> ImageClassifier:
        """The classifier in evaluation mode with the run's "raw", "ema" or "swa" weights.

        UserError, in one line, where the run has no such weights.
        """
        try:
            found = load_weights(self.folder, weights)
        except Exception as error:  # which one depends on the bytes that unpickling meets
            raise UserError(
                f"the {weights} weights in {self.folder} cannot be read ({type(error).__name__})"
            ) from None
        if found is None:
            raise UserError(f"{self.folder} has no {weights} weights")
        module = EXPERIMENTS[self.record.arch](**self.record.config["model"] | {"compile": False})
        try:
            module.network.load_state_dict(found.state)
        except RuntimeError:
            raise UserError(
                f"{self.folder / found.checkpoint} does not hold the weights of the "
                f"{self.record.arch} that {self.record.name} trained"
            ) from None
        return module.eval()

    def data(self, root: str | None = None) -> CIFAR10DataModule:
        """The run's data with its validation split, from another folder where one is given."""
        arguments = dict(self.record.config["data"])
        # Where `source` was auto, this machine may decide otherwise than that of the run.
        given = {"root": root or arguments["root"], "source": self.record.source}
        return CIFAR10DataModule(**arguments | given)

    def evaluation(self) -> Evaluation | None:
        """What `evaluate.py` wrote of this run alone; None where it has not.

        UserError, in one line, where it is not of this version.
        """
        path = self.folder / "evaluation.json"
        return read(read_evaluation, path) if path.exists() else None

    def shift(self) -> Shift | None:
        """What `evaluate.py --shift` wrote of this run; None where it has not.

        Of the published corruptions where there is that, else of generated ones.
        UserError, in one line, where it is not of this version.
        """
        paths = [self.folder / SHIFT_FILES[kind] for kind in ("published", "generated")]
        return next((read(read_shift, path) for path in paths if path.exists()), None)


def open_run(folder: Path) -> FinishedRun:
    """UserError, in one line, where the folder holds no finished run."""
    path = folder / "result.json"
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the folder of a run")
    if not path.exists():
        raise UserError(f"{folder} holds no finished run: there is no {path.name}")
    return FinishedRun(folder, read(read_record, path))


def open_networks(
    wanted: Mapping[str, tuple[FinishedRun, str]], precision: Precision | None
) -> tuple[dict[str, nn.Module], torch.device, str]:
    """Each run with the weights that are wanted of it, as a network, by name; device and precision.

    The networks compute in the given precision, by default in that of their training.
    """
    fabrics: dict[Any, Fabric] = {}
    networks: dict[str, nn.Module] = {}
    for name, (run, weights) in wanted.items():
        number_format: Any = precision or run.record.precision
        if number_format not in fabrics:
            chosen = resolve_precision(number_format, "auto")
            fabrics[number_format] = Fabric(devices=1, precision=chosen)
        networks[name] = fabrics[number_format].setup_module(run.module(weights))
    # A CPU does not do in fp16 what a GPU does: what was taken may not be what was asked for.
    taken = {fabric.strategy.precision.precision for fabric in fabrics.values()}
    return networks, fabrics.popitem()[1].device, ", ".join(sorted(taken))


def open_images(run: FinishedRun, root: str | None) -> dict[str, EvalLoader]:
    """The run's validation images, where it has any, and the test images, as "val" and "test"."""
    data = run.data(root)
    data.prepare_data()
    data.setup("validate")
    data.setup("test")
    loaders = {"val": data.val_dataloader(), "test": data.test_dataloader()}
    return {split: loader for split, loader in loaders.items() if loader}


def read(reader: Callable[[Path], T], path: Path) -> T:
    """What a reader makes of a file; UserError, in one line, for a refused one."""
    try:
        return reader(path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a record of this version: {type(error).__name__} {error}"
        ) from None
