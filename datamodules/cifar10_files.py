"""The official files of CIFAR-10: find or fetch them, verify and read them."""

from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import calculate_md5


class MissingDataError(MisconfigurationException):
    """CIFAR-10 is not there, in whole or in part, and cannot be fetched."""


def cifar10_files(root: Path) -> dict[Path, str]:
    """The official files of CIFAR-10 under `root`, each with its md5."""
    entries = [*CIFAR10.train_list, *CIFAR10.test_list]
    entries.append((CIFAR10.meta["filename"], CIFAR10.meta["md5"]))
    return {root / CIFAR10.base_folder / name: md5 for name, md5 in entries}


def find_cifar10(root: Path, download: bool) -> None:
    """Make sure that CIFAR-10 lies whole under `root`, fetching it where it is absent and allowed.

    Raises MisconfigurationException, in one line that says what to do, where a file is damaged, and
    its subclass MissingDataError where one is missing and cannot be had.
    """
    files = cifar10_files(root)
    reason = "downloading is switched off"
    if download and not all(file.exists() for file in files):
        rank_zero_info(f"CIFAR-10 is not in {root}: downloading it (170 MB)")
        try:
            CIFAR10(root, download=True)
        except (OSError, RuntimeError) as error:
            reason = f"downloading it failed: {error}"
    missing = [file for file in files if not file.exists()]
    if missing:
        raise MissingDataError(
            f"CIFAR-10 is not whole in {root} ({missing[0].name} is missing) and {reason}. Put the "
            f"official {CIFAR10.base_folder} folder there, name another folder with --data.root or "
            "$CIFAR10_ROOT, or take the procedural stand-in with --data.source synthetic"
        )
    for file, md5 in files.items():
        if calculate_md5(file) != md5:
            raise MisconfigurationException(
                f"{file} is damaged (its md5 is not {md5}): delete it and run again to fetch it"
            )


def load_cifar10(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of one official split."""
    data = CIFAR10(root, train=train)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(data.targets)
