"""CIFAR-10-C's 19 corruptions, as functions of whole batches (Hendrycks and Dietterich, 2019).

Every corruption takes float pixels (N, 3, 32, 32) in [0, 1] and gives them back, of any range, from
its parameters at one severity and a generator on the CPU. Parameters are those of CIFAR-10-C (not
of ImageNet-C, which are harsher), and so is the arithmetic: where that goes through scikit-image,
SciPy, OpenCV or ImageMagick, it is written out here for whole batches. Two cannot be the same,
frost and spatter: `weather` says how they differ.
"""

from datamodules.corruptions.benchmark import BENCHMARK, CORRUPTIONS, SEVERITIES, corrupt

__all__ = ["BENCHMARK", "CORRUPTIONS", "SEVERITIES", "corrupt"]
