"""Digital corruptions: colour, geometry and compression."""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from datamodules.corruptions.filters import SIDE, blur, uniform


def contrast(x: Tensor, generator: Generator, factor: float) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def saturate(x: Tensor, generator: Generator, factor: float, amount: float) -> Tensor:
    """Change the saturation of HSV; greys have the hue of red."""
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
    """Apply a random affine map, then move each pixel, by shares of the side."""
    corners = torch.tensor([[26.0, 26.0], [26.0, 6.0], [6.0, 6.0]]).expand(len(x), 3, 2)
    moved = corners + uniform(-1, 1, (len(x), 3, 2), generator) * affine * SIDE
    back = torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), corners)
    places = torch.arange(SIDE).float()
    at = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1)
    positions = (at.view(1, -1, 2) @ back[:, :2] + back[:, 2:]).unflatten(1, (SIDE, SIDE))
    grid = positions * (2 / (SIDE - 1)) - 1
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=True)

    waves = uniform(-1, 1, (len(x), 2, SIDE, SIDE), generator)
    waves = blur(waves, sigma * SIDE, truncate=3.0, outside="mirror") * alpha * SIDE
    grid = (at + waves.permute(0, 2, 3, 1) + 0.5) * (2 / SIDE) - 1
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
