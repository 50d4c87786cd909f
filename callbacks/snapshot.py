"""Copy of a training state in the host's memory."""

from typing import Any

import torch
from torch import Tensor


def snapshot(state: dict[str, Any]) -> dict[str, Any]:
    """Copy nested containers of tensors to the host; training does not change the copy.

    Tensors of a GPU are copied to pinned memory without waiting, then synchronised once.
    """
    copy: dict[str, Any] = _copy(state)
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return copy


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_copy(x) for x in value]
    if isinstance(value, tuple):
        return tuple(_copy(x) for x in value)
    if not isinstance(value, Tensor):
        return value
    if not value.is_cuda:
        return value.detach().to("cpu", copy=True)
    pinned = torch.empty_like(value, device="cpu", pin_memory=True)
    return pinned.copy_(value.detach(), non_blocking=True)
