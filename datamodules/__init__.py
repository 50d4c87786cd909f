"""Data sets as batches of augmented tensors: CIFAR-10 and its synthetic stand-in."""

from datamodules.cifar10 import CIFAR10DataModule

__all__ = ["CIFAR10DataModule"]
