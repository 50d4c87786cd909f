"""Read pictures, CIFAR batches and pickled test sets; write predictions as CSV."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.pictures import SUFFIXES, PictureError, is_hidden, read_picture
from experiments.console import UserError, printable, track
from experiments.inference.array_pickles import unpickle_arrays


@dataclass(frozen=True)
class UnlabelledImages:
    """Images to classify, and their names in a submission."""

    images: Tensor  # uint8 (N, 3, side, side)
    ids: list[str]  # N
    resized: int  # number of pictures that had another size
    unreadable: list[str]  # for each unreadable picture its path and the reason


def read_unlabelled(paths: Sequence[Path], side: int = 32) -> UnlabelledImages:
    """Read all images of pictures, folders and pickled test sets, in order.

    A picture is recognised by its suffix, and its id is its path. Folders are searched recursively,
    in the order of the names. Any other file is read as a pickled test set, for example an official
    CIFAR batch: a dictionary whose `data` is uint8 (N, 3072), channel first, or (N, 32, 32, 3). Its
    `ids` are the ids; without them, images are numbered from 0.

    Raises UserError for missing files, unreadable test sets, and if no picture is readable.
    """
    images: list[Tensor] = []
    ids: list[str] = []
    unreadable: list[str] = []
    resized = 0
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
    files = [file for x in paths for file in (_pictures_in(x) if x.is_dir() else [x])]
    for file in track(files, "files", len(files)):
        if file.suffix.lower() in SUFFIXES:
            try:
                picture, fitted = read_picture(file, side)
            except PictureError as error:
                unreadable.append(str(error))
                continue
            images.append(picture[None])
            # A name that is not UTF-8 could not be printed or written.
            ids.append(os.fsencode(file).decode(errors="replace"))
            resized += fitted
        else:
            batch, names = read_test_set(file, side)
            images.append(batch)
            ids += names
    if not images:
        others = f", like {len(unreadable) - 1} others" if len(unreadable) > 1 else ""
        raise UserError(f"{unreadable[0]}{others}")
    name, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise UserError(f"{count} images have the id {name}: classify the inputs separately")
    return UnlabelledImages(torch.cat(images), ids, resized, unreadable)


def _pictures_in(folder: Path) -> list[Path]:
    """Find the pictures under a folder, except hidden files and folders."""
    pictures = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not is_hidden(path, folder)
        and (path.is_file() or path.is_symlink())
    )
    if not pictures:
        raise UserError(f"{folder} holds no pictures ({' '.join(SUFFIXES)})")
    return pictures


def read_test_set(path: Path, side: int = 32) -> tuple[Tensor, list[str]]:
    """Read images uint8 (N, 3, side, side) of a pickled test set, and their ids.

    Raises UserError for any other file.
    """
    content = unpickle_arrays(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a {type(content).__name__}, not a dictionary with the key data"
        )
    # Keys may be bytes, as in CIFAR's batches.
    fields = {
        key.decode(errors="replace") if isinstance(key, bytes) else key: x
        for key, x in content.items()
    }
    data = fields.get("data")
    if not isinstance(data, np.ndarray):
        raise UserError(
            f"{path} has no array under the key data; its keys are {sorted(map(str, fields))}"
        )
    shape, values = data.shape, 3 * side**2
    if data.dtype != np.uint8 or shape[1:] not in ((values,), (side, side, 3)) or not len(data):
        raise UserError(
            f"{path} holds {data.dtype} {shape}, not uint8 (N, {values}) or (N, {side}, {side}, 3)"
        )
    images = torch.from_numpy(data.copy("C"))
    images = images.permute(0, 3, 1, 2) if len(shape) == 4 else images.view(-1, 3, side, side)
    ids = _texts(fields.get("ids", range(len(data))), path)
    if len(ids) != len(images):
        raise UserError(f"{path} has {len(images)} images, but {len(ids)} ids")
    return images.contiguous(), ids


def _texts(ids: Any, path: Path) -> list[str]:
    """Return the ids of a test set as text; raise UserError if they are not a list."""
    is_array = isinstance(ids, np.ndarray) and ids.ndim == 1
    if not is_array and not isinstance(ids, list | tuple | range):
        raise UserError(f"{path} has ids that are not a list, but {ids!r:.40}")
    try:
        return [x.decode() if isinstance(x, bytes) else str(x) for x in ids]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} has an id that is not UTF-8: {error}") from None


def submission_csv(ids: Sequence[str], labels: Iterable[int]) -> str:
    """Return Kaggle's format: the header `ID,Labels`, then ids and labels 0 to 9."""
    return _csv(["ID", "Labels"], zip(ids, labels, strict=True))


def probabilities_csv(ids: Sequence[str], probabilities: Tensor, classes: Sequence[str]) -> str:
    """Return rows of id, likeliest class, and probabilities float (N, C)."""
    likeliest = [classes[i] for i in probabilities.argmax(dim=1)]
    rows = (
        [name, label, *(f"{p:.6f}" for p in row)]
        for name, label, row in zip(ids, likeliest, probabilities.tolist(), strict=True)
    )
    return _csv(["ID", "class", *classes], rows)


def _cell(value: Any) -> Any:
    """A cell that is safe in spreadsheets (formulas) and terminals (escapes)."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    formula = text.startswith(("=", "+", "-", "@")) and not re.fullmatch(r"[+-]?[\d.]+", text)
    return f"'{text}" if formula else text


def _csv(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(x) for x in row] for row in rows)
    return text.getvalue()
