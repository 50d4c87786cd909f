"""Published shifted test sets: CIFAR-10-C and CIFAR-10.1."""

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.lib.format import open_memmap
from torch import Tensor

from datamodules.corruptions import CORRUPTIONS, SEVERITIES


class CIFAR10C:
    """The folder of the published CIFAR-10-C (Hendrycks and Dietterich, 2019).

    It has one file per corruption, which contains the test set at the five severities in order.
    `labels` int64 (N,) are the labels of that test set. Raises MisconfigurationException for a
    missing or wrong file.
    """

    def __init__(self, folder: Path, labels: Tensor) -> None:
        self.arrays = {name: _open_images(folder / f"{name}.npy") for name in CORRUPTIONS}
        self.count = len(labels)
        for name, array in self.arrays.items():
            if len(array) != len(SEVERITIES) * self.count:
                raise MisconfigurationException(
                    f"{folder / name}.npy must hold {len(SEVERITIES)} x {self.count:,} images, "
                    f"got {len(array):,}"
                )
        if not torch.equal(_read_labels(folder / "labels.npy"), labels.repeat(len(SEVERITIES))):
            raise MisconfigurationException(
                f"{folder}/labels.npy must hold the labels of the test set {len(SEVERITIES)} times"
            )

    def images(self, name: str, severity: int) -> Tensor:
        """Return the test set, uint8 (N, 3, 32, 32), at a severity from 1 to 5."""
        part = slice((severity - 1) * self.count, severity * self.count)
        return _as_tensor(self.arrays[name][part])


def read_cifar10_1(folder: Path) -> tuple[Tensor, Tensor]:
    """Return images uint8 (N, 3, 32, 32) and labels int64 (N,) of CIFAR-10.1.

    This is version v6 with 2,000 images, equally many of each class (Recht et al. 2018). Raises
    MisconfigurationException for a missing or wrong file.
    """
    images = _open_images(folder / "cifar10.1_v6_data.npy")
    labels = _read_labels(folder / "cifar10.1_v6_labels.npy")
    if len(images) != len(labels):
        raise MisconfigurationException(
            f"{folder} must hold a label for each image, got {len(images):,} images and "
            f"{len(labels):,} labels"
        )
    return _as_tensor(images), labels


def _open_images(file: Path) -> np.ndarray:
    array = _open(file)
    if array.dtype != np.uint8 or array.shape[1:] != (32, 32, 3):
        raise MisconfigurationException(
            f"{file} must hold uint8 (N, 32, 32, 3), got {array.dtype} {array.shape}"
        )
    return array


def _read_labels(file: Path) -> Tensor:
    array = _open(file)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not np.isin(array, range(10)).all():
        raise MisconfigurationException(
            f"{file} must hold labels from 0 to 9, got {array.dtype} {array.shape}"
        )
    return torch.from_numpy(array.astype(np.int64))


def _open(file: Path) -> np.ndarray:
    try:
        return open_memmap(file, mode="r")  # never unpickles
    except (OSError, ValueError) as error:
        raise MisconfigurationException(f"{file} is not an array as published: {error}") from None


def _as_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous()
