"""Teachers of a training: from `--teacher` to networks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.console import UserError
from experiments.inference.finished import TrainedNetwork, open_network
from experiments.records.integrity import weights_digest
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

    UserError if the folder contains no finished run and no exported network, or if the digest
    differs.
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
    digest = weights_digest(trained.file)
    if expected and digest != expected:
        raise UserError(
            f"--teacher {folder}: {trained.file.name} has changed since this training began "
            f"(SHA-256 {digest}..., expected {expected}...)"
        )
    return Teacher(folder, digest, trained)


def distillation(
    teachers: Sequence[Teacher], settings: dict[str, Any], classes: tuple[str, ...]
) -> Distillation:
    """Make the distillation; UserError for a bad setting or a teacher of other classes."""
    for teacher in teachers:
        theirs = teacher.trained.classes
        if theirs != classes:
            raise UserError(
                f"--teacher {teacher.folder} has other classes than the training images: "
                f"{', '.join(theirs[:3])}, ... ({len(theirs)}) instead of "
                f"{', '.join(classes[:3])}, ... ({len(classes)})"
            )
    try:
        return Distillation([teacher.trained.network for teacher in teachers], **settings)
    except ValueError as error:
        raise UserError(f"--distill.{error}") from None
