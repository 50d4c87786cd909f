"""The memory of tensors during a call."""

import os
from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_growth(function: Callable[[], object], device: torch.device) -> int:
    """The peak of a device's tensors during a call, in bytes above the start.

    A GPU's caching allocator counts them; on a CPU torch's profiler does. Memory that libraries
    allocate themselves, such as oneDNN's scratch space, is not included.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    # The profiler's library reports on standard error that there is no GPU.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    kineto = profiler.profiler
    assert kineto is not None
    events = [e for e in kineto.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(accumulate(changes, initial=0))


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages; a shared storage counts once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def saved_bytes(function: Callable[[], object], kept: Iterable[Tensor]) -> int:
    """Bytes that autograd saves for the backward pass, without the tensors `kept`.

    Every storage counts once and as a whole. `function` must not run the backward pass.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in kept}
    saved: list[Tensor] = []  # kept until the end, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return held_bytes(saved)
