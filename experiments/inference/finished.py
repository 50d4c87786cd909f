"""Open a finished run: its record, its networks and its data."""

import hashlib
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import datamodules
from datamodules.facts import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD
from datamodules.synthetic import SYNTHETIC_CLASSES
from experiments.console import UserError
from experiments.presets import PRESETS
from experiments.records.images import ImageFacts
from experiments.records.integrity import check_archive, check_checksums
from experiments.records.record import (
    Evaluation,
    Record,
    Shift,
    read_evaluation,
    read_record,
    read_shift,
)
from lightning_modules.networks import build_network

if TYPE_CHECKING:
    from datamodules import CIFAR10DataModule

#: the file of a run's results on CIFAR-10-C, by the origin of the corrupted images
SHIFT_FILES = {"generated": "shift.json", "published": "shift_published.json"}


@dataclass(frozen=True)
class Weights:
    """One set of a network's weights, and its origin."""

    name: str
    state: dict[str, Any]
    checkpoint: str
    epoch: int


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that identify the tensors of a state dict.

    They are the beginning of a SHA-256 of names and values. A checkpoint's own SHA-256 would differ
    between a resumed and an undisturbed training with the same weights.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def weights_file(folder: Path, name: str) -> Path:
    """Return the checkpoint with these weights: the best one, else the last one."""
    best = folder / ("best.ckpt" if name == "raw" else f"best_{name}.ckpt")
    return best if best.exists() else folder / "last.ckpt"


def load_weights(folder: Path, name: str) -> Weights | None:
    """Load a run's "raw", "ema" or "swa" weights: the best ones, else the last ones.

    None if the run has no such weights, for example if averaging never began.
    """
    path = weights_file(folder, name)
    check_archive(path)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    # A best file has averages as the module's weights, a whole checkpoint as a callback's state.
    if name == "raw" or "callbacks" not in checkpoint:
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
    # A checkpoint is written before its epoch is counted.
    return Weights(name, state, path.name, checkpoint["epoch"] + 1)


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run, or of its export, and its record."""

    folder: Path
    record: Record

    @property
    def architecture(self) -> str:
        """The name of the network; the record names the preset."""
        return PRESETS.get(self.record.arch, self.record.arch)

    def network(self, weights: str = "raw") -> nn.Module:
        """Build the network in evaluation mode with the run's weights of a kind.

        Raises UserError if the run, or its export, has no such weights.
        """
        found = self._weights(weights)
        if found is None:
            raise UserError(f"{self.folder} has no {weights} weights")
        # An export gets the memory format of its run, whose results it then repeats.
        network = build_network(self.architecture, self.record.config["model"])
        try:
            network.load_state_dict(found.state)
        except RuntimeError:
            raise UserError(
                f"{self.folder / found.checkpoint} does not hold the weights of the "
                f"{self.record.arch} that {self.record.name} trained"
            ) from None
        return network.eval()

    def _weights(self, name: str) -> Weights | None:
        if is_export(self.folder):
            if name not in self.record.weights:
                return None
            trained = open_network(self.folder)
            return Weights(
                name, trained.network.state_dict(), trained.file.name, self.record.epochs
            )
        try:
            return load_weights(self.folder, name)
        except UserError:
            raise
        except Exception as error:  # its class depends on the file's bytes
            raise UserError(
                f"the {name} weights in {self.folder} cannot be read ({type(error).__name__})"
            ) from None

    @property
    def images(self) -> ImageFacts:
        """The classes, the normalisation and the size of the run's images."""
        if self.record.images is not None:
            return self.record.images
        synthetic = self.record.source == "synthetic"
        classes = SYNTHETIC_CLASSES if synthetic else CIFAR10_CLASSES
        return ImageFacts(list(classes), list(CIFAR10_MEAN), list(CIFAR10_STD), 32)

    def data(self, root: str | None = None, download: bool = True) -> "CIFAR10DataModule":
        """Find the run's data with its split, by default in the same folder.

        Raises UserError, which names `--root`, if the files are missing or damaged, or if pictures
        of a folder have changed since the training.
        """
        # Not imported above, because prediction needs no Lightning.
        from lightning.pytorch.utilities.exceptions import MisconfigurationException

        from datamodules.datasets import SYNTHETIC_INSTEAD

        arguments = dict(self.record.config["data"])
        # If `source` was auto, this machine might choose another one.
        given: dict[str, Any] = {"root": root or arguments["root"], "source": self.record.source}
        given |= {"download": download and arguments["download"]}
        try:
            data = datamodules.CIFAR10DataModule(**arguments | given)
            data.prepare_data()
        except MisconfigurationException as error:
            line = str(error).removesuffix(SYNTHETIC_INSTEAD)  # the run decides the source
            raise UserError(line.replace("--data.root", "--root")) from None
        if data.data_set.digest != self.images.digest:
            raise UserError(
                f"{self.record.name} was not trained on the pictures in {data.root}: name the "
                "right folder with --root"
            )
        return data

    def evaluation(self) -> Evaluation | None:
        """Read the record of `evaluate.py` for this run; None if there is none.

        Raises UserError if it is invalid.
        """
        path = self.folder / "evaluation.json"
        return read_evaluation(path) if path.exists() else None

    def shift(self) -> Shift | None:
        """Read the record of `evaluate.py --shift` for this run; None if there is none.

        Published corruptions are preferred. Raises UserError if it is invalid.
        """
        paths = [self.folder / SHIFT_FILES[kind] for kind in ("published", "generated")]
        return next((read_shift(path) for path in paths if path.exists()), None)


def open_run(folder: Path) -> FinishedRun:
    """Open a finished run or an export; raise UserError for another folder."""
    path = folder / "result.json"
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the folder of a run")
    if not path.exists():
        raise UserError(f"{folder} holds no finished run: there is no {path.name}")
    return FinishedRun(folder, read_record(path))


@dataclass(frozen=True)
class TrainedNetwork:
    """A network in evaluation mode and 32 bits, its images, and its file."""

    network: nn.Module
    images: ImageFacts
    file: Path


def is_export(folder: Path) -> bool:
    """Whether a folder contains an exported network."""
    return (folder / "model.safetensors").exists()


def open_network(folder: Path) -> TrainedNetwork:
    """Open a finished run with its best weights on validation, or an exported folder.

    Raises UserError for any other folder.
    """
    if is_export(folder):
        return _open_export(folder)
    run = open_run(folder)
    weights = run.record.selected or "raw"
    return TrainedNetwork(run.network(weights), run.images, weights_file(folder, weights))


def _open_export(folder: Path) -> TrainedNetwork:
    from lightning_modules.pretrained import PretrainedClassifier

    check_checksums(folder, ("config.json", "model.safetensors"))
    try:
        with redirect_stdout(StringIO()):  # the library prints that it loads weights
            model = PretrainedClassifier.from_pretrained(folder, strict=True)
    except Exception as error:  # its class depends on the file's bytes
        raise UserError(
            f"the exported network in {folder} cannot be read ({type(error).__name__})"
        ) from None
    mean, std = model.mean.flatten().tolist(), model.std.flatten().tolist()
    images = ImageFacts(list(model.classes), mean, std, model.image_size)
    return TrainedNetwork(model.network.float(), images, folder / "model.safetensors")
