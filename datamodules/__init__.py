"""What networks are trained on: CIFAR-10 and its stand-in, as batches of augmented tensors."""

from datamodules.cifar10 import CIFAR10DataModule

__all__ = ["CIFAR10DataModule"]
