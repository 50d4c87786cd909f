"""CIFAR-10's shifted test sets as published: CIFAR-10-C and CIFAR-10.1."""

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.corruptions import SEVERITIES, SIDE


def read_cifar10_c(folder: Path, name: str, severity: int) -> tuple[Tensor, Tensor]:
    """Images uint8 (10000, 3, 32, 32) and labels int64 (10000,) of the published CIFAR-10-C.

    A file holds a corruption's five severities one after the other. MisconfigurationException where
    a file is missing or holds something else.
    """
    images, labels = _read_arrays(folder / f"{name}.npy", folder / "labels.npy")
    count = len(images) // len(SEVERITIES)
    part = slice((severity - 1) * count, severity * count)
    return images[part], labels[part]


def read_cifar10_1(folder: Path, version: str = "v6") -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of CIFAR-10.1 (Recht et al., 2018).

    Version v6 is the class-balanced one, of 2,000 images. Errors as in `read_cifar10_c`.
    """
    names = (f"cifar10.1_{version}_{part}.npy" for part in ("data", "labels"))
    return _read_arrays(*(folder / name for name in names))


def _read_arrays(images_file: Path, labels_file: Path) -> tuple[Tensor, Tensor]:
    try:
        images, labels = (np.load(file, mmap_mode="r") for file in (images_file, labels_file))
    except (OSError, ValueError) as error:
        raise MisconfigurationException(
            f"{images_file.parent} is not as published: {error}"
        ) from None
    right = images.dtype == np.uint8 and images.shape[1:] == (SIDE, SIDE, 3)
    if not right or labels.shape != images.shape[:1]:
        raise MisconfigurationException(
            f"{images_file} holds {images.dtype} {images.shape} with {labels.shape} labels, "
            "not uint8 (N, 32, 32, 3) with N"
        )
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(labels.astype(np.int64))
