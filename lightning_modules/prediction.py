"""Prediction with several views, several networks and a temperature.

All modules map normalised images float (N, 3, H, W) to log-probabilities float32 (N, C). The
networks inside return logits. Log-probabilities are logits too, so modules nest in any order:
`TemperatureScaled(Ensemble([TTA(a), TTA(b)]))` is a network like `a`. Networks should be in
evaluation mode.
"""

from collections.abc import Mapping, Sequence
from math import isfinite, log
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.views import BRIGHTNESS, FLIP, SHIFTS, STEPS

Average = Literal["logits", "probabilities"]


def shift(images: Tensor, down: int, right: int) -> Tensor:
    """Move pictures (..., H, W) by whole pixels, and repeat their edges."""
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) - down).clamp_(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right).clamp_(0, width - 1)
    return images.index_select(-2, rows).index_select(-1, columns)


def scale_brightness(images: Tensor, factor: float, mean: Tensor, std: Tensor) -> Tensor:
    """Multiply the pixels of normalised images (N, C, H, W); clamp to [0, 1].

    `mean` and `std` (C,) of the normalisation are on the images' device.
    """
    mean, std = mean[:, None, None], std[:, None, None]
    pixels = (images * std + mean) * factor
    return (pixels.clamp_(0, 1) - mean) / std


def see(images: Tensor, view: str, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
    """Transform normalised images (N, C, H, W) to a view of them, also normalised.

    `mean` and `std` (C,) are only needed by views that change brightness.
    """
    for step in view.split("+"):
        if step == "flip":
            images = images.flip(-1)
        elif step in SHIFTS:
            images = shift(images, *SHIFTS[step])
        elif step in BRIGHTNESS:
            assert mean is not None
            assert std is not None
            images = scale_brightness(images, BRIGHTNESS[step], mean, std)
        elif step != "identity":
            raise ValueError(f"view must be made of {', '.join(STEPS)}, got {view!r}")
    return images


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log-probabilities float32 (N, C) of logits (N, C) of any precision."""
    return (logits.float() / temperature).log_softmax(dim=1)


def average_predictions(predictions: Tensor, weights: Tensor, average: Average) -> Tensor:
    """Return the weighted average (N, C) of log-probabilities (M, N, C).

    `weights` (M,) are positive; their sum may differ from 1. An average of logits is the normalised
    geometric mean of the probabilities.
    """
    weights = (weights / weights.sum())[:, None, None]
    if average == "probabilities":
        return (predictions + weights.log()).logsumexp(dim=0)
    return (predictions * weights).sum(dim=0).log_softmax(dim=1)


def is_unsure(predictions: Tensor, threshold: float) -> Tensor:
    """Return bool (N,): whether the two likeliest classes are almost equal.

    The likeliest class has less than `threshold` of the probability of both. `predictions` are
    log-probabilities (N, C). A threshold of the probability alone would be worse, because label
    smoothing can keep all probabilities below 0.9.
    """
    first, second = predictions.topk(2, dim=1).values.unbind(1)
    return first - second < log(threshold / (1 - threshold))


@torch.inference_mode(False)
@torch.enable_grad()
def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature with the lowest mean NLL (Guo et al. 2017).

    Logits are (N, C), labels int64 (N,). The result is clamped to [0.05, 20], which matters only if
    almost all predictions are correct or if they are no better than chance. Use validation images,
    never test images.
    """
    # Copies, because tensors of inference mode have no gradients.
    logits, labels = logits.to(torch.float64, copy=True), labels.clone()
    log_temperature = torch.zeros((), dtype=torch.float64, device=logits.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_temperature], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_temperature.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return min(max(log_temperature.exp().item(), 0.05), 20.0)


def _check_average(average: Average) -> None:
    if average not in ("logits", "probabilities"):
        raise ValueError(f"average must be 'logits' or 'probabilities', got {average!r}")


def _positive(name: str, weights: Sequence[float]) -> Tensor:
    if not weights or not all(isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"{name} must weigh more than 0 each, got {list(weights)}")
    return torch.tensor(weights, dtype=torch.float32)


class TTA(nn.Module):
    """Test-time augmentation: the average prediction for several views of an image.

    `views` maps names of `lightning_modules.views` to weights, for example
    `{"identity": 2.0, "flip+up2": 1.0}`. Views that change brightness need the `mean` and `std`
    (C,) of the normalisation. With a `threshold`, only images whose first view `is_unsure` get the
    other views. Raises ValueError for unknown views, weights that are not positive, and a threshold
    outside (0.5, 1).
    """

    weights: Tensor
    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        views: Mapping[str, float] = FLIP,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        average: Average = "logits",
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        _check_average(average)
        steps = {step for view in views for step in view.split("+")}
        if unknown := sorted(steps - set(STEPS)):
            raise ValueError(
                f"views must be made of {', '.join(STEPS)}, joined by +, got {unknown[0]!r}"
            )
        if steps & set(BRIGHTNESS) and (mean is None or std is None):
            raise ValueError("mean and std must be given for views that change brightness")
        if threshold is not None and not 0.5 < threshold < 1:
            raise ValueError(f"threshold must be between 0.5 and 1, got {threshold}")
        self.network = network
        self.views = tuple(views)
        self.average: Average = average
        self.threshold = threshold
        # Not persistent, so that the state contains only the network.
        self.register_buffer("weights", _positive("views", list(views.values())), persistent=False)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def _predict(self, images: Tensor, view: str) -> Tensor:
        return log_probabilities(self.network(see(images, view, self.mean, self.std)))

    def _average(self, first: Tensor, images: Tensor) -> Tensor:
        others = [self._predict(images, view) for view in self.views[1:]]
        return average_predictions(torch.stack([first, *others]), self.weights, self.average)

    def forward(self, images: Tensor) -> Tensor:
        first = self._predict(images, self.views[0])
        if self.threshold is None:
            return self._average(first, images)
        unsure = is_unsure(first, self.threshold)
        if unsure.any():
            first[unsure] = self._average(first[unsure], images[unsure])
        return first


class Ensemble(nn.Module):
    """Weighted average of the predictions of several networks, by default equal.

    Raises ValueError without networks, for another number of weights than networks, and for weights
    that are not positive.
    """

    weights: Tensor

    def __init__(
        self,
        networks: Sequence[nn.Module],
        weights: Sequence[float] | None = None,
        average: Average = "logits",
    ) -> None:
        super().__init__()
        _check_average(average)
        if not networks:
            raise ValueError("networks must be one or more, got none")
        weights = [1.0] * len(networks) if weights is None else weights
        if len(weights) != len(networks):
            raise ValueError(
                f"weights must be {len(networks)} numbers, one a network, got {list(weights)}"
            )
        self.networks = nn.ModuleList(networks)
        self.average: Average = average
        self.register_buffer("weights", _positive("weights", weights), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        predictions = torch.stack([log_probabilities(net(images)) for net in self.networks])
        return average_predictions(predictions, self.weights, self.average)


class TemperatureScaled(nn.Module):
    """Divides a network's logits by a temperature, which changes no predicted class.

    A temperature above 1 lowers confidence. SAMResNet uses 1.2, and `fit_temperature` finds the
    best. Raises ValueError for a temperature that is not positive.
    """

    def __init__(self, network: nn.Module, temperature: float = 1.2) -> None:
        super().__init__()
        if not (isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.network = network
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        return log_probabilities(self.network(images), self.temperature)
