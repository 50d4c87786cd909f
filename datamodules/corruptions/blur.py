"""Corruptions by blur."""

import numpy as np
import torch
from torch import Generator, Tensor

from datamodules.corruptions.filters import (
    SIDE,
    blur,
    correlate,
    gaussian_weights,
    motion,
    uniform,
    zoom_in,
)


def gaussian_blur(x: Tensor, generator: Generator, sigma: float) -> Tensor:
    return blur(x, sigma)


def glass_blur(x: Tensor, generator: Generator, sigma: float, times: int) -> Tensor:
    """Replace each pixel by a neighbour above or to the left.

    The published code tries to swap the two, but only copies one, because NumPy's rows are views.
    This does the same. Pixels of the first two rows and columns do not change.
    """
    x = (blur(x, sigma).clamp(0, 1) * 255).floor() / 255
    moving = torch.arange(SIDE) > 1
    for _ in range(times):
        up, left = torch.randint(2, (2, len(x), SIDE, SIDE), generator=generator).unbind()
        both = moving[:, None] & moving
        rows = torch.arange(SIDE)[:, None] - up * both
        columns = torch.arange(SIDE) - left * both
        index = (rows * SIDE + columns).flatten(1)[:, None].expand(-1, 3, -1)
        x = x.flatten(2).gather(2, index).unflatten(2, (SIDE, SIDE))
    return blur(x, sigma)


def defocus_blur(x: Tensor, generator: Generator, radius: float, alias: float) -> Tensor:
    offsets = torch.arange(-3, 4)
    disc = (offsets[:, None] ** 2 + offsets**2 <= radius**2).float()
    smooth = torch.outer(gaussian_weights(alias, 1), gaussian_weights(alias, 1))
    kernel = correlate(disc[None, None] / disc.sum(), smooth, "constant")[0, 0]
    return correlate(x, kernel, "reflect")


def motion_blur(x: Tensor, generator: Generator, radius: int, sigma: float) -> Tensor:
    return motion(x, radius, sigma, uniform(-45, 45, (len(x),), generator))


def zoom_blur(x: Tensor, generator: Generator, end: float) -> Tensor:
    factors = np.arange(1, end, 0.01).tolist()
    return torch.stack([x, *(zoom_in(x, factor) for factor in factors)]).mean(0)
