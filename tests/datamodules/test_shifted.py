"""Arrays in the published format are read, and errors in them are reported."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.corruptions import CORRUPTIONS
from datamodules.shifted import CIFAR10C, read_cifar10_1

LABELS = torch.tensor([3, 9, 0])


def pixels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def cifar10_c(tmp_path: Path) -> Path:
    for seed, name in enumerate(CORRUPTIONS):
        np.save(tmp_path / f"{name}.npy", pixels(5 * len(LABELS), seed))
    np.save(tmp_path / "labels.npy", np.tile(LABELS.numpy().astype(np.uint8), 5))
    return tmp_path


@pytest.fixture
def cifar10_1(tmp_path: Path) -> Path:
    np.save(tmp_path / "cifar10.1_v6_data.npy", pixels(4, 0))
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.array([1, 2, 3, 4], np.int32))
    return tmp_path


def test_a_corruption_is_read_by_severity(cifar10_c: Path) -> None:
    published = CIFAR10C(cifar10_c, LABELS)
    for seed, name in enumerate(CORRUPTIONS):
        whole = pixels(5 * len(LABELS), seed)
        for severity in (1, 2, 5):
            images = published.images(name, severity)
            assert images.dtype == torch.uint8
            expected = whole[3 * severity - 3 : 3 * severity].transpose(0, 3, 1, 2)
            np.testing.assert_array_equal(images, expected)


def test_cifar10_1_is_read_with_its_labels(cifar10_1: Path) -> None:
    images, labels = read_cifar10_1(cifar10_1)
    np.testing.assert_array_equal(images, pixels(4, 0).transpose(0, 3, 1, 2))
    assert labels.dtype == torch.int64
    assert labels.tolist() == [1, 2, 3, 4]


class Payload:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return pytest.fail, ("the file was unpickled",)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("fog.npy", None, r"fog\.npy is not an array as published: .*No such file"),
        ("fog.npy", b"no array", r"fog\.npy is not an array as published: "),
        ("fog.npy", b"", r"fog\.npy is not an array as published: "),
        ("fog.npy", pixels(15, 0).reshape(15, -1), r"must hold uint8 .+ got uint8 \(15, 3072\)"),
        ("fog.npy", pixels(15, 0) / 255, r"must hold uint8 .+ got float64 \(15, 32, 32, 3\)"),
        ("saturate.npy", pixels(14, 0), r"saturate\.npy must hold 5 x 3 images, got 14"),
        ("labels.npy", np.zeros(15, np.uint8), r"labels\.npy must hold the labels of the test set"),
        ("labels.npy", LABELS.numpy(), r"labels\.npy must hold the labels of the test set 5 times"),
        ("labels.npy", np.full(15, 10), r"labels\.npy must hold labels from 0 to 9, got int64"),
        ("labels.npy", np.zeros(15), r"must hold labels from 0 to 9, got float64 \(15,\)"),
        ("labels.npy", np.array([Payload()]), r"labels\.npy is not an array as published: "),
    ],
)
def test_a_file_that_differs_from_the_published_one_is_named_before_reading(
    cifar10_c: Path, file: str, content: np.ndarray | bytes | None, message: str
) -> None:
    (cifar10_c / file).unlink()
    if isinstance(content, bytes):
        (cifar10_c / file).write_bytes(content)
    elif content is not None:
        np.save(cifar10_c / file, content, allow_pickle=True)
    with pytest.raises(MisconfigurationException, match=message):
        CIFAR10C(cifar10_c, LABELS)


def test_cifar10_1_needs_a_label_for_each_image(cifar10_1: Path) -> None:
    np.save(cifar10_1 / "cifar10.1_v6_labels.npy", np.array([1, 2, 3]))
    with pytest.raises(MisconfigurationException, match="got 4 images and 3 labels"):
        read_cifar10_1(cifar10_1)
