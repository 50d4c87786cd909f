"""Unlabelled images in, submissions out: pictures, CIFAR batches and pickled test sets."""

import csv
import io
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

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
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
    except Exception as error:  # which one depends on the format and on the bytes
        reason = "missing" if isinstance(error, FileNotFoundError) else "not a whole picture"
        raise MisconfigurationException(f"{path} is {reason} ({type(error).__name__})") from None
    resized = image.size != (SIDE, SIDE)
    if resized:
        image = ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), resized


def read_test_set(path: Path) -> tuple[Tensor, list[str]]:
    """Images uint8 (N, 3, 32, 32) of a pickled test set, and their ids."""
    content = unpickle_arrays(path)
    if not isinstance(content, dict):
        raise MisconfigurationException(
            f"{path} holds a {type(content).__name__}, not a dictionary with the key data"
        )
    fields = {key.decode() if isinstance(key, bytes) else key: x for key, x in content.items()}
    data = fields.get("data")
    if not isinstance(data, np.ndarray):
        raise MisconfigurationException(
            f"{path} has no array under the key data; its keys are {sorted(map(str, fields))}"
        )
    shape = data.shape
    if data.dtype != np.uint8 or not len(data) or shape[1:] not in ((3072,), (SIDE, SIDE, 3)):
        raise MisconfigurationException(
            f"{path} holds {data.dtype} {shape}, not uint8 (N, 3072) or (N, 32, 32, 3)"
        )
    images = torch.from_numpy(data.copy("C"))
    images = images.permute(0, 3, 1, 2) if len(shape) == 4 else images.view(-1, 3, SIDE, SIDE)
    ids = [
        x.decode() if isinstance(x, bytes) else str(x) for x in fields.get("ids", range(len(data)))
    ]
    if len(ids) != len(images):
        raise MisconfigurationException(f"{path} has {len(images)} images, but {len(ids)} ids")
    return images.contiguous(), ids


def unpickle_arrays(path: Path) -> Any:
    """What a pickle of arrays, dictionaries, lists, tuples, strings and numbers holds.

    Nothing that the file names is ever imported or called: the few names that NumPy 1 and 2 write
    for an array, in any protocol and from Python 2 as well, lead to stand-ins that only read, and
    any other is refused. MisconfigurationException, in one line, where the file asks for more or is
    no pickle.
    """
    try:
        with path.open("rb") as file:
            return _resolve(_ArrayUnpickler(file, encoding="bytes").load())
    except FileNotFoundError:
        raise MisconfigurationException(f"{path} does not exist") from None
    except Exception as error:  # unpickling raises anything, by the bytes that it meets
        reason = str(error) or type(error).__name__
        raise MisconfigurationException(
            f"{path} is neither a picture nor a pickle of arrays and plain containers: {reason}"
        ) from None


def _resolve(value: Any) -> Any:
    """The arrays that stand-ins in a container describe."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in value.items()}
    return value


class _StandIn:
    """What a pickle gets in place of something of NumPy's."""

    def __setstate__(self, state: Any) -> None:
        # Without this method, a file could set attributes of the classes below.
        raise pickle.UnpicklingError("it gives a state to something that has none")


class _Bytes(_StandIn):
    """`_codecs.encode(text, "latin1")`, which is how protocols below 3 write bytes."""

    def __new__(cls, text: str, encoding: str) -> Any:
        return text.encode("latin1")


class _Dtype(_StandIn):
    """`numpy.dtype`: numbers and fixed-size strings, nothing that points anywhere."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.order = "=" if order == "|" else order

    def resolve(self) -> np.dtype:
        if not re.fullmatch(r"[biuf][1248]|[SU]\d{1,4}", self.code) or self.order not in "<>=":
            raise pickle.UnpicklingError(f"it has an array of type {self.code!r}")
        return np.dtype(self.order + self.code)


class _Array(_StandIn):
    """`_reconstruct(ndarray, (0,), "b")`, which gets its content as a state."""

    def __init__(self, *_: Any) -> None:
        self.array = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        order = "F" if fortran else "C"
        self.array = np.frombuffer(data, dtype.resolve()).reshape(shape, order=order)  # type: ignore[call-overload]


class _FromBuffer(_Array):
    """`_frombuffer(data, dtype, shape, order)`, which is how protocol 5 writes an array."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        super().__init__()
        self.__setstate__((1, shape, dtype, order == "F", data))


class _ArrayUnpickler(pickle.Unpickler):
    admitted: ClassVar[dict[tuple[str, str], type[_StandIn]]] = {
        ("_codecs", "encode"): _Bytes,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
        ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
    }

    def find_class(self, module: str, name: str) -> type[_StandIn]:
        try:
            return self.admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


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
