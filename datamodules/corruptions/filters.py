"""Filters and fractals of batches, as in SciPy, OpenCV and ImageMagick.

Images are float (N, C, 32, 32), of any range and number of channels, on the CPU.
"""

import math
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

SIDE = 32


def uniform(low: float, high: float, size: tuple[int, ...], generator: Generator) -> Tensor:
    """Draw a tensor uniformly from `low` to `high`."""
    return torch.rand(size, generator=generator) * (high - low) + low


def correlate(images: Tensor, kernel: Tensor, outside: Literal["reflect", "constant"]) -> Tensor:
    """Correlate each channel (N, C, H, W) with a kernel (h, w) of odd sides.

    Outside the image is a mirror image without the edge, or zeros.
    """
    height, width = kernel.shape
    padded = F.pad(images, (width // 2, width // 2, height // 2, height // 2), mode=outside)
    correlated = F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None])
    return correlated.squeeze(1).unflatten(0, images.shape[:2])


def gaussian_weights(sigma: float, radius: int) -> Tensor:
    """Return a Gaussian at the whole numbers from -radius to radius, with sum 1."""
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2)) if sigma else (offsets == 0).float()
    return weights / weights.sum()


def blur(
    images: Tensor,
    sigma: float,
    truncate: float = 4.0,
    outside: Literal["edge", "mirror"] = "edge",
) -> Tensor:
    """Apply SciPy's Gaussian filter, cut off at `truncate` standard deviations.

    Outside the image the edge is repeated, or there is a mirror image with the edge.
    """
    radius = int(truncate * sigma + 0.5)
    taken = torch.arange(SIDE)[:, None] + torch.arange(-radius, radius + 1)
    if outside == "edge":
        taken = taken.clamp(0, SIDE - 1)
    else:
        taken = taken.remainder(2 * SIDE)
        taken = torch.minimum(taken, 2 * SIDE - 1 - taken)
    weights = gaussian_weights(sigma, radius).expand(SIDE, -1)
    # The filter is linear, also at the border. Matrix products are 17 times as fast as convolutions
    # of one channel.
    matrix = torch.zeros(SIDE, SIDE).scatter_add(1, taken, weights)
    return matrix @ images @ matrix.T


def zoom_in(images: Tensor, factor: float) -> Tensor:
    """Enlarge the middle linearly, with aligned corners."""
    crop = math.ceil(SIDE / factor)
    top = (SIDE - crop) // 2
    middle = images[..., top : top + crop, top : top + crop]
    size = round(crop * factor)
    enlarged = F.interpolate(middle, size=(size, size), mode="bilinear", align_corners=True)
    trim = (size - SIDE) // 2
    return enlarged[..., trim : trim + SIDE, trim : trim + SIDE]


def motion(images: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Apply ImageMagick's motion blur: half a Gaussian along a direction (N,)."""
    steps = torch.arange(2 * radius + 1)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = degrees.deg2rad()[:, None]
    right = torch.ceil(steps * angle.cos() - 0.5).long()
    down = torch.ceil(steps * angle.sin() - 0.5).long()
    places = torch.arange(SIDE)
    blurred = torch.zeros_like(images)
    for step, weight in enumerate(weights.tolist()):
        rows = (places + down[:, step, None]).clamp(0, SIDE - 1)
        columns = (places + right[:, step, None]).clamp(0, SIDE - 1)
        pixels = (rows[:, :, None] * SIDE + columns[:, None, :]).flatten(1)
        index = pixels[:, None].expand(-1, images.shape[1], -1)
        blurred += weight * images.flatten(2).gather(2, index).unflatten(2, (SIDE, SIDE))
    return blurred


def plasma(count: int, decay: float, generator: Generator) -> Tensor:
    """Return fractal height maps (N, 1, 32, 32) in [0, 1] that repeat seamlessly."""
    heights = torch.zeros(count, SIDE, SIDE, dtype=torch.float64)
    step, wobble = SIDE, 100.0

    def mean(total: Tensor) -> Tensor:
        return total / 4 + wobble * uniform(-wobble, wobble, total.shape, generator)

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        total = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = mean(total + total.roll(-1, 2))
        centres = heights[:, half::step, half::step]
        beside = centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)
        heights[:, ::step, half::step] = mean(beside)
        above = centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)
        heights[:, half::step, ::step] = mean(above)
        step, wobble = half, wobble / decay
    heights -= heights.amin((1, 2), keepdim=True)
    return (heights / heights.amax((1, 2), keepdim=True))[:, None].float()


def distance_to(marked: Tensor) -> Tensor:
    """Return the Euclidean distance (N, 1, 32, 32) to the nearest marked pixel."""
    places = torch.arange(SIDE)
    apart = ((places[:, None] - places) ** 2).float()
    squared = torch.where(marked, 0.0, 1e6)
    squared = (squared[..., None, :, :] + apart[:, :, None]).amin(-2)
    return (squared[..., None, :] + apart).amin(-1).sqrt()


def equalise(images: Tensor) -> Tensor:
    """Equalise histograms of whole numbers 0 to 255 (N, 1, 32, 32) like OpenCV."""
    values = images.long().flatten(1)
    histogram = torch.zeros(len(images), 256).scatter_add(1, values, torch.ones(values.shape))
    below = histogram.cumsum(1)
    least = histogram.gather(1, values.amin(1, keepdim=True))
    table = (below - least) / (SIDE * SIDE - least).clamp(min=1) * 255
    return table.round().gather(1, values).view_as(images)
