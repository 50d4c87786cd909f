"""Knowledge distillation: teachers, and the loss of a student that learns from them."""

from collections.abc import Sequence
from math import log
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Reduction = Literal["batchmean", "mean"]


def soft_targets(logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Logarithm of the teachers' mean probabilities at a temperature, float32 (N, C).

    `logits` contains each teacher's logits (N, C) of any floating dtype. The probabilities are
    averaged, not the logits (You et al. 2017, "Learning from Multiple Teacher Networks").
    """
    soft = torch.stack([(x.float() / temperature).log_softmax(1) for x in logits])
    return soft.logsumexp(0) - log(len(logits))


def distillation_loss(
    logits: Tensor, targets: Tensor, temperature: float, reduction: Reduction = "batchmean"
) -> Tensor:
    """T^2 KL(targets || student at temperature T), a float32 scalar in nats.

    `logits` are the student's (N, C), `targets` the result of `soft_targets` (N, C). T^2 keeps the
    gradient's size at every temperature (Hinton et al. 2015, "Distilling the Knowledge in a Neural
    Network", section 2). "batchmean" is the mean over images, as in the paper; "mean" divides by
    the number of classes too, as `torch.nn.KLDivLoss` does by default.
    """
    student = (logits.float() / temperature).log_softmax(1)
    divergence = F.kl_div(student, targets, reduction=reduction, log_target=True)
    return temperature**2 * divergence


class Distillation:
    """Teachers of a training, and the weight of their answers in its loss.

    It is no module: a checkpoint of the student does not contain its teachers.

    Args:
        teachers: networks that map images (N, 3, 32, 32) to logits (N, C).
        temperature: divisor of the logits of teachers and student, above 0.
        weight: share of the distillation loss in the loss, in [0, 1].
        reduction: batchmean averages over images; mean divides by the number of classes too.
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        temperature: float = 4.0,
        weight: float = 0.9,
        reduction: Reduction = "batchmean",
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, such as 4, got {temperature}")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be in [0, 1], such as 0.9, got {weight}")
        self.teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.temperature = temperature
        self.weight = weight
        self.reduction = reduction

    @torch.no_grad()
    def ask(self, images: Tensor) -> Tensor:
        """The teachers' soft targets (N, C) for the student's images (N, 3, 32, 32).

        Of AugMix's views (N, V, 3, 32, 32) every view is an image: (N * V, C).
        """
        images = images.flatten(0, -4)
        return soft_targets([teacher(images) for teacher in self.teachers], self.temperature)

    def loss(self, loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """Mix a loss with the distillation loss of logits (N, C) or (N, V, C)."""
        taught = distillation_loss(logits.flatten(0, -2), targets, self.temperature, self.reduction)
        return (1 - self.weight) * loss + self.weight * taught
