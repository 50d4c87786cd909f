"""The report's pictures: the hardest images, where attention lies, how data is augmented."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from datamodules.normalisation import MEAN, STD, normalise
from experiments.inference.analysis import hardest
from experiments.reporting.attention_maps import Attention, attend, stretch, upsample
from experiments.reporting.inline import Picture, colour, picture
from lightning_modules.prediction import log_probabilities

#: hardest images that are shown
HARDEST = 12
#: images whose attention is shown, each of another class
EXAMPLES = 3
#: columns and rows of the grid of augmented images
GRID = (8, 2)
#: how much of an overlay is the map and not the image under it
OPACITY = 0.6


def hardest_images(
    images: Tensor, labels: Tensor, logits: Tensor, classes: Sequence[str]
) -> list[Picture]:
    """The images whose own class got the least probability, and what they were taken for.

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
    """The weights that one module gives to channels, a line of pixels for each example."""

    place: str
    channels: int
    strip: Picture
    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class SpatialMap:
    """The weights that one module gives to the positions of one example, over that image."""

    place: str
    overlay: Picture
    low: float
    high: float


@dataclass(frozen=True)
class AttentionPictures:
    """What a network's attention does with the example images."""

    examples: list[Picture]
    strips: list[ChannelStrip]
    maps: list[list[SpatialMap]]  # an example each, then a module each


def attention_pictures(
    network: nn.Module, images: Tensor, labels: Tensor, classes: Sequence[str]
) -> AttentionPictures | None:
    """Of the first image of each class that comes up in images uint8 (N, 3, H, W).

    None where the network has no attention.
    """
    first: dict[int, int] = {}
    for i, label in enumerate(labels.tolist()):
        first.setdefault(label, i)
    chosen = list(first.values())[:EXAMPLES]
    names = [classes[int(labels[i])] for i in chosen]
    attention = attend(network, normalise(images[chosen], torch.tensor(MEAN), torch.tensor(STD)))
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
    )


def _strip(attention: Attention) -> ChannelStrip:
    weights = attention.weights
    # By their mean, so that a step in a line is that example's own.
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
        alt = f"Where {attention.place} looks in the {name}: weights {low:.2f} to {high:.2f}"
        overlay = picture(mixed.round().to(torch.uint8), alt, scale=3)
        found.append(SpatialMap(attention.place, overlay, low, high))
    return found


def colour_scale() -> Picture:
    """The colours of the channels' weights from 0 to 1."""
    return picture(colour(torch.linspace(0, 1, 64)[None], "viridis"), "Colours from 0 to 1")


def augmented_images(path: Path) -> Picture:
    """The first images of the grid that a run wrote of its training images, 34 pixels apart."""
    with Image.open(path) as grid:
        columns, rows = (min(x, y // 34) for x, y in zip(GRID, grid.size, strict=True))
        part = grid.convert("RGB").crop((0, 0, 34 * columns + 2, 34 * rows + 2))
    pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1)
    return picture(pixels, f"{columns * rows} training images as the network sees them", scale=2)
