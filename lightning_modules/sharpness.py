"""Sharpness-aware minimization: SAM (Foret 2021) and ASAM (Kwon 2021)."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Sharpness = Literal["none", "sam", "asam"]

#: ASAM's eta from its paper; it moves weights that are zero
ETA = 0.01


def sam_perturbation(gradients: list[Tensor], rho: float) -> list[Tensor]:
    """Return SAM's e = rho g / ||g||, with the norm of all gradients."""
    return list(torch._foreach_mul(gradients, rho / _norm(gradients)))


def asam_perturbation(gradients: list[Tensor], scales: list[Tensor], rho: float) -> list[Tensor]:
    """Return ASAM's e = rho T^2 g / ||T g||; `scales` is the diagonal of T."""
    scaled = torch._foreach_mul(gradients, scales)
    return list(torch._foreach_mul(torch._foreach_mul(scaled, scales), rho / _norm(scaled)))


def asam_scales(parameters: Mapping[str, Tensor], eta: float = ETA) -> list[Tensor]:
    """Return the diagonal of ASAM's T: |w| + eta, and 1 for a bias."""
    return [
        torch.ones_like(p) if name.endswith("bias") else p.abs() + eta
        for name, p in parameters.items()
    ]


def _norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    at_least_32_bits = torch.promote_types(tensors[0].dtype, torch.float32)
    norms = torch.stack(torch._foreach_norm(tensors, 2, at_least_32_bits))
    return torch.linalg.vector_norm(norms).clamp_min(1e-12)


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Keep the running statistics of BatchNorm unchanged within a block.

    Momentum 0 would count the batch, and would turn an overflow into NaN.
    """
    tracking = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def uncached_casts(device: torch.device) -> torch.autocast:
    """Return the active autocast without its cache of weights in 16 bits.

    The cache would give SAM's second pass the old weights. Lightning's autocast has no cache, but
    others have one.
    """
    dtype = torch.get_autocast_dtype(device.type)
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, dtype, enabled, cache_enabled=False)


class Ascent:
    """Moves weights w to w + e, the nearby point with the largest loss, and back.

    A training step climbs with the loss at w and computes the loss at w + e. It descends after the
    backward pass, so the optimizer moves w by the gradient at w + e. Accumulation, loss scaling,
    clipping and communication do not change. Each accumulated batch, and each device's
    share of a batch, climbs by its own gradient (the m-sharpness of Foret et al.). Dropout has new
    random numbers in the second pass.

    Raises ValueError for an unknown kind, and if the radius rho is not above 0 and finite.
    """

    def __init__(self, kind: Literal["sam", "asam"], rho: float) -> None:
        if kind not in ("sam", "asam"):
            raise ValueError(f"sharpness must be 'none', 'sam' or 'asam', got {kind!r}")
        if not 0 < rho < math.inf:
            raise ValueError(f"rho must be above 0 and finite, got {rho}")
        self.kind = kind
        self.rho = rho
        self._moved: list[Tensor] = []
        self._origin: list[Tensor] = []

    def climb(self, network: nn.Module, loss: Tensor) -> None:
        """Move the weights by the perturbation that follows from their loss.

        A positive factor of the loss cancels. If the gradient overflows, the weights and the next
        loss become NaN, and the loss scaler skips the step.
        """
        parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._moved = list(parameters.values())
        # Like Lightning's backward pass, without autocast.
        with torch.autocast(loss.device.type, enabled=False):
            gradients = list(torch.autograd.grad(loss, self._moved))
        with torch.no_grad():
            if self.kind == "sam":
                perturbation = sam_perturbation(gradients, self.rho)
            else:
                perturbation = asam_perturbation(gradients, asam_scales(parameters), self.rho)
            self._origin = [p.clone() for p in self._moved]
            torch._foreach_add_(self._moved, perturbation)

    @torch.no_grad()
    def descend(self) -> None:
        """Restore the weights bit for bit, and keep the gradients."""
        torch._foreach_copy_(self._moved, self._origin)
        self._moved, self._origin = [], []
