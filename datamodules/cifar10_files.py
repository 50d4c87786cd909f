"""Official files of CIFAR-10: finding, downloading, verifying and reading."""

from http.client import HTTPException
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import calculate_md5


class MissingDataError(MisconfigurationException):
    """Files of CIFAR-10 are missing and cannot be downloaded."""


def cifar10_files(root: Path) -> dict[Path, str]:
    """Return the paths of CIFAR-10's files under `root`, with their md5 sums."""
    entries = [*CIFAR10.train_list, *CIFAR10.test_list]
    entries.append((CIFAR10.meta["filename"], CIFAR10.meta["md5"]))
    return {root / CIFAR10.base_folder / name: md5 for name, md5 in entries}


def find_cifar10(root: Path, download: bool) -> None:
    """Check that `root` contains CIFAR-10, and download it if necessary.

    Raises MissingDataError for a missing file, and MisconfigurationException for a damaged file.
    """
    files = cifar10_files(root)
    reason = "downloading is switched off"
    if download and not all(file.exists() for file in files):
        rank_zero_info(f"CIFAR-10 is not in {root}: downloading it (170 MB)")
        new = [file for file in (root / CIFAR10.filename, *files) if not file.exists()]
        try:
            CIFAR10(root, download=True)
        except BaseException as error:  # also Ctrl-C
            for file in new:
                file.unlink(missing_ok=True)  # half an archive, or half a file on a full disk
            if not isinstance(error, OSError | RuntimeError | HTTPException):
                raise
            reason = f"downloading it failed: {error}"
    missing = [file for file in files if not file.exists()]
    if missing:
        raise MissingDataError(
            f"CIFAR-10 is incomplete in {root} ({missing[0].name} is missing) and {reason}. Put "
            f"the official folder {CIFAR10.base_folder} there, choose another folder with "
            "--data.root or $CIFAR10_ROOT, or use synthetic images with --data.source synthetic"
        )
    for file, md5 in files.items():
        if calculate_md5(file) != md5:
            raise MisconfigurationException(
                f"{file} is damaged (its md5 is not {md5}): delete it and run again to download it"
            )


def load_cifar10(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Return images uint8 (N, 3, 32, 32) and labels int64 (N,) of an official split.

    Raises MisconfigurationException for images of another dtype and for labels out of range.
    """
    data = CIFAR10(root, train=train)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(data.targets)
    low, high, last = int(labels.min()), int(labels.max()), len(data.classes) - 1
    if images.dtype != torch.uint8:
        raise MisconfigurationException(f"the images in {root} must be uint8, got {images.dtype}")
    if low < 0 or high > last:
        raise MisconfigurationException(
            f"the labels in {root} must be from 0 to {last}, got {low} to {high}"
        )
    return images, labels
