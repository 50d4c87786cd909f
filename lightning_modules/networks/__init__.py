"""The networks. They import torch only."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from itertools import chain
from typing import Any

import torch
from torch import nn

from lightning_modules import NETWORK_CLASSES


def build_network(name: str, hyper_parameters: Mapping[str, Any]) -> nn.Module:
    """Build a network from the hyper-parameters of its classifier."""
    module = import_module(f"lightning_modules.networks.{name}")
    cls: type[nn.Module] = getattr(module, NETWORK_CLASSES[name])
    wanted = signature(cls).parameters
    network = cls(**{key: value for key, value in hyper_parameters.items() if key in wanted})
    if hyper_parameters.get("channels_last"):
        network = network.to(memory_format=torch.channels_last)
    return network


@contextmanager
def borrowed(network: nn.Module, other: nn.Module) -> Iterator[None]:
    """Exchange parameters and buffers of `network` and its copy within a block.

    A compiled network can evaluate averages of its weights this way without another compilation.
    """
    mine = chain(network.parameters(), network.buffers())
    pairs = list(zip(mine, chain(other.parameters(), other.buffers()), strict=True))

    def swap() -> None:
        for a, b in pairs:
            a.data, b.data = b.data, a.data

    swap()
    try:
        yield
    finally:
        swap()


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters of a network."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
