"""A run that has finished, opened again: its record, its network with its weights, its images."""

from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import CIFAR10DataModule
from experiments.evaluation import load_weights
from experiments.record import Record, read_record
from lightning_modules import ARCHITECTURES
from lightning_modules.classifier import ImageClassifier


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run and its record."""

    folder: Path
    record: Record

    def module(self, weights: str = "raw") -> ImageClassifier:
        """The classifier in evaluation mode with the run's "raw", "ema" or "swa" weights.

        MisconfigurationException, in one line, where the run has no such weights.
        """
        found = load_weights(self.folder, weights)
        if found is None:
            raise MisconfigurationException(f"{self.folder} has no {weights} weights")
        module = ARCHITECTURES[self.record.arch](**self.record.config["model"] | {"compile": False})
        module.network.load_state_dict(found.state)
        return module.eval()

    def data(self, root: str | None = None) -> CIFAR10DataModule:
        """The run's data with its validation split, from another folder where one is given."""
        arguments = dict(self.record.config["data"])
        return CIFAR10DataModule(**arguments | {"root": root or arguments["root"]})


def open_run(folder: Path) -> FinishedRun:
    """MisconfigurationException, in one line, where the folder holds no finished run."""
    path = folder / "result.json"
    if not folder.is_dir():
        raise MisconfigurationException(f"{folder} is not a folder: name the folder of a run")
    if not path.exists():
        raise MisconfigurationException(f"{folder} holds no finished run: there is no {path.name}")
    try:
        return FinishedRun(folder, read_record(path))
    except (TypeError, ValueError, KeyError) as error:
        raise MisconfigurationException(
            f"{path} is not a record of this version: {error}"
        ) from None
