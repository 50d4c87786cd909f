"""MixUp and CutMix of batches, and the random choice between them.

As in torchvision, each image is mixed with the previous image of the shuffled batch. Images may be
normalised before or after, because both mixtures commute with affine maps of the channels.
"""

from dataclasses import dataclass, field
from math import sqrt

import numpy as np
import torch
from torch import Tensor


def soft_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Return one-hot targets float32 (B, num_classes) of labels int64 (B,)."""
    # one_hot would read labels on the host.
    zeros = torch.zeros(len(labels), num_classes, device=labels.device)
    return zeros.scatter_(1, labels[:, None], 1.0)


def mixup(images: Tensor, targets: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Blend each image and target with the previous ones (Zhang et al. 2018).

    Images float (B, C, H, W), `targets` float (B, classes); `lam` in [0, 1] is the image's share.
    """
    return _blend(images, lam), _blend(targets, lam)


def cutmix(
    images: Tensor, targets: Tensor, box: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """Fill a box of each image from the previous image (Yun et al. 2019).

    Images float (B, C, H, W), `targets` float (B, classes). `box` is (top, bottom, left, right) in
    pixels; bottom and right are exclusive. The remaining area is the image's share of the target.
    """
    top, bottom, left, right = box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right].roll(1, 0)
    height, width = images.shape[-2:]
    return mixed, _blend(targets, 1 - (bottom - top) * (right - left) / (height * width))


def _blend(batch: Tensor, lam: float) -> Tensor:
    return torch.lerp(batch.roll(1, 0), batch, lam)


def cutmix_box(
    lam: float, centre_y: int, centre_x: int, height: int, width: int
) -> tuple[int, int, int, int]:
    """Return a clipped box (top, bottom, left, right) with 1 - `lam` of the area."""
    half_height, half_width = (int(0.5 * sqrt(1 - lam) * side) for side in (height, width))
    top, bottom = max(centre_y - half_height, 0), min(centre_y + half_height, height)
    left, right = max(centre_x - half_width, 0), min(centre_x + half_width, width)
    return top, bottom, left, right


def ramped_alpha(alpha: float, progress: float) -> float:
    """Return MixUp's alpha in SAMResNet's schedule: 1/2, 3/4, then all of `alpha`.

    It increases at 1/4 and at 1/2 of training. `progress` in [0, 1) is the finished share.
    """
    if progress < 0.25:
        return 0.5 * alpha
    return 0.75 * alpha if progress < 0.5 else alpha


@dataclass(frozen=True)
class Mixing:
    """Applies MixUp with probability `mixup_p` and CutMix with `cutmix_p` to a batch.

    An image's share is drawn from Beta(alpha, alpha). An alpha of 0 turns a mixture off. With
    `ramp`, MixUp's alpha follows `ramped_alpha`. Raises ValueError for an alpha below 0, a
    probability outside [0, 1], or probabilities that add up to more than 1.
    """

    mixup_alpha: float = 0.0
    mixup_p: float = 1.0
    cutmix_alpha: float = 0.0
    cutmix_p: float = 1.0
    ramp: bool = False
    num_classes: int = field(kw_only=True)

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("mixup_p", "cutmix_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.mixup_alpha and self.cutmix_alpha and self.mixup_p + self.cutmix_p > 1:
            raise ValueError(
                "mixup_p + cutmix_p must be 1 or less if both are on, "
                f"got {self.mixup_p} + {self.cutmix_p}"
            )

    @property
    def active(self) -> bool:
        """Whether batches can be mixed."""
        return self.mixup_alpha * self.mixup_p > 0 or self.cutmix_alpha * self.cutmix_p > 0

    def __call__(
        self, images: Tensor, labels: Tensor, rng: np.random.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Return images and soft targets float32 (B, num_classes); labels are int64 (B,).

        `rng` draws on the host, to avoid a synchronisation. `progress` in [0, 1) is the finished
        share of training.
        """
        targets = soft_targets(labels, self.num_classes)
        mixup_p = self.mixup_p if self.mixup_alpha else 0.0
        cutmix_p = self.cutmix_p if self.cutmix_alpha else 0.0
        choice = rng.random()
        if choice < mixup_p:
            alpha = ramped_alpha(self.mixup_alpha, progress) if self.ramp else self.mixup_alpha
            return mixup(images, targets, rng.beta(alpha, alpha))
        if choice < mixup_p + cutmix_p:
            height, width = images.shape[-2:]
            lam = rng.beta(self.cutmix_alpha, self.cutmix_alpha)
            centre_y, centre_x = int(rng.integers(height)), int(rng.integers(width))
            return cutmix(images, targets, cutmix_box(lam, centre_y, centre_x, height, width))
        return images, targets
