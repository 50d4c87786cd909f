"""What attention looks at: the weights that a network's attention modules give to images."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.layers.attention import (
    ChannelAttention,
    SpatialAttention,
    SqueezeExcitation,
)

Kind = Literal["channel", "spatial"]

#: attention module -> what it weighs, and the layer whose outputs add up to the weights' logits
LAYERS: dict[type[nn.Module], tuple[Kind, str]] = {
    SqueezeExcitation: ("channel", "fc2"),
    ChannelAttention: ("channel", "mlp"),
    SpatialAttention: ("spatial", "conv"),
}


@dataclass(frozen=True)
class Attention:
    """The weights of one attention module, in (0, 1)."""

    module: str  # its name in the network
    kind: Kind
    weights: Tensor  # float32 (N, C) over channels, or (N, H, W) over positions

    @property
    def place(self) -> str:
        """Stage and block, counted from 1, or the part of the network that the module is in."""
        block = re.match(r"stages\.(\d+)\.(\d+)\.", self.module)
        if block:
            return f"stage {int(block[1]) + 1}, block {int(block[2]) + 1}"
        return self.module.partition(".")[0].replace("_", " ")


@torch.inference_mode()
def attend(network: nn.Module, images: Tensor) -> list[Attention]:
    """The weights of every attention module in the network, in the order in which they are used.

    `images` are normalised, float32 (N, 3, H, W); the network is left in evaluation mode.
    """
    logits: dict[str, Tensor] = {}
    kinds: dict[str, Kind] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            # Channel attention sends the mean and the maximum through one layer, and adds them.
            logits[name] = logits[name] + output if name in logits else output

        return hook

    handles = []
    for name, module in network.named_modules():
        if type(module) in LAYERS:
            kinds[name], layer = LAYERS[type(module)]
            handles.append(module.get_submodule(layer).register_forward_hook(keep(name)))
    try:
        network.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
    return [
        Attention(
            name,
            kinds[name],
            x.sigmoid().flatten(1) if kinds[name] == "channel" else x.sigmoid()[:, 0],
        )
        for name, x in logits.items()
    ]


def upsample(weights: Tensor, size: int) -> Tensor:
    """Maps (N, H, W) as (N, size, size), bilinearly."""
    resized = F.interpolate(weights[:, None], (size, size), mode="bilinear", align_corners=False)
    return resized.squeeze(1)


def stretch(weights: Tensor) -> Tensor:
    """Each map (N, H, W) moved and scaled to reach from 0 to 1; one without contrast is 0."""
    low, high = weights.amin((1, 2), keepdim=True), weights.amax((1, 2), keepdim=True)
    return (weights - low) / (high - low).clamp(min=1e-12)
