"""Unlabelled images in, submissions out: pictures, CIFAR batches and pickled test sets."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from datamodules.array_pickles import unpickle_arrays

SIDE = 32


@dataclass(frozen=True)
class UnlabelledImages:
    """Images to be classified, and what a submission calls each of them."""

    images: Tensor  # uint8 (N, 3, 32, 32)
    ids: list[str]  # N
    resized: int  # how many were pictures of another size


def read_unlabelled(paths: Sequence[Path]) -> UnlabelledImages:
    """Every image of the given pictures, folders of pictures and pickled test sets, in order.

    A picture is known by its suffix, and its id is its path; folders are searched to their depths,
    in the order of the names. Any other file is taken for a pickled test set, such as an official
    CIFAR batch: a dictionary whose `data` is uint8 (N, 3072), channel first, or (N, 32, 32, 3), and
    whose `ids`, where there are any, are its ids; otherwise images are numbered from 0.

    MisconfigurationException, in one line, for whatever cannot be read.
    """
    images: list[Tensor] = []
    ids: list[str] = []
    resized = 0
    for path in paths:
        for file in _pictures_in(path) if path.is_dir() else [path]:
            if file.suffix.lower() in IMG_EXTENSIONS:
                picture, fitted = read_picture(file)
                images.append(picture[None])
                ids.append(str(file))
                resized += fitted
            else:
                batch, names = read_test_set(file)
                images.append(batch)
                ids += names
    name, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise MisconfigurationException(f"{count} images have the id {name}: give the inputs apart")
    return UnlabelledImages(torch.cat(images), ids, resized)


def _pictures_in(folder: Path) -> list[Path]:
    """Pictures under a folder, without the hidden files that some systems put beside them."""
    pictures = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".")
    )
    if not pictures:
        raise MisconfigurationException(f"{folder} holds no pictures ({' '.join(IMG_EXTENSIONS)})")
    return pictures


def read_picture(path: Path) -> tuple[Tensor, bool]:
    """A picture as uint8 (3, 32, 32), and whether it had another size.

    It is turned as its camera says, what is transparent becomes white, and the largest square in
    its middle is resampled by Pillow's Lanczos filter, which averages over what it leaves out.
    """
    try:
        with Image.open(path) as opened:
            image, mode = ImageOps.exif_transpose(opened), opened.mode
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
    except Exception as error:  # which one depends on the format and on the bytes
        reason = "missing" if isinstance(error, FileNotFoundError) else "not a whole picture"
        raise MisconfigurationException(f"{path} is {reason} ({type(error).__name__})") from None
    if mode[0] in "IF":
        # Pillow clips them at 255, which leaves of most such pictures a white one.
        raise MisconfigurationException(f"{path} has greys of more than 8 bits (mode {mode})")
    resized = image.size != (SIDE, SIDE)
    if resized:
        image = ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), resized


def read_test_set(path: Path) -> tuple[Tensor, list[str]]:
    """Images uint8 (N, 3, 32, 32) of a pickled test set, and their ids.

    MisconfigurationException, in one line, where it is none.
    """
    content = unpickle_arrays(path)
    if not isinstance(content, dict):
        raise MisconfigurationException(
            f"{path} holds a {type(content).__name__}, not a dictionary with the key data"
        )
    # A key that is no text is none of ours.
    fields = {
        key.decode(errors="replace") if isinstance(key, bytes) else key: x
        for key, x in content.items()
    }
    data = fields.get("data")
    if not isinstance(data, np.ndarray):
        raise MisconfigurationException(
            f"{path} has no array under the key data; its keys are {sorted(map(str, fields))}"
        )
    shape = data.shape
    if data.dtype != np.uint8 or shape[1:] not in ((3072,), (SIDE, SIDE, 3)) or not len(data):
        raise MisconfigurationException(
            f"{path} holds {data.dtype} {shape}, not uint8 (N, 3072) or (N, 32, 32, 3)"
        )
    images = torch.from_numpy(data.copy("C"))
    images = images.permute(0, 3, 1, 2) if len(shape) == 4 else images.view(-1, 3, SIDE, SIDE)
    ids = _texts(fields.get("ids", range(len(data))), path)
    if len(ids) != len(images):
        raise MisconfigurationException(f"{path} has {len(images)} images, but {len(ids)} ids")
    return images.contiguous(), ids


def _texts(ids: Any, path: Path) -> list[str]:
    """The ids of a test set as text; MisconfigurationException where they are no list of such."""
    is_array = isinstance(ids, np.ndarray) and ids.ndim == 1
    if not is_array and not isinstance(ids, list | tuple | range):
        raise MisconfigurationException(f"{path} has ids that are no list, but {ids!r:.40}")
    try:
        return [x.decode() if isinstance(x, bytes) else str(x) for x in ids]
    except UnicodeDecodeError as error:
        raise MisconfigurationException(f"{path} has an id that is not UTF-8: {error}") from None


def submission_csv(ids: Sequence[str], labels: Iterable[int]) -> str:
    """Kaggle's format: the header `ID,Labels`, then a row for each image with its label, 0 to 9."""
    return _csv(["ID", "Labels"], zip(ids, labels, strict=True))


def probabilities_csv(ids: Sequence[str], probabilities: Tensor, classes: Sequence[str]) -> str:
    """For each image its id, the likeliest class's name, and the probability of every class.

    `probabilities` are float (N, C).
    """
    likeliest = [classes[i] for i in probabilities.argmax(dim=1)]
    rows = (
        [name, label, *(f"{p:.6f}" for p in row)]
        for name, label, row in zip(ids, likeliest, probabilities.tolist(), strict=True)
    )
    return _csv(["ID", "class", *classes], rows)


def _csv(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
