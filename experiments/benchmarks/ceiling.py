"""What a device can do at most: operations of matrix products, and bytes that it copies."""

import time

import torch

from experiments.training.devices import synchronise

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
