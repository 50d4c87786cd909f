"""The mean over all positions, with a gradient that keeps the layout of what it is the mean of."""

from typing import Any

import torch
from torch import Tensor


class _GlobalMean(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient / ctx.shape[2:].numel()).expand(ctx.shape)


def global_mean(x: Tensor) -> Tensor:
    """The mean of feature maps (N, C, H, W) over positions, (N, C, 1, 1).

    It is x.mean((2, 3), keepdim=True), whose own gradient is written out contiguous and takes that
    of the layers before it out of channels-last with it. This one is a view of (N, C, 1, 1).
    """
    return _GlobalMean.apply(x)
