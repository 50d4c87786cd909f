"""Augmentation policies: operations and strengths for each image.

NumPy draws all numbers on the host, so that the host knows how many images get each operation
without a synchronisation. Images are sorted by operation, and each operation processes only its own
images. A last gather restores the order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2.functional import equalize

from datamodules.colour import as_float
from datamodules.operations import (
    Interpolation,
    affine,
    affine_matrices,
    autocontrast,
    brightness,
    color,
    contrast,
    posterize,
    sharpness,
    solarize,
)

#: in torchvision's order; the number of an operation is its position
OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color",
    "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
#: without the corruptions of CIFAR-10-C
AUGMIX_OPERATIONS = (
    "autocontrast", "equalize", "posterize", "rotate", "solarize", "shear_x", "shear_y",
    "translate_x", "translate_y",
)  # fmt: skip
AFFINE = OPERATIONS[1:6]
SIGNED = np.isin(OPERATIONS, OPERATIONS[1:10])
BINS = 31
#: of each of AugMix's mixtures
CHAINS = 3

_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": lambda images, _: autocontrast(images),
    "equalize": lambda images, _: equalize(images),
}


@dataclass(frozen=True)
class Choice:
    """The number of each image's operation, and its magnitude.

    Magnitudes are slopes of shears, pixels, degrees, factors minus 1, the remaining bits of
    posterize, and the thresholds of solarize.
    """

    operations: NDArray[np.int64]
    magnitudes: NDArray[np.float32]


class Policy(Protocol):
    """A transform of pixels that `Augmentation` applies before Cutout."""

    def __call__(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Return images (B, 3, H, W) or views (B, views, 3, H, W) of images uint8."""


def _send(numbers: NDArray, device: torch.device) -> Tensor:
    """Copy an array to the device without a synchronisation."""
    tensor = torch.from_numpy(numbers)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def apply(images: Tensor, choice: Choice, interpolation: Interpolation) -> Tensor:
    """Apply the chosen operation to each image uint8 (B, 3, H, W)."""
    height, width = images.shape[-2:]
    magnitudes = choice.magnitudes.astype(np.float64)
    amounts = [magnitudes * (choice.operations == OPERATIONS.index(name)) for name in AFFINE]
    matrices = affine_matrices(np.stack(amounts), height, width).reshape(-1, 6)
    # All of AFFINE are one operation with different matrices, with the number of the first.
    first = np.where(np.isin(OPERATIONS, AFFINE), 1, np.arange(len(OPERATIONS)))
    kinds = first[choice.operations]
    order = np.argsort(kinds, kind="stable")
    counts = np.bincount(kinds, minlength=len(OPERATIONS)).tolist()
    numbers = np.column_stack([choice.magnitudes, matrices])[order].astype(np.float32)
    there, back = _send(np.stack([order, np.argsort(order)]), images.device).unbind()
    parts = images.index_select(0, there).split(counts)
    parameters = _send(numbers, images.device).split(counts)
    done = []
    for name, part, values in zip(OPERATIONS, parts, parameters, strict=True):
        if name == "identity" or not len(part):
            done.append(part)
        elif name in AFFINE:
            done.append(affine(part, values[:, 1:].unflatten(1, (2, 3)), interpolation))
        else:
            done.append(_FUNCTIONS[name](part, values[:, 0]))
    return torch.cat(done).index_select(0, back)


@cache
def magnitude_bins(
    shear: float, translate_x: float, translate_y: float, rotate: float, blend: float, bits: int
) -> NDArray[np.float32]:
    """Return torchvision's magnitudes float32 (14, 31) of all operations.

    They go from weak to strong. The arguments are the largest magnitudes; `bits` is the largest
    number of bits that posterize drops.
    """

    def rising(top: float) -> Tensor:
        return torch.linspace(0.0, top, BINS)

    nothing = rising(0.0)
    translations = [rising(translate_x).trunc(), rising(translate_y).trunc()]
    kept = (8 - torch.arange(BINS) / ((BINS - 1) / bits)).round()
    thresholds = 255 * torch.linspace(1.0, 0.0, BINS)
    geometry = [rising(shear), rising(shear), *translations, rising(rotate)]
    rows = [nothing, *geometry, *[rising(blend)] * 4, kept, thresholds, nothing, nothing]
    return torch.stack(rows).numpy()


def _with_sign(
    operations: NDArray[np.int64], magnitudes: NDArray, rng: np.random.Generator
) -> Choice:
    """Make half of the magnitudes negative, for operations with two directions."""
    negative = SIGNED[operations] & (rng.random(len(operations)) < 0.5)
    return Choice(operations, np.where(negative, -magnitudes, magnitudes).astype(np.float32))


