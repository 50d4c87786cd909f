"""How much memory tensors take while something runs."""

import os
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_growth(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors on a device during a call, above those before it.

    On a GPU as its caching allocator counts them, on a CPU by what torch's profiler sees allocated
    and freed: what libraries take for themselves, oneDNN's scratch space for one, is not in it.
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


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values, and those in dictionaries among them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, dict):
            found += tensors_in(value.values())
        elif isinstance(value, Tensor):
            found.append(value)
    return found


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors keep allocated, shared ones counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def saved_bytes(function: Callable[[], object], kept: Iterable[Tensor]) -> int:
    """Bytes that autograd saves for the backward pass during a call, those of `kept` left out.

    Storages are counted once, in whole. `function` does not run the backward pass.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in kept}
    saved: list[Tensor] = []  # held until the end, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return held_bytes(saved)
