"""Corruptions by noise, independent in every pixel and channel."""

import torch
from torch import Generator, Tensor

from datamodules.corruptions.filters import uniform


def gaussian_noise(x: Tensor, generator: Generator, scale: float) -> Tensor:
    return x + scale * torch.randn(x.shape, generator=generator)


def shot_noise(x: Tensor, generator: Generator, photons: float) -> Tensor:
    return torch.poisson(x * photons, generator) / photons


def impulse_noise(x: Tensor, generator: Generator, amount: float) -> Tensor:
    flipped = uniform(0, 1, x.shape, generator) < amount
    salt = uniform(0, 1, x.shape, generator) < 0.5
    return torch.where(flipped, salt.float(), x)


def speckle_noise(x: Tensor, generator: Generator, scale: float) -> Tensor:
    return x + x * scale * torch.randn(x.shape, generator=generator)
