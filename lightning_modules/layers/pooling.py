"""Means of feature maps whose gradients keep the memory layout."""

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
    """Return x.mean(dims, keepdim=True) with another gradient.

    torch's gradient is contiguous, and so the gradients of earlier layers lose channels-last. This
    gradient is an expanded view with one number per mean.
    """
    return _Mean.apply(x, dims)


def global_mean(x: Tensor) -> Tensor:
    """Return the mean (N, C, 1, 1) of feature maps (N, C, H, W) over positions."""
    return mean(x, 2, 3)
