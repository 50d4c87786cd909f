"""Teachers of a training: from `--teacher` to networks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules import CIFAR10DataModule
from experiments.console import UserError
from experiments.inference.finished import TrainedNetwork, open_network, weights_digest
from experiments.records.images import ImageFacts
from experiments.records.record import read_record
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
    digest = weights_digest(trained.network.state_dict())
    if expected and digest != expected:
        raise UserError(
            f"--teacher {folder}: the weights of {trained.file.name} have changed since this "
            f"training began (digest {digest}, expected {expected})"
        )
    return Teacher(folder, digest, trained)


def same_folders(names: str | list[str] | None, before: Sequence[str]) -> bool:
    """Whether `--teacher` names an earlier configuration's folders, without digests."""
    return bool(before) and as_list(names) == [NAMED.sub(r"\1", name) for name in before]


def as_list(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else names or []


def check_images(teachers: Sequence[Teacher], data: CIFAR10DataModule) -> None:
    """Raise UserError for a teacher of other images; `data` has found its files.

    Print a line for a teacher with another split into training and validation images.
    """
    ours = ImageFacts.of(data)
    for teacher in teachers:
        theirs = teacher.trained.images
        if theirs.classes != ours.classes:
            raise UserError(
                f"--teacher {teacher.folder} has other classes than the training images: "
                f"{', '.join(theirs.classes[:3])}, ... ({len(theirs.classes)}) instead of "
                f"{', '.join(ours.classes[:3])}, ... ({len(ours.classes)})"
            )
        pairs = zip((ours.mean, ours.std), (theirs.mean, theirs.std), strict=True)
        alike = all(np.allclose(x, y, rtol=0, atol=1e-6) for x, y in pairs)
        if not alike or ours.image_size != theirs.image_size:
            raise UserError(
                f"--teacher {teacher.folder} was trained on other images: their size or their "
                "normalisation differs"
            )
        if _may_know_validation(teacher, data):
            print(
                f"--teacher {teacher.folder} has another split: it may know validation images of "
                "this run, so compare test accuracies"
            )


def _may_know_validation(teacher: Teacher, data: CIFAR10DataModule) -> bool:
    """Whether the teacher's training images may contain validation images of `data`."""
    record = Path(teacher.folder, "result.json")
    if not data.hparams["val_fraction"] or not record.exists():
        return False
    theirs = read_record(record).config["data"]
    return any(theirs[key] != data.hparams[key] for key in ("val_fraction", "split_seed"))


def refuse_own_checkpoint(teachers: Sequence[Teacher], checkpoint: Path) -> None:
    """UserError if a student would begin with the state of one of its teachers."""
    for teacher in teachers:
        if checkpoint.resolve().parent == Path(teacher.folder).resolve():
            raise UserError(
                f"--ckpt_path {checkpoint} is a checkpoint of --teacher {teacher.folder}: leave "
                "--ckpt_path out, so that the student begins anew"
            )


def distillation(teachers: Sequence[Teacher], settings: dict[str, Any]) -> Distillation:
    """Make the distillation; UserError for a bad setting."""
    try:
        return Distillation([teacher.trained.network for teacher in teachers], **settings)
    except ValueError as error:
        raise UserError(f"--distill.{error}") from None
