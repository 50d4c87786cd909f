"""Knowledge distillation: teachers, and the loss of their student."""

from collections.abc import Sequence
from math import inf, log
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Reduction = Literal["batchmean", "mean"]


def soft_targets(logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Return the logarithm of the teachers' mean probabilities, float32 (N, C).

    `logits` are the logits (N, C) of each teacher. Probabilities are averaged, not logits (You et
    al. 2017, "Learning from Multiple Teacher Networks").
    """
    soft = torch.stack([(x.float() / temperature).log_softmax(1) for x in logits])
    return soft.logsumexp(0) - log(len(logits))


def distillation_loss(
    logits: Tensor, targets: Tensor, temperature: float, reduction: Reduction = "batchmean"
) -> Tensor:
    """Return T^2 KL(targets || student at temperature T) in nats, float32.

    `logits` (N, C) are the student's, `targets` (N, C) are from `soft_targets`. With T^2 the size
    of the gradient does not depend on T (Hinton et al. 2015, "Distilling the Knowledge in a Neural
    Network", section 2). "batchmean" is the mean over images, as in the paper. "mean" also divides
    by the number of classes, like `torch.nn.KLDivLoss` by default.
    """
    student = (logits.float() / temperature).log_softmax(1)
    divergence = F.kl_div(student, targets, reduction=reduction, log_target=True)
    return temperature**2 * divergence


class Distillation:
    """Teachers of a training, and the weight of their loss.

    It is not a module, so that checkpoints of the student do not contain the teachers.

    Args:
        teachers: networks that map images (N, 3, 32, 32) to logits (N, C).
        temperature: divisor of the logits of teachers and student, above 0.
        weight: share of the distillation loss in the loss, in [0, 1].
        reduction: batchmean averages over images; mean also divides by the number of classes.
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        temperature: float = 4.0,
        weight: float = 0.9,
        reduction: Reduction = "batchmean",
    ) -> None:
        if not 0 < temperature < inf:
            raise ValueError(
                f"temperature must be above 0 and finite, such as 4, got {temperature}"
            )
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be in [0, 1], such as 0.9, got {weight}")
        self.teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.temperature = temperature
        self.weight = weight
        self.reduction = reduction

    def prepare(self, memory_format: torch.memory_format, compiled: bool) -> None:
        """Convert the teachers to a memory format, and compile them if wanted."""
        for teacher in self.teachers:
            teacher.to(memory_format=memory_format)
            if compiled:
                teacher.compile(dynamic=False)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the teachers to a device, with weights of this type."""
        for teacher in self.teachers:
            teacher.to(device, dtype)

    @torch.no_grad()
    def ask(self, images: Tensor) -> Tensor:
        """Return the teachers' soft targets (N, C) for images (N, 3, 32, 32).

        AugMix's views (N, V, 3, 32, 32) count as images: (N * V, C).
        """
        images = images.flatten(0, -4)
        return soft_targets([teacher(images) for teacher in self.teachers], self.temperature)

    def loss(self, loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """Mix a loss with the distillation loss of logits (N, C) or (N, V, C)."""
        taught = distillation_loss(logits.flatten(0, -2), targets, self.temperature, self.reduction)
        return (1 - self.weight) * loss + self.weight * taught
