"""Sharpness-aware minimization: SAM (Foret et al. 2021) and ASAM (Kwon et al. 2021)."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Sharpness = Literal["none", "sam", "asam"]

#: ASAM's eta, which lets weights at zero move: the value of its paper
ETA = 0.01


def sam_perturbation(gradients: list[Tensor], rho: float) -> list[Tensor]:
    """SAM's e = rho g / ||g||, with the norm of all gradients together; 0 for gradients of 0."""
    return list(torch._foreach_mul(gradients, rho / _norm(gradients)))


def asam_perturbation(gradients: list[Tensor], scales: list[Tensor], rho: float) -> list[Tensor]:
    """ASAM's e = rho T^2 g / ||T g||; `scales` holds the diagonal of T in the gradients' shapes."""
    scaled = torch._foreach_mul(gradients, scales)
    return list(torch._foreach_mul(torch._foreach_mul(scaled, scales), rho / _norm(scaled)))


def asam_scales(parameters: Mapping[str, Tensor], eta: float = ETA) -> list[Tensor]:
    """The diagonal of ASAM's T: |w| + eta, and 1 for a bias, which its authors leave unscaled."""
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
    """Within it, BatchNorm normalises by its batch as in training, and forgets the batch.

    Momentum 0 would not do: it counts the batch, and 0 times an overflow is not a number.
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
    """The autocast that is on, without its cache of weights in 16 bits.

    The cache does not notice when weights change, and SAM's second pass would not see that they
    did. Lightning's autocast has no cache; others do.
    """
    dtype = torch.get_autocast_dtype(device.type)
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, dtype, enabled, cache_enabled=False)


class Ascent:
    """Moves weights w to w + e, at which the loss near w is about the largest, and back.

    A training step climbs with the loss at w, takes the loss at w + e, and descends after its
    backward pass, so that the optimizer moves w by the gradient at w + e. Accumulation, loss
    scaling, clipping and the exchange between devices do not change. Each batch climbs by its own
    gradient: each part of an accumulated step, and on several devices each share of the batch,
    which is Foret et al.'s m-sharpness. Dropout draws anew in the second pass.

    ValueError for an unknown kind, and unless rho, the radius of the neighbourhood, is above 0 and
    finite.
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

        The loss may be scaled by any positive factor, which cancels. Where its gradient overflows,
        the weights and so the next loss become not a number: a loss scaler skips that step.
        """
        parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._moved = list(parameters.values())
        # As Lightning does the other backward pass: its operations have their formats.
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
        """Put the weights back, bit for bit; their gradients stay."""
        torch._foreach_copy_(self._moved, self._origin)
        self._moved, self._origin = [], []
