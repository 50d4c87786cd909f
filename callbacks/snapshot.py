"""Training states: copies in the host's memory, and a check for NaN."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor


def snapshot(state: dict[str, Any]) -> dict[str, Any]:
    """Copy nested containers of tensors to the host.

    Tensors of a GPU are copied to pinned memory without waiting, then synchronised once.
    """
    copy: dict[str, Any] = apply_to_collection(state, Tensor, _copy)
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return copy


def _copy(value: Tensor) -> Tensor:
    if not value.is_cuda:
        return value.detach().to("cpu", copy=True)
    pinned = torch.empty_like(value, device="cpu", pin_memory=True)
    return pinned.copy_(value.detach(), non_blocking=True)


def is_finite(weights: Mapping[str, Tensor]) -> bool:
    """Return whether a `state_dict` is finite; waits for its device."""
    return all(x.isfinite().all() for x in weights.values() if x.is_floating_point())
