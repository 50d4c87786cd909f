"""Data sets as batches of augmented tensors: public ones, pictures, synthetic images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.cifar10 import CIFAR10DataModule

__all__ = ["CIFAR10DataModule"]


def __getattr__(name: str) -> Any:
    # Imports Lightning, which prediction and `--help` do not need.
    if name not in __all__:
        raise AttributeError(name)
    from datamodules.cifar10 import CIFAR10DataModule

    return CIFAR10DataModule
