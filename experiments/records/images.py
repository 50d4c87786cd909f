"""The images of a run, in its record."""

from typing import Any, Literal

from pydantic.dataclasses import dataclass

from experiments.records.parsing import EXACT

#: the images of a run -> their name in texts
SOURCES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
    "folder": "a folder of pictures",
    "synthetic": "the SYNTHETIC stand-in",
}
Source = Literal["cifar10", "cifar100", "svhn", "folder", "synthetic"]


@dataclass(frozen=True, config=EXACT)
class ImageFacts:
    """The images that a network was trained on, as prediction and export need them."""

    classes: list[str]  # in the order of the labels
    mean: list[float]  # of each channel over the training images, in [0, 1]
    std: list[float]
    image_size: int  # side in pixels
    digest: str | None = None  # SHA-256 of a folder's classes, images and labels
    skipped: int = 0  # unreadable pictures of a folder

    @classmethod
    def of(cls, data: Any) -> "ImageFacts":
        """Return the facts of a data module that has found its files."""
        images = data.data_set
        return cls(
            classes=list(data.classes),
            mean=list(images.mean),
            std=list(images.std),
            image_size=images.side,
            digest=images.digest,
            skipped=len(images.skipped),
        )
