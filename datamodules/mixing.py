"""MixUp and CutMix of a batch, and the choice between them.

Partners are neighbours in the batch, which shuffling has made random, as in torchvision. Images may
be normalised or not: both mixtures commute with an affine map of the channels.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor


def soft_targets(labels: Tensor, num_classes: int) -> Tensor:
    """One-hot rows, float32 (B, num_classes), of labels int64 (B,)."""
    # Unlike one_hot this reads no label on the host.
    zeros = torch.zeros(len(labels), num_classes, device=labels.device)
    return zeros.scatter_(1, labels[:, None], 1.0)


def mixup(images: Tensor, targets: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Mix each image and its soft target with the one before, `lam` its own (Zhang et al. 2018).

    Images float (B, C, H, W), `targets` float (B, classes), `lam` in [0, 1].
    """
    return _blend(images, lam), _blend(targets, lam)


def cutmix(
    images: Tensor, targets: Tensor, box: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """Replace a box of each image by the same box of the one before it (Yun et al. 2019).

    Images float (B, C, H, W), `targets` float (B, classes); `box` is (top, bottom, left, right) in
    pixels, the ends excluded. Targets are mixed by the area that remains.
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
    """A box of 1 - `lam` of the area about a centre, clipped: (top, bottom, left, right)."""
    half_height, half_width = (int(0.5 * sqrt(1 - lam) * side) for side in (height, width))
    top, bottom = max(centre_y - half_height, 0), min(centre_y + half_height, height)
    left, right = max(centre_x - half_width, 0), min(centre_x + half_width, width)
    return top, bottom, left, right


def ramped_alpha(alpha: float, progress: float) -> float:
    """SAMResNet's schedule of MixUp: half of `alpha`, from a quarter of training on three quarters,
    from half of it on all of it. `progress` is the share of training done, in [0, 1).
    """
    if progress < 0.25:
        return 0.5 * alpha
    return 0.75 * alpha if progress < 0.5 else alpha


@dataclass(frozen=True)
class Mixing:
    """Gives each batch MixUp with probability `mixup_p`, else CutMix with `cutmix_p`, else neither.

    The share of the own image comes from Beta(alpha, alpha); alpha 0 switches a mixture off,
    whatever its probability. With `ramp`, MixUp's alpha follows `ramped_alpha`.

    Raises ValueError for an alpha below 0, a probability outside [0, 1], or probabilities of two
    mixtures that are on and add up to more than 1.
    """

    mixup_alpha: float = 0.0
    mixup_p: float = 1.0
    cutmix_alpha: float = 0.0
    cutmix_p: float = 1.0
    ramp: bool = False
    num_classes: int = 10

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("mixup_p", "cutmix_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.mixup_alpha and self.cutmix_alpha and self.mixup_p + self.cutmix_p > 1:
            raise ValueError(
                "mixup_p + cutmix_p must be 1 or less where both are on, "
                f"got {self.mixup_p} + {self.cutmix_p}"
            )

    @property
    def active(self) -> bool:
        """Whether any batch can come out mixed."""
        return self.mixup_alpha * self.mixup_p > 0 or self.cutmix_alpha * self.cutmix_p > 0

    def __call__(
        self, images: Tensor, labels: Tensor, rng: np.random.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Mixed images and soft targets, float32 (B, num_classes), of a batch with int64 labels.

        `rng` is NumPy's, because what is drawn are numbers on the host, which then no device has to
        be asked for. `progress` is the share of training done, in [0, 1).
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
