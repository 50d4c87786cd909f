"""Means of feature maps, with a gradient in the memory layout of the feature maps."""

from typing import Any

import torch
from torch import Tensor


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, dims: tuple[int, ...]) -> Tensor:
        return x.mean(dims, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...]], output: Tensor) -> None:
        ctx.shape = inputs[0].shape
        ctx.count = inputs[0].numel() // output.numel()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient / ctx.count).expand(ctx.shape), None


def mean(x: Tensor, *dims: int) -> Tensor:
    """The mean over some dimensions, which are kept with size 1.

    It is x.mean(dims, keepdim=True), whose own gradient is written out contiguous and takes that of
    the layers before it out of channels-last with it. This one is a view of one number a mean.
    """
    return _Mean.apply(x, dims)


def global_mean(x: Tensor) -> Tensor:
    """The mean of feature maps (N, C, H, W) over positions, (N, C, 1, 1)."""
    return mean(x, 2, 3)
