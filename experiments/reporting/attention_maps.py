"""The weights that a network's attention modules give to channels and positions of images."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.layers.attention import (
    ChannelAttention,
    CoordinateAttention,
    SpatialAttention,
    SqueezeExcitation,
)

Kind = Literal["channel", "spatial"]


def _of_channels(logits: Sequence[Tensor]) -> dict[Kind, Tensor]:
    # Channel attention sends the mean and the maximum through one layer, and adds them.
    return {"channel": torch.stack(tuple(logits)).sum(dim=0).sigmoid().flatten(1)}


def _of_positions(logits: Sequence[Tensor]) -> dict[Kind, Tensor]:
    return {"spatial": logits[0].sigmoid()[:, 0]}


def _of_coordinates(logits: Sequence[Tensor]) -> dict[Kind, Tensor]:
    rows, columns = logits
    weights = rows.sigmoid() * columns.sigmoid()
    return {"channel": weights.mean((2, 3)), "spatial": weights.mean(1)}


#: attention module -> its layers that output logits, and the function from logits to weights
LAYERS: dict[
    type[nn.Module], tuple[Sequence[str], Callable[[Sequence[Tensor]], dict[Kind, Tensor]]]
] = {
    SqueezeExcitation: (["fc2"], _of_channels),
    ChannelAttention: (["mlp"], _of_channels),
    SpatialAttention: (["conv"], _of_positions),
    CoordinateAttention: (["rows", "columns"], _of_coordinates),
}


@dataclass(frozen=True)
class Attention:
    """The weights of one attention module, in (0, 1).

    A module with a weight for each channel at each position gives two objects: its means over
    positions and its means over channels.
    """

    module: str  # its name in the network
    kind: Kind
    weights: Tensor  # float32 (N, C) over channels, or (N, H, W) over positions

    @property
    def place(self) -> str:
        """Stage and block, counted from 1, or the network's part with the module."""
        block = re.match(r"stages\.(\d+)\.(\d+)\.", self.module)
        if block:
            return f"stage {int(block[1]) + 1}, block {int(block[2]) + 1}"
        return self.module.partition(".")[0].replace("_", " ")


@torch.inference_mode()
def attend(network: nn.Module, images: Tensor) -> list[Attention]:
    """The weights of all attention modules in the order of the forward pass.

    `images` are normalised, float32 (N, 3, H, W). Puts the network into evaluation mode.
    """
    logits: dict[str, list[Tensor]] = {}
    modules = dict(network.named_modules())

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            logits.setdefault(name, []).append(output)

        return hook

    handles = [
        module.get_submodule(layer).register_forward_hook(keep(name))
        for name, module in modules.items()
        if type(module) in LAYERS
        for layer in LAYERS[type(module)][0]
    ]
    try:
        network.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
    return [
        Attention(name, kind, weights)
        for name, found in logits.items()
        for kind, weights in LAYERS[type(modules[name])][1](found).items()
    ]


def upsample(weights: Tensor, size: int) -> Tensor:
    """Maps (N, H, W) as (N, size, size), bilinearly."""
    resized = F.interpolate(weights[:, None], (size, size), mode="bilinear", align_corners=False)
    return resized.squeeze(1)


def stretch(weights: Tensor) -> Tensor:
    """Maps (N, H, W), each scaled to the range from 0 to 1. A constant map becomes 0."""
    low, high = weights.amin((1, 2), keepdim=True), weights.amax((1, 2), keepdim=True)
    return (weights - low) / (high - low).clamp(min=1e-12)
