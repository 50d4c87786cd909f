"""Wall clocks of things that are compared: measured in turns, summed up by medians."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from experiments.training.devices import synchronise


def alternate(
    sides: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Wall-clock seconds of each side in each of `repeats` rounds, after one warm-up of each.

    A round runs every side once, every other round in the reversed order: what heats up or slows
    down a machine in the meantime meets all sides alike. What a side gives the device is waited
    for. ValueError for fewer than one round.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}")
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(repeats):
        for name in names if turn % 2 == 0 else reversed(names):
            synchronise(device)
            start = time.perf_counter()
            sides[name]()
            synchronise(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


@dataclass(frozen=True)
class Ratio:
    """How many times as long one side took as another."""

    median: float  # the ratio of the two medians
    low: float  # the lowest ratio within a round
    high: float  # the highest

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def ratio(seconds: Sequence[float], others: Sequence[float]) -> Ratio:
    """The ratio of `seconds` to `others`, both of the same rounds."""
    rounds = [a / b for a, b in zip(seconds, others, strict=True)]
    return Ratio(median(seconds) / median(others), min(rounds), max(rounds))


#: rows and columns of the matrices
SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384)}
REPEATS = 10
#: bytes of a copied tensor, many times what a cache holds
COPIED = {"cpu": 2**28, "cuda": 2**31}


def matmul_ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """The most operations per second that products of two square matrices reach.

    The best of several sizes and repeats, a multiply-add counted as two. In 32 bits a GPU may take
    TF32 where cuDNN's convolutions may, so that both are measured in one number format.
    """
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        return max(_products_per_second(size, dtype, device) for size in SIZES[device.type])
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


def _products_per_second(size: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = a @ b  # warm-up
    best = float("inf")
    for _ in range(REPEATS):
        synchronise(device)
        start = time.perf_counter()
        torch.mm(a, b, out=product)
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def copy_bandwidth(device: torch.device) -> float:
    """The most bytes per second that a device copies; it reads and writes each of them once."""
    source = torch.zeros(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    best = float("inf")
    for _ in range(REPEATS):
        synchronise(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return len(source) / best