@dataclass(frozen=True)
class TrivialAugmentWide:
    """One of 14 operations for each image, at any strength (Müller & Hutter 2021).

    Operations, magnitudes, signs, resampling and fill are torchvision's. Returns images uint8.
    """

    def draw(self, count: int, rng: np.random.Generator) -> Choice:
        """Draw a choice for `count` images."""
        bins = magnitude_bins(0.99, 32.0, 32.0, 135.0, 0.99, 6)
        operations = rng.integers(len(OPERATIONS), size=count)
        return _with_sign(operations, bins[operations, rng.integers(BINS, size=count)], rng)

    def __call__(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        return apply(images, self.draw(len(images), rng), "nearest")


@dataclass(frozen=True)
class RandAugment:
    """`n` of 14 operations for each image, all at strength `m` (Cubuk et al. 2020).

    `m` is an index of torchvision's 31 magnitudes, from 0 to 30. Other details are as in
    `TrivialAugmentWide`. Raises ValueError for `n` below 1 and `m` out of its range.
    """

    n: int = 2
    m: int = 9

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"rand_augment_n must be 1 or more, got {self.n}")
        if not 0 <= self.m < BINS:
            raise ValueError(f"rand_augment_m must be in [0, {BINS - 1}], got {self.m}")

    def draw(self, count: int, height: int, width: int, rng: np.random.Generator) -> Choice:
        """Draw one operation for each of `count` images of a size."""
        share = 150 / 331
        bins = magnitude_bins(0.3, share * width, share * height, 30.0, 0.9, 4)
        operations = rng.integers(len(OPERATIONS), size=count)
        return _with_sign(operations, bins[operations, self.m], rng)

    def __call__(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        count, _, height, width = images.shape
        for _ in range(self.n):
            images = apply(images, self.draw(count, height, width, rng), "nearest")
        return images


@dataclass(frozen=True)
class AugMix:
    """Three views of each image: itself and two augmented mixtures (Hendrycks 2020).

    A mixture has three chains of one to three operations. The chains are mixed with random shares,
    and the result with the image; all shares are equally likely. As in the authors' code, the level
    is uniform in [0.1, severity] of 10, resampling is bilinear, and mixtures are not rounded.
    Returns float32 (B, 3, 3, H, W) in [0, 1]; [:, 0] are the images. The loss is
    `lightning_modules.losses.jensen_shannon`. Raises ValueError for a severity outside [1, 10].
    """

    severity: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.severity <= 10:
            raise ValueError(f"augmix_severity must be in [1, 10], got {self.severity}")

    def draw(self, count: int, height: int, width: int, rng: np.random.Generator) -> Choice:
        """Draw one operation for each of `count` chains of images of a size."""
        level = rng.uniform(0.1, self.severity, size=count) / 10
        nothing, shear = np.zeros(count), level * 0.3
        geometry = [shear, shear, np.trunc(level * width / 3), np.trunc(level * height / 3)]
        values = [4 - np.trunc(level * 4), np.trunc(level * 30), 256 - np.trunc(level * 256)]
        magnitudes = np.stack([nothing, nothing, *values, *geometry])
        picked = rng.integers(len(AUGMIX_OPERATIONS), size=count)
        numbers = np.array([OPERATIONS.index(name) for name in AUGMIX_OPERATIONS])
        return _with_sign(numbers[picked], magnitudes[picked, np.arange(count)], rng)

    @staticmethod
    def draw_shares(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Draw the shares float32 (count, 1 + CHAINS) of the image and of each chain."""
        mixed = rng.beta(1.0, 1.0, size=(count, 1))
        chains = rng.dirichlet([1.0] * CHAINS, size=count)
        return np.hstack([1 - mixed, mixed * chains]).astype(np.float32)

    def __call__(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        height, width = images.shape[-2:]
        count = len(images) * 2 * CHAINS
        depths = rng.integers(1, 4, size=count)
        chains = images.repeat_interleave(2 * CHAINS, 0)
        for turn in range(depths.max()):
            choice = self.draw(count, height, width, rng)
            # Operation 0 is the identity.
            active = Choice(choice.operations * (turn < depths), choice.magnitudes)
            chains = apply(chains, active, "bilinear")
        shares = _send(self.draw_shares(2 * len(images), rng), images.device)
        shares = shares.view(-1, 2, 1 + CHAINS, 1, 1, 1)
        clean = as_float(images)[:, None]
        chained = as_float(chains).unflatten(0, (-1, 2, CHAINS))
        mixtures = shares[:, :, 0] * clean + (shares[:, :, 1:] * chained).sum(2)
        return torch.cat([clean, mixtures], dim=1)


def make_policy(name: str, n: int, m: int, severity: int) -> Policy | None:
    """Return a policy; `n` and `m` are for RandAugment, `severity` for AugMix.

    Raises ValueError for an unknown name, and for wrong arguments of any policy.
    """
    policies: dict[str, Policy | None] = {
        "none": None,
        "trivial_augment": TrivialAugmentWide(),
        "rand_augment": RandAugment(n, m),
        "augmix": AugMix(severity),
    }
    if name not in policies:
        raise ValueError(f"policy must be one of {', '.join(policies)}, got {name!r}")
    return policies[name]
