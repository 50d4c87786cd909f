"""Weather: snow, frost, fog, brightness and spatter.

Two corruptions differ from CIFAR-10-C. For frost, CIFAR-10-C pastes photographs, and this module a
fractal with ridges. For spatter, CIFAR-10-C finds the edges of drops by Canny's method, and this
module takes their outermost pixels.
"""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from datamodules.corruptions.filters import (
    blur,
    correlate,
    distance_to,
    equalise,
    motion,
    plasma,
    uniform,
    zoom_in,
)


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
    flakes = zoom_in(mean + scale * torch.randn(x[:, :1].shape, generator=generator), zoom)
    flakes = torch.where(flakes < threshold, 0, flakes).clamp(0, 1)
    flakes = motion(flakes, radius, sigma, uniform(-135, -45, (len(x),), generator))
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


def brightness(x: Tensor, generator: Generator, amount: float) -> Tensor:
    """Add to the value of HSV, which scales all three channels; black becomes grey."""
    value = x.amax(1, keepdim=True)
    return torch.where(value > 0, x / value, 1) * (value + amount).clamp(max=1)


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
    liquid = blur(mean + scale * torch.randn(x[:, :1].shape, generator=generator), sigma)
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
