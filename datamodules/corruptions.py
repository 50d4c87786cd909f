"""CIFAR-10-C's 19 corruptions, as functions of whole batches (Hendrycks and Dietterich, 2019).

Every corruption takes float pixels (N, 3, 32, 32) in [0, 1] and gives them back, of any range, from
its parameters at one severity and a generator on the CPU; `corrupt` is what others call. Parameters
are those of CIFAR-10-C (not of ImageNet-C, which are harsher), and so is the arithmetic: where that
goes through scikit-image, SciPy, OpenCV or ImageMagick, it is written out here for whole batches.

Two corruptions cannot be the same. CIFAR-10-C pastes photographs of frost: here frost is a ridged
fractal. Its spatter finds the rim of drops by Canny's method: here the rim is where a drop ends.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from datamodules.filters import (
    SIDE,
    blur,
    correlate,
    distance_to,
    equalise,
    gaussian_weights,
    motion,
    plasma,
    zoom_in,
)
from datamodules.tensor_loader import derive_seed

SEVERITIES = (1, 2, 3, 4, 5)
#: images that are corrupted at once
CHUNK = 1000


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)


def _uniform(low: float, high: float, size: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.rand(size, generator=generator) * (high - low) + low


def gaussian_noise(x: Tensor, generator: Generator, scale: float) -> Tensor:
    return x + scale * _normal(x, generator)


def shot_noise(x: Tensor, generator: Generator, photons: float) -> Tensor:
    return torch.poisson(x * photons, generator) / photons


def impulse_noise(x: Tensor, generator: Generator, amount: float) -> Tensor:
    flipped = _uniform(0, 1, x.shape, generator) < amount
    salt = _uniform(0, 1, x.shape, generator) < 0.5
    return torch.where(flipped, salt.float(), x)


def speckle_noise(x: Tensor, generator: Generator, scale: float) -> Tensor:
    return x + x * scale * _normal(x, generator)


def gaussian_blur(x: Tensor, generator: Generator, sigma: float) -> Tensor:
    return blur(x, sigma)


def glass_blur(x: Tensor, generator: Generator, sigma: float, times: int) -> Tensor:
    """Each pixel takes the place of a neighbour above or to the left.

    The published code means to swap the two but copies one, because NumPy's rows are views; so
    does this. Pixels of the first two rows and columns stay.
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
    return motion(x, radius, sigma, _uniform(-45, 45, (len(x),), generator))


def zoom_blur(x: Tensor, generator: Generator, end: float) -> Tensor:
    factors = np.arange(1, end, 0.01).tolist()
    return torch.stack([x, *(zoom_in(x, factor) for factor in factors)]).mean(0)


def snow(
    x: Tensor,
    generator: Generator,
    mean: float,
    scale: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    keep: float,
) -> Tensor:
    flakes = zoom_in(mean + scale * _normal(x[:, :1], generator), zoom)
    flakes = torch.where(flakes < threshold, 0, flakes).clamp(0, 1)
    flakes = motion(flakes, radius, sigma, _uniform(-135, -45, (len(x),), generator))
    grey = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    white = torch.maximum(x, grey * 1.5 + 0.5)
    return keep * x + (1 - keep) * white + flakes + flakes.rot90(2, (2, 3))


def frost(x: Tensor, generator: Generator, keep: float, amount: float) -> Tensor:
    ridges = 1 - (2 * plasma(len(x), 2.0, generator) - 1).abs()
    ice = ridges * torch.tensor([0.85, 0.95, 1.0])[:, None, None]
    return keep * x + amount * ice


def fog(x: Tensor, generator: Generator, amount: float, decay: float) -> Tensor:
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * plasma(len(x), decay, generator)) * brightest / (brightest + amount)


def spatter(
    x: Tensor,
    generator: Generator,
    mean: float,
    scale: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: bool,
) -> Tensor:
    liquid = blur(mean + scale * _normal(x[:, :1], generator), sigma)
    drops = liquid > threshold
    if mud:
        cover = blur(drops.float(), strength)
        cover = torch.where(cover < 0.8, 0, cover)
        brown = torch.tensor([63, 42, 20])[:, None, None] / 255
        return x * (1 - cover) + brown * cover
    liquid = (torch.where(drops, liquid, 0).clamp(0, 1) * 255).floor()
    mask = drops.float()
    inner = -F.max_pool2d(-F.pad(mask, (1, 1, 1, 1), value=1.0), 3, 1)
    distance = distance_to((mask - inner) > 0).clamp(max=20)
    mean3 = torch.full((3, 3), 1 / 9)
    relief = equalise(correlate(distance, mean3, "reflect").floor())
    emboss = torch.tensor([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])
    relief = correlate(relief, emboss, "reflect").clamp(0, 255)
    water = liquid * correlate(relief, mean3, "reflect").round()
    water = water / water.amax((1, 2, 3), keepdim=True).clamp(min=1) * strength
    return x + water * torch.tensor([175, 238, 238])[:, None, None] / 255


