"""The networks, torch only. `NETWORKS` imports each of them when it is looked up."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from itertools import chain
from typing import Any

import torch
from torch import nn

_CLASSES = {
    "enhanced_efficient_resnet": "EnhancedEfficientResNet",
    "resnet": "ResNet",
    "sam_resnet": "SAMResNet",
    "se_resnet": "SEResNet",
    "speed_resnet": "SpeedResNet",
    "wide_resnet": "WideResNet",
}


class _Networks(Mapping[str, type[nn.Module]]):
    """Architecture name -> class of its network."""

    def __getitem__(self, name: str) -> type[nn.Module]:
        module = import_module(f"lightning_modules.networks.{name}")
        cls: type[nn.Module] = getattr(module, _CLASSES[name])
        return cls

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


NETWORKS: Mapping[str, type[nn.Module]] = _Networks()


def build_network(name: str, hyper_parameters: Mapping[str, Any]) -> nn.Module:
    """Build a network from a classifier's hyper-parameters; those of its training are left out."""
    cls = NETWORKS[name]
    wanted = signature(cls).parameters
    network = cls(**{key: value for key, value in hyper_parameters.items() if key in wanted})
    if hyper_parameters.get("channels_last"):
        network = network.to(memory_format=torch.channels_last)
    return network


@contextmanager
def borrowed(network: nn.Module, other: nn.Module) -> Iterator[None]:
    """Within it, `network` and its copy `other` exchange their parameters and buffers.

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
    """Number of trainable parameters of a network."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
