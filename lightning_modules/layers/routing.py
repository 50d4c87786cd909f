"""Dynamic routing: gates let images skip residual blocks (Veit & Belongie 2018).

This is ConvNet-AIG, "Convolutional Networks with Adaptive Inference Graphs".
"""

from collections.abc import Sequence
from math import log
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_modules.layers.pooling import global_mean

Routing = Literal["none", "gates"]

#: share of open gates before training
OPEN = 0.85


def logistic_noise(uniform: Tensor) -> Tensor:
    """Return logistic noise from uniform numbers in [0, 1).

    It is the difference of two independent Gumbel variables.
    """
    return uniform.logit(eps=1e-6)


def straight_through(logits: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
    """Return random gates 0 or 1 with the gradient of a sigmoid.

    `logits` are log(p / (1 - p)) for gates that are open with probability p. With `logistic_noise`
    it is the straight-through Gumbel-softmax of two classes (Jang et al. 2017).
    """
    soft = ((logits + noise) / temperature).sigmoid()
    return (soft > 0.5).to(soft.dtype) - soft.detach() + soft


def target_rate_loss(rates: Sequence[Tensor], target: float) -> Tensor:
    """Return the mean squared distance of the gates' rates from the target rate.

    Each rate is the share of a batch's images for which one gate is open.
    """
    return (torch.stack(list(rates)) - target).square().mean()


class Gate(nn.Module):
    """Decides for each image from mean features whether a block is computed.

    Maps features (N, C, H, W) to gates (N, 1, 1, 1) that are 0 or 1, through 16 hidden units. Gates
    are random in training, and the more likely value in evaluation. In training, `rate` is the
    share of open gates in the last batch.
    """

    def __init__(self, channels: int, hidden: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, 1)
        nn.init.normal_(self.fc2.weight, std=0.001)
        nn.init.constant_(self.fc2.bias, log(OPEN / (1 - OPEN)))
        self.rate: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fc2(self.fc1(global_mean(x).flatten(1)).relu()).float()
        if self.training:
            gates = straight_through(logits, logistic_noise(torch.rand_like(logits)))
            self.rate = gates.mean()
        else:
            gates = (logits > 0).to(logits.dtype)
        return gates.to(x.dtype)[:, :, None, None]


def skips(gates: Tensor | None, training: bool) -> bool:
    """Whether to skip a block: a single image in evaluation has a closed gate.

    In larger batches and in compiled or exported graphs the gates multiply the block's output.
    """
    if gates is None or training or torch.compiler.is_compiling() or len(gates) != 1:
        return False
    return gates.item() == 0


def make_gate(routing: Routing, channels: int) -> Gate | None:
    """Return a block's gate, or None; ValueError for an unknown `routing`."""
    if routing not in ("none", "gates"):
        raise ValueError(f"routing must be 'none' or 'gates', got {routing!r}")
    return Gate(channels) if routing == "gates" else None


def gates_of(network: nn.Module) -> list[Gate]:
    """Return the gates of a network in the order of its blocks."""
    return [module for module in network.modules() if isinstance(module, Gate)]
