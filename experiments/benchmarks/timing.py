"""Wall-clock times of compared functions, measured in turns, with their medians."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from experiments.console import track
from experiments.training.machine import now


def alternate(
    sides: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each side in each round, after a warm-up call of each side.

    A round runs every side once; every second round reverses the order, so that a change of the
    machine's speed affects all sides equally. ValueError for fewer than one round.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}")
    for side in track(sides.values(), "warm-up", len(sides)):
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in track(range(repeats), "rounds", repeats):
        for name in names if turn % 2 == 0 else reversed(names):
            seconds[name].append(seconds_of(sides[name], device))
    return seconds


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, including the work that it starts on the device."""
    start = now(device)
    function()
    return now(device) - start


def short(number: float) -> str:
    """Three digits, and no fewer than the whole number has."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


@dataclass(frozen=True)
class Ratio:
    """The time of one side divided by the time of another."""

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
#: bytes of a copied tensor, many times the size of a cache
COPIED = {"cpu": 2**28, "cuda": 2**31}


def matmul_ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """The most operations per second of a matrix product; a multiply-add is two.

    It is the best of several sizes and repeats. In 32 bits it uses TF32 if cuDNN's convolutions do,
    so that both have the same precision.
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
    best = min(seconds_of(lambda: torch.mm(a, b, out=product), device) for _ in range(REPEATS))
    return 2 * size**3 / best


def copy_bandwidth(device: torch.device) -> float:
    """The most bytes per second that a device copies, each read and written once."""
    source = torch.zeros(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return len(source) / min(
        seconds_of(lambda: target.copy_(source), device) for _ in range(REPEATS)
    )
