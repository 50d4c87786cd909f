"""A folder of pictures as a data set: `train/CLASS/*.jpg` and perhaps `test/CLASS/*.jpg`."""

import hashlib
import os
import time
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchvision.datasets.folder import make_dataset

from datamodules.pictures import SUFFIXES, PictureError, is_hidden, read_picture

Split = Literal["train", "test"]
#: seconds between two lines while pictures are decoded
LINE_EVERY = 30.0


def _class_names(folder: Path) -> list[str]:
    return sorted(x.name for x in folder.iterdir() if x.is_dir() and not x.name.startswith("."))


def _list_pictures(folder: Path, names: list[str]) -> list[tuple[Path, str]]:
    """Return paths and names of classes, in the order of both."""
    labels = {name: label for label, name in enumerate(names)}

    def is_picture(path: str) -> bool:
        return path.lower().endswith(SUFFIXES) and not is_hidden(Path(path), folder)

    samples = make_dataset(folder, labels, is_valid_file=is_picture, allow_empty=True)
    return [(Path(path), names[label]) for path, label in samples]


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of a folder, decoded once and kept in a cache.

    The cache is the file `.pictures-SIDE.npz` in `root`. It is valid as long as the names, sizes
    and times of the pictures are the same, and numpy checks its checksums.
    """

    root: Path
    side: int
    classes: tuple[str, ...]
    pictures: dict[Split, list[tuple[Path, str]]] = field(repr=False)
    _arrays: dict[str, Any] = field(default_factory=dict, repr=False)  # filled by `find`
    name: ClassVar[Literal["folder"]] = "folder"
    mirrors: ClassVar[bool] = True

    @classmethod
    def from_root(cls, root: str | Path | None, side: int) -> "PictureFolder":
        """List the pictures under `root`; MisconfigurationException for a wrong `root`."""
        if root is None:
            raise MisconfigurationException(
                "--data.dataset folder needs --data.root DIR, a folder with pictures in "
                "DIR/train/CLASS, such as --data.root flowers"
            )
        root = Path(root)
        if not (root / "train").is_dir():
            raise MisconfigurationException(
                f"--data.root {root} has no folder train: put the training pictures of each class "
                f"into {root}/train/CLASS"
            )
        classes = _class_names(root / "train")
        if len(classes) < 2:
            raise MisconfigurationException(
                f"--data.root {root} must have two or more classes, got "
                f"{', '.join(classes) or 'none'} in {root}/train: one folder for each class"
            )
        for name in classes:
            if (shown := os.fsencode(name).decode(errors="replace")) != name:
                raise MisconfigurationException(
                    f"--data.root {root}: the name of the class folder {shown} in {root}/train is "
                    "not UTF-8: rename it, for example to class_1"
                )
        splits: list[Split] = ["train", "test"] if (root / "test").is_dir() else ["train"]
        pictures: dict[Split, list[tuple[Path, str]]] = {}
        for split in splits:
            names = _class_names(root / split)
            if not names:
                raise MisconfigurationException(
                    f"--data.root {root}: {root}/{split} has no class folders: fill it or remove it"
                )
            if unknown := [x for x in names if x not in classes]:
                raise MisconfigurationException(
                    f"--data.root {root}: the class {unknown[0]} in {root}/{split} is not in "
                    f"{root}/train, which has {', '.join(classes)}"
                )
            pictures[split] = _list_pictures(root / split, names)
            if empty := sorted(set(names) - {name for _, name in pictures[split]}):
                raise MisconfigurationException(
                    f"--data.root {root}: the folder {root}/{split}/{empty[0]} contains no "
                    f"pictures ({' '.join(SUFFIXES)}): fill it or remove it"
                )
        return cls(root, side, tuple(classes), pictures)

    @property
    def title(self) -> str:
        return f"the pictures in {self.root.name}"

    @property
    def has_test(self) -> bool:
        return "test" in self.pictures

    @property
    def counts(self) -> tuple[int, ...]:
        """Training pictures of each class, unreadable ones included."""
        counts = Counter(name for _, name in self.pictures["train"])
        return tuple(counts[name] for name in self.classes)

    @property
    def mean(self) -> tuple[float, float, float]:
        """Mean of each channel over the training images, in [0, 1]; after `find`."""
        red, green, blue = self._arrays["mean"].tolist()
        return red, green, blue

    @property
    def std(self) -> tuple[float, float, float]:
        """Standard deviation of each channel, as `mean`."""
        red, green, blue = self._arrays["std"].tolist()
        return red, green, blue

    @property
    def digest(self) -> str:
        """SHA-256 of classes, images and labels; after `find`."""
        return str(self._arrays["digest"])

    @property
    def skipped(self) -> tuple[str, ...]:
        """Unreadable pictures and the reasons; after `find`."""
        return tuple(self._arrays["skipped"].tolist())

    def find(self, download: bool) -> None:
        """Read the pictures from the cache, or decode them and write the cache.

        Raises MisconfigurationException if no picture of a class is readable.
        """
        if self._arrays:
            return
        cache, inventory = self.root / f".pictures-{self.side}.npz", self._inventory()
        arrays = _read_cache(cache, inventory)
        if arrays is None:
            arrays = self._decode() | {"inventory": np.array(inventory)}
            _write_cache(cache, arrays)
        self._arrays.update(arrays)
        if self.skipped:
            lines = "\n".join(f"  {line}" for line in self.skipped)
            rank_zero_info(f"Skipped {len(self.skipped):,} unreadable pictures:\n{lines}")

    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return images uint8 (N, 3, side, side) and labels int64 (N,); after `find`."""
        images, labels = (self._arrays[f"{split}_{kind}"] for kind in ("images", "labels"))
        return torch.from_numpy(images), torch.from_numpy(labels)

    def _inventory(self) -> str:
        """SHA-256 of the names, sizes and times of all pictures."""
        digest = hashlib.sha256(repr(self.classes).encode("utf-8", "surrogateescape"))
        for paths in self.pictures.values():
            for path, _ in paths:
                facts: list[Any] = [str(path.relative_to(self.root))]
                if path.exists():  # a broken link does not
                    facts += [path.stat().st_size, path.stat().st_mtime_ns]
                digest.update(repr(facts).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _decode(self) -> dict[str, Any]:
        number = sum(map(len, self.pictures.values()))
        rank_zero_info(f"Reading the {number:,} pictures in {self.root}: once, for all runs")
        arrays: dict[str, Any] = {}
        skipped: list[str] = []
        digest = hashlib.sha256(repr(self.classes).encode("utf-8", "surrogateescape"))
        for split, pictures in self.pictures.items():
            images, labels = self._decode_split(pictures, skipped)
            arrays |= {f"{split}_images": images, f"{split}_labels": labels}
            digest.update(images.tobytes() + labels.tobytes())
        # By channel, so that the sums of squares need no copy of all images in 64 bits.
        channels = [arrays["train_images"][:, i] for i in range(3)]
        arrays["mean"] = np.array([x.mean(dtype=np.float64) / 255 for x in channels])
        std = np.array([x.std(dtype=np.float64) / 255 for x in channels])
        arrays["std"] = np.maximum(std, 1 / 255)  # pictures of a single colour
        return arrays | {"skipped": np.array(skipped, str), "digest": np.array(digest.hexdigest())}

    def _decode_split(
        self, pictures: Sequence[tuple[Path, str]], skipped: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        images = np.empty((len(pictures), 3, self.side, self.side), np.uint8)
        labels: list[int] = []
        reasons: dict[str, str] = {}
        last = time.monotonic()
        for done, (path, name) in enumerate(pictures):
            if time.monotonic() - last >= LINE_EVERY:
                last = time.monotonic()
                rank_zero_info(f"{done:,} of {len(pictures):,} pictures")
            try:
                images[len(labels)] = read_picture(path, self.side)[0].numpy()
            except PictureError as error:
                reasons.setdefault(name, str(error))
                skipped.append(os.fsencode(str(error)).decode(errors="replace"))
            else:
                labels.append(self.classes.index(name))
        for name, reason in reasons.items():
            if self.classes.index(name) not in labels:
                raise MisconfigurationException(
                    f"--data.root {self.root}: no picture of the class {name} in "
                    f"{pictures[0][0].parents[1]} is readable: {reason}"
                )
        return images[: len(labels)], np.array(labels, np.int64)


def _read_cache(path: Path, inventory: str) -> dict[str, Any] | None:
    """Return the arrays of a cache; None if it is missing, older or damaged."""
    try:
        with np.load(path) as arrays:
            return dict(arrays) if str(arrays["inventory"]) == inventory else None
    except FileNotFoundError:
        return None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        rank_zero_info(f"{path} is damaged and is replaced: {type(error).__name__}")
        return None


def _write_cache(path: Path, arrays: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        partial.replace(path)
    except OSError as error:  # a read-only or a full disk
        partial.unlink(missing_ok=True)
        rank_zero_info(f"Each run reads the pictures again, because {path} is not written: {error}")
