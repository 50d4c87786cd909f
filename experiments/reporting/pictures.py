"""The report's images: hardest test images, attention weights, augmented training images."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from datamodules.normalisation import normalise
from experiments.inference.analysis import hardest
from experiments.records.images import ImageFacts
from experiments.reporting.attention_maps import Attention, attend, stretch, upsample
from lightning_modules.prediction import log_probabilities

#: number of hardest images
HARDEST = 12
#: number of images with attention weights, of different classes
EXAMPLES = 3
#: columns and rows of the grid of augmented images
GRID = (8, 2)
#: opacity of a map that covers its image
OPACITY = 0.6


@dataclass(frozen=True)
class Picture:
    """An image as it is in the page."""

    src: str  # a `data:` address
    width: int  # in the page's pixels
    height: int
    alt: str
    caption: str = ""


def picture(pixels: Tensor, alt: str, caption: str = "", scale: int = 1) -> Picture:
    """The picture of pixels uint8 (3, H, W), enlarged by an integer."""
    height, width = pixels.shape[1:]
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    address = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(address, scale * width, scale * height, alt, caption)


def colour(values: Tensor, name: str) -> Tensor:
    """Values (H, W) in [0, 1] as pixels uint8 (3, H, W) of a matplotlib colour map."""
    rgba = matplotlib.colormaps[name](values.numpy(), bytes=True)
    return torch.from_numpy(rgba[..., :3]).permute(2, 0, 1)


def hardest_images(
    images: Tensor, labels: Tensor, logits: Tensor, classes: Sequence[str]
) -> list[Picture]:
    """The images whose labelled class has the lowest probability.

    `images` uint8 (N, 3, H, W), `labels` int64 (N,), `logits` (N, C).
    """
    found = []
    for i in hardest(logits, labels, HARDEST).tolist():
        label = int(labels[i])
        probabilities = log_probabilities(logits[i : i + 1])[0].exp()
        probability, predicted = probabilities.max(dim=0)
        own, taken = classes[label], classes[int(predicted)]
        found.append(
            picture(
                images[i],
                f"Test image {i}, labelled {own}, predicted {taken}",
                f"{own} → {taken}\n{probability:.1%} : {probabilities[label]:.1%}",
                scale=3,
            )
        )
    return found


@dataclass(frozen=True)
class ChannelStrip:
    """The channel weights of one module: one line of pixels per example image."""

    place: str
    channels: int
    strip: Picture
    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class SpatialMap:
    """The spatial weights of one module, drawn over one example image."""

    place: str
    overlay: Picture
    low: float
    high: float


@dataclass(frozen=True)
class AttentionPictures:
    """The attention weights of a network for a few example images."""

    examples: list[Picture]
    strips: list[ChannelStrip]
    maps: list[list[SpatialMap]]  # example -> module -> map
    scale: Picture  # the colours of weights from 0 to 1


def attention_pictures(
    network: nn.Module, images: Tensor, labels: Tensor, facts: ImageFacts
) -> AttentionPictures | None:
    """Attention weights for the first images of some classes, uint8 (N, 3, H, W).

    None if the network has no attention.
    """
    first: dict[int, int] = {}
    for i, label in enumerate(labels.tolist()):
        first.setdefault(label, i)
    chosen = list(first.values())[:EXAMPLES]
    names = [facts.classes[int(labels[i])] for i in chosen]
    mean, std = torch.tensor(facts.mean), torch.tensor(facts.std)
    attention = attend(network, normalise(images[chosen], mean, std))
    if not attention:
        return None
    examples = [
        picture(images[i], f"Test image {i}, labelled {name}", name, scale=3)
        for i, name in zip(chosen, names, strict=True)
    ]
    maps = [_overlay(x, images[chosen], names) for x in attention if x.kind == "spatial"]
    return AttentionPictures(
        examples,
        [_strip(x) for x in attention if x.kind == "channel"],
        [list(of_example) for of_example in zip(*maps, strict=True)],
        picture(colour(torch.linspace(0, 1, 64)[None], "viridis"), "Colours from 0 to 1"),
    )


def _strip(attention: Attention) -> ChannelStrip:
    weights = attention.weights
    # Sorted by the mean over examples, so that differences between examples are visible.
    order = weights.mean(dim=0).argsort(descending=True)
    low, mean, high = weights.min().item(), weights.mean().item(), weights.max().item()
    strip = picture(
        colour(weights[:, order], "viridis"),
        f"Weights of the {weights.shape[1]} channels in {attention.place}: "
        f"from {low:.2f} to {high:.2f}, {mean:.2f} on average",
    )
    return ChannelStrip(attention.place, weights.shape[1], strip, low, mean, high)


def _overlay(attention: Attention, images: Tensor, names: Sequence[str]) -> list[SpatialMap]:
    heat = stretch(upsample(attention.weights, images.shape[-1]))
    found = []
    for image, weights, values, name in zip(images, attention.weights, heat, names, strict=True):
        low, high = weights.min().item(), weights.max().item()
        grey = image.float().mean(dim=0, keepdim=True)
        mixed = OPACITY * colour(values, "inferno") + (1 - OPACITY) * grey
        alt = f"Attention of {attention.place} in the {name}: weights {low:.2f} to {high:.2f}"
        overlay = picture(mixed.round().to(torch.uint8), alt, scale=3)
        found.append(SpatialMap(attention.place, overlay, low, high))
    return found


def augmented_images(path: Path, side: int) -> Picture:
    """The first images of a run's training grid, with two pixels between them."""
    step = side + 2
    with Image.open(path) as grid:
        columns, rows = (min(x, y // step) for x, y in zip(GRID, grid.size, strict=True))
        part = grid.convert("RGB").crop((0, 0, step * columns + 2, step * rows + 2))
    pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1)
    return picture(pixels, f"{columns * rows} training images as the network sees them", scale=2)
