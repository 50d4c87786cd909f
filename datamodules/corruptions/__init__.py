"""CIFAR-10-C's 19 corruptions of batches (Hendrycks & Dietterich 2019).

Every corruption takes float pixels (N, 3, 32, 32) in [0, 1], a generator on the CPU, and the
parameters of one severity. It returns pixels of any range. The parameters are from CIFAR-10-C, not
from ImageNet-C, whose corruptions are stronger. The arithmetic is the same as in scikit-image,
SciPy, OpenCV and ImageMagick. Only frost and spatter differ: see `weather`.
"""

from datamodules.corruptions.benchmark import BENCHMARK, CORRUPTIONS, SEVERITIES, corrupt

__all__ = ["BENCHMARK", "CORRUPTIONS", "SEVERITIES", "corrupt"]
