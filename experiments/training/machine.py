"""The fastest settings on a machine's processors, and a clock that waits for them."""

import shutil
import time
from typing import Any

import torch
from torch.utils._triton import has_triton

from experiments.presets import Precision

#: optimizer steps that are worth 40 seconds of compilation, if each gains 4 ms
LONG = 10_000


def _on_gpu(accelerator: str) -> bool:
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _on_cpu_with_bf16(accelerator: str) -> bool:
    """Whether training uses a CPU with bf16 instructions (AVX512-BF16 or AMX)."""
    others = torch.cuda.is_available() or torch.backends.mps.is_available()
    if accelerator != "cpu" and (accelerator != "auto" or others):
        return False
    has = torch.cpu.get_capabilities()
    bf16 = has.get("avx512_bf16", False) or has.get("amx_bf16", False)
    return bf16 and torch.backends.mkldnn.is_available()


def resolve_precision(precision: Precision, accelerator: str) -> Any:
    """`auto` is bf16-mixed on hardware with bf16, else 16-mixed (GPU) or 32-true."""
    if precision != "auto":
        return precision
    if _on_gpu(accelerator):
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if has_bf16 else "16-mixed"
    return "bf16-mixed" if _on_cpu_with_bf16(accelerator) else "32-true"


def resolve_channels_last(channels_last: bool | str, accelerator: str) -> bool:
    """`auto` is channels-last on a GPU, and on a CPU with bf16."""
    if channels_last != "auto":
        return bool(channels_last)
    return _on_gpu(accelerator) or _on_cpu_with_bf16(accelerator)


def resolve_compile(compile: bool | str, accelerator: str, steps: float) -> bool | str:
    """`auto` is true for a long training on a GPU, and false otherwise.

    A compilation takes 40 s, and Triton needs a compiler for C. CUDA graphs are not the default
    because no GPU has run them yet.
    """
    if compile != "auto":
        return compile
    can_compile = has_triton() and any(map(shutil.which, ("cc", "gcc", "clang")))
    return _on_gpu(accelerator) and steps >= LONG and can_compile


def set_tf32() -> None:
    """32-bit convolutions take TF32 on a GPU, and 32-bit matrix products do not.

    Convolutions are nearly all of a network's time. The products are few and small, and the
    whitening's covariance needs their precision. These are torch's defaults, set on purpose by the
    flags that torch 2.11 and 2.15 both read; records have them as versions["tf32"].
    """
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def now(device: torch.device) -> float:
    """Seconds of a wall clock, after the device has finished its work."""
    synchronise(device)
    return time.perf_counter()
