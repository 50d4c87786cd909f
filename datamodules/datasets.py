"""The data sets: their classes, normalisation, files, and how to find and read them."""

from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from datamodules.facts import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, CIFAR100_CLASSES
from datamodules.folder import PictureFolder

Name = Literal["cifar10", "cifar100", "svhn", "folder"]


#: the end of MissingDataError's message
SYNTHETIC_INSTEAD = ", or use synthetic images with --data.source synthetic"


class MissingDataError(MisconfigurationException):
    """Files of a data set are missing and cannot be downloaded."""


@dataclass(frozen=True)
class PublicDataSet:
    """A data set that torchvision downloads: 32 x 32 pixels, with official splits."""

    name: Name
    title: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]  # training images of each class
    mean: tuple[float, float, float]  # per channel over all training images, in [0, 1]
    std: tuple[float, float, float]
    files: str  # the file or folder with the images, as messages name it
    megabytes: int  # of the download
    mirrors: bool = True  # whether a mirrored image still shows its class
    root: Path = Path("data")
    side: ClassVar[int] = 32
    has_test: ClassVar[bool] = True
    digest: ClassVar[str | None] = None  # the md5 sums of the files are constants
    skipped: ClassVar[tuple[str, ...]] = ()

    @property
    def _torchvision(self) -> Any:
        return getattr(datasets, self.name.upper())

    def md5_sums(self) -> dict[Path, str]:
        """Return the paths of the files under `root`, with their md5 sums."""
        source = self._torchvision
        if self.name == "svhn":
            wanted = (source.split_list[split] for split in ("train", "test"))
            return {self.root / name: md5 for _, name, md5 in wanted}
        entries = [*source.train_list, *source.test_list]
        entries.append((source.meta["filename"], source.meta["md5"]))
        return {self.root / source.base_folder / name: md5 for name, md5 in entries}

    def _download(self) -> None:
        if self.name == "svhn":
            for split in ("train", "test"):
                self._torchvision(self.root, split=split, download=True)
        else:
            self._torchvision(self.root, download=True)

    def find(self, download: bool) -> None:
        """Check that `root` contains the files, and download them if necessary.

        Raises MissingDataError for a missing file, MisconfigurationException for a damaged file.
        """
        files, reason = self.md5_sums(), "downloading is switched off"
        if download and not all(file.exists() for file in files):
            rank_zero_info(
                f"{self.title} is not in {self.root}: downloading it ({self.megabytes} MB)"
            )
            archive = getattr(self._torchvision, "filename", next(iter(files)).name)
            new = [file for file in (self.root / archive, *files) if not file.exists()]
            try:
                self._download()
            except BaseException as error:  # also Ctrl-C
                for file in new:
                    file.unlink(missing_ok=True)  # half an archive, or half a file on a full disk
                if not isinstance(error, OSError | RuntimeError | HTTPException):
                    raise
                reason = f"downloading it failed: {error}"
        missing = [file for file in files if not file.exists()]
        if missing:
            raise MissingDataError(
                f"{self.title} is incomplete in {self.root} ({missing[0].name} is missing) and "
                f"{reason}. Put the official {self.files} there or choose another folder with "
                f"--data.root or $CIFAR10_ROOT{SYNTHETIC_INSTEAD}"
            )
        for file, md5 in files.items():
            if calculate_md5(file) != md5:
                raise MisconfigurationException(
                    f"{file} is damaged (its md5 is not {md5}): delete it and run again to "
                    "download it"
                )

    def load(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Return images uint8 (N, 3, 32, 32) and labels int64 (N,) of an official split.

        Raises MisconfigurationException for images of another dtype and for labels out of range.
        """
        if self.name == "svhn":
            data = self._torchvision(self.root, split=split)
            images, labels = torch.from_numpy(data.data), torch.from_numpy(data.labels)
        else:
            data = self._torchvision(self.root, train=split == "train")
            images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
            labels = torch.tensor(data.targets)
        low, high, last = int(labels.min()), int(labels.max()), len(self.classes) - 1
        if images.dtype != torch.uint8:
            raise MisconfigurationException(
                f"the images in {self.root} must be uint8, got {images.dtype}"
            )
        if low < 0 or high > last:
            raise MisconfigurationException(
                f"the labels in {self.root} must be from 0 to {last}, got {low} to {high}"
            )
        return images, labels


CIFAR10 = PublicDataSet(
    "cifar10",
    "CIFAR-10",
    CIFAR10_CLASSES,
    (5_000,) * 10,
    CIFAR10_MEAN,
    CIFAR10_STD,
    "folder cifar-10-batches-py",
    170,
)
CIFAR100 = PublicDataSet(
    "cifar100",
    "CIFAR-100",
    CIFAR100_CLASSES,
    (500,) * 100,
    (0.50707, 0.48655, 0.44092),
    (0.26733, 0.25644, 0.27615),
    "folder cifar-100-python",
    169,
)
SVHN = PublicDataSet(
    "svhn",
    "SVHN",
    tuple("0123456789"),
    (4_948, 13_861, 10_585, 8_497, 7_458, 6_882, 5_727, 5_595, 5_045, 4_659),
    (0.43768, 0.44377, 0.47280),
    (0.19803, 0.20102, 0.19704),
    "files train_32x32.mat and test_32x32.mat",
    246,
    mirrors=False,
)
DataSet = PublicDataSet | PictureFolder


def open_data_set(name: str, root: str | Path | None, image_size: int) -> DataSet:
    """Return the data set of `--data.dataset`; pictures are not decoded yet.

    Raises ValueError for an unknown name or size, MisconfigurationException for a wrong folder.
    """
    if name not in get_args(Name):
        raise ValueError(f"dataset must be one of {', '.join(get_args(Name))}, got {name!r}")
    if image_size not in (32, 64):
        raise ValueError(f"image_size must be 32 or 64, got {image_size}")
    if name == "folder":
        return PictureFolder.from_root(root, image_size)
    if image_size != 32:
        raise ValueError(
            f"image_size must be 32 for the data set {name}, got {image_size}; only folder also "
            "takes 64"
        )
    public = next(x for x in (CIFAR10, CIFAR100, SVHN) if x.name == name)
    return replace(public, root=Path(root)) if root else public