def contrast(x: Tensor, generator: Generator, factor: float) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def brightness(x: Tensor, generator: Generator, amount: float) -> Tensor:
    """Add to the value of HSV, which scales all three channels; black becomes grey."""
    value = x.amax(1, keepdim=True)
    return torch.where(value > 0, x / value, 1) * (value + amount).clamp(max=1)


def saturate(x: Tensor, generator: Generator, factor: float, amount: float) -> Tensor:
    """Change the saturation of HSV; what is grey has the hue of red."""
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    saturation = torch.where(value > 0, chroma / value, 0) * factor + amount
    red = torch.tensor([0.0, 1.0, 1.0])[:, None, None]
    away = torch.where(chroma > 0, (value - x) / chroma, red)
    return value * (1 - away * saturation.clamp(0, 1))


def jpeg_compression(x: Tensor, generator: Generator, quality: int) -> Tensor:
    def compress(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _with_pillow(x, compress)


def pixelate(x: Tensor, generator: Generator, share: float) -> Tensor:
    small, box = (int(SIDE * share), int(SIDE * share)), Image.Resampling.BOX
    return _with_pillow(x, lambda image: image.resize(small, box).resize((SIDE, SIDE), box))


def _with_pillow(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    arrays = (x * 255).round().byte().permute(0, 2, 3, 1).numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(array))) for array in arrays])
    return torch.from_numpy(changed).permute(0, 3, 1, 2) / 255


def elastic_transform(
    x: Tensor, generator: Generator, alpha: float, sigma: float, affine: float
) -> Tensor:
    """Move three points, then every pixel; strengths are shares of the image's side."""
    corners = torch.tensor([[26.0, 26.0], [26.0, 6.0], [6.0, 6.0]]).expand(len(x), 3, 2)
    moved = corners + _uniform(-1, 1, (len(x), 3, 2), generator) * affine * SIDE
    back = torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), corners)
    places = torch.arange(SIDE).float()
    at = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1)
    positions = (at.view(1, -1, 2) @ back[:, :2] + back[:, 2:]).unflatten(1, (SIDE, SIDE))
    grid = positions * (2 / (SIDE - 1)) - 1
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=True)

    waves = _uniform(-1, 1, (len(x), 2, SIDE, SIDE), generator)
    waves = blur(waves, sigma * SIDE, truncate=3.0, outside="mirror") * alpha * SIDE
    grid = (at + waves.permute(0, 2, 3, 1) + 0.5) * (2 / SIDE) - 1
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


Parameters = tuple[Any, ...]


@dataclass(frozen=True)
class Corruption:
    """A function, and its arguments at each of the five severities."""

    function: Callable[..., Tensor]
    parameters: tuple[Parameters, Parameters, Parameters, Parameters, Parameters]


# The fifteen of the benchmark, and the four that it sets apart for validation.
CORRUPTIONS = {
    "gaussian_noise": Corruption(gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))),
    "shot_noise": Corruption(shot_noise, ((500,), (250,), (100,), (75,), (50,))),
    "impulse_noise": Corruption(impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "defocus_blur": Corruption(
        defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    ),
    "glass_blur": Corruption(glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion_blur": Corruption(motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": Corruption(zoom_blur, ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,))),
    "snow": Corruption(
        snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": Corruption(frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": Corruption(fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Corruption(brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "contrast": Corruption(contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "elastic_transform": Corruption(
        elastic_transform,
        (
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
    ),
    "pixelate": Corruption(pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
    "jpeg_compression": Corruption(jpeg_compression, ((80,), (65,), (58,), (50,), (40,))),
    "speckle_noise": Corruption(speckle_noise, ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,))),
    "gaussian_blur": Corruption(gaussian_blur, ((0.4,), (0.6,), (0.7,), (0.8,), (1,))),
    "spatter": Corruption(
        spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
    ),
    "saturate": Corruption(saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """Images uint8 (N, 3, 32, 32), on the CPU, under a corruption of severity 1 to 5.

    Pure: the same images in the same order, name, severity and seed give the same result.
    ValueError for a corruption or a severity that does not exist, and for other images.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"name must be one of {', '.join(CORRUPTIONS)}, got {name!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1 to 5, got {severity}")
    if images.dtype != torch.uint8 or images.shape[1:] != (3, SIDE, SIDE):
        shape = tuple(images.shape)
        raise ValueError(f"images must be uint8 (N, 3, 32, 32), got {images.dtype} {shape}")
    corruption = CORRUPTIONS[name]
    parameters = corruption.parameters[severity - 1]
    generator = torch.Generator().manual_seed(derive_seed(seed, name, severity))
    results = []
    for chunk in images.split(CHUNK):
        changed = corruption.function(chunk / 255, generator, *parameters)
        # Cut off, not rounded, as published; 32 bits may lie a little below a whole number.
        results.append((changed.clamp(0, 1) * 255 + 1e-3).byte())
    return torch.cat(results)
