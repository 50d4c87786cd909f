"""Teachers of a training: from `--teacher` to networks."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules import CIFAR10DataModule
from experiments.console import UserError
from experiments.inference.finished import TrainedNetwork, open_network
from lightning_modules.distillation import Distillation

#: a teacher as the configuration names it: FOLDER@DIGEST
NAMED = re.compile(r"(.+)@([0-9a-f]{16})")


@dataclass(frozen=True)
class Teacher:
    """A teacher's folder, the digest of its weights, and its network."""

    folder: str
    digest: str
    trained: TrainedNetwork

    def __str__(self) -> str:
        return f"{self.folder}@{self.digest}"


def open_teacher(name: str) -> Teacher:
    """Open FOLDER, or FOLDER@DIGEST as a run's config.yaml names it.

    The digest is the beginning of the SHA-256 of the file with the weights. UserError if the
    folder contains no finished run and no exported network, or if the digest differs.
    """
    named = NAMED.fullmatch(name)
    folder, expected = named.groups() if named else (name, None)
    if Path(folder).is_file():
        raise UserError(
            f"--teacher {folder} is a file: name the folder of a finished run, such as "
            f"{Path(folder).parent}"
        )
    try:
        trained = open_network(Path(folder))
    except UserError as error:
        raise UserError(f"--teacher {folder}: {error}") from None
    with trained.file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if expected and digest != expected:
        raise UserError(
            f"--teacher {folder}: {trained.file.name} has changed since this training began "
            f"(SHA-256 {digest}..., expected {expected}...)"
        )
    return Teacher(folder, digest, trained)


def check_images(teachers: Sequence[Teacher], data: CIFAR10DataModule) -> None:
    """Raise UserError for a teacher of other images; `data` has found its files."""
    classes, images = data.classes, data.data_set
    for teacher in teachers:
        facts = teacher.trained.images
        if tuple(facts.classes) != classes:
            raise UserError(
                f"--teacher {teacher.folder} has other classes than the training images: "
                f"{', '.join(facts.classes[:3])}, ... ({len(facts.classes)}) instead of "
                f"{', '.join(classes[:3])}, ... ({len(classes)})"
            )
        ours = [*images.mean, *images.std, images.side]
        if not np.allclose(ours, [*facts.mean, *facts.std, facts.image_size], rtol=0, atol=1e-6):
            raise UserError(
                f"--teacher {teacher.folder} was trained on other images: their size or their "
                "normalisation differs"
            )


def distillation(teachers: Sequence[Teacher], settings: dict[str, Any]) -> Distillation:
    """Make the distillation; UserError for a bad setting."""
    try:
        return Distillation([teacher.trained.network for teacher in teachers], **settings)
    except ValueError as error:
        raise UserError(f"--distill.{error}") from None
