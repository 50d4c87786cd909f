"""A recipe in torchvision: a DataLoader whose v2 transforms change one image at a time."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate
from torchvision.transforms import InterpolationMode, v2

from datamodules.facts import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD
from datamodules.tensor_loader import Batch, TrainLoader
from experiments.console import UserError


class Images(Dataset):
    """Images uint8 (N, 3, 32, 32) and labels; each access transforms an image."""

    def __init__(self, images: Tensor, labels: Tensor, transform: v2.Transform) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[index]), self.labels[index]


class Cutout(v2.Transform):
    """Zero a square of a normalised image, as `datamodules.augmentation.cutout` does.

    Torchvision's RandomErasing keeps its hole within the image and draws its size.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        height, width = inpt.shape[-2:]
        y, x = (int(torch.randint(side, ())) - self.size // 2 for side in (height, width))
        top, left = max(y, 0), max(x, 0)
        rows, columns = min(y + self.size, height) - top, min(x + self.size, width) - left
        zero = torch.zeros(1, 1, 1)
        return v2.functional.erase(inpt, top, left, rows, columns, zero)


def stock_transform(settings: Mapping[str, Any]) -> v2.Transform:
    """A recipe's transforms of an image uint8 (3, 32, 32), in `Augmentation`'s order.

    UserError for AugMix, which gives several views of an image.
    """
    if settings["policy"] == "augmix":
        raise UserError(
            "--data.policy augmix cannot be compared: torchvision has no AugMix with several views"
        )
    steps: list[v2.Transform] = []
    if padding := settings["crop_padding"]:
        mode = {"zero": "constant", "reflect": "reflect"}[settings["crop_mode"]]
        steps.append(v2.RandomCrop(32, padding=padding, padding_mode=mode))
    if settings["flip"]:
        steps.append(v2.RandomHorizontalFlip(settings["flip"]))
    colours = {name: settings[name] for name in ("brightness", "contrast", "saturation", "hue")}
    if any(colours.values()):
        steps.append(v2.ColorJitter(**colours))
    bilinear = InterpolationMode.BILINEAR
    if settings["rotation"]:
        steps.append(v2.RandomRotation(settings["rotation"], interpolation=bilinear))
    if settings["perspective"]:
        scale, probability = settings["perspective"], settings["perspective_p"]
        steps.append(v2.RandomPerspective(scale, probability, interpolation=bilinear))
    if settings["policy"] == "trivial_augment":
        steps.append(v2.TrivialAugmentWide())
    elif settings["policy"] == "rand_augment":
        steps.append(v2.RandAugment(settings["rand_augment_n"], settings["rand_augment_m"]))
    # Images stay bytes as long as possible, because that is faster.
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(CIFAR10_MEAN, CIFAR10_STD)]
    if settings["cutout"]:
        steps.append(Cutout(settings["cutout"]))
    return v2.Compose(steps)


def collate(mix: v2.Transform, items: list[tuple[Tensor, Tensor]]) -> Batch:
    """A batch of images and targets, mixed."""
    return mix(*default_collate(items))


def stock_loader(
    settings: Mapping[str, Any], ours: TrainLoader, batches: int, workers: int
) -> DataLoader:
    """A DataLoader of `batches` batches of our images with torchvision's transforms."""
    classes = len(CIFAR10_CLASSES)
    mixtures: dict[v2.Transform, float] = {}
    if alpha := settings["mixup_alpha"]:
        mixtures[v2.MixUp(alpha=alpha, num_classes=classes)] = settings["mixup_p"]
    if alpha := settings["cutmix_alpha"]:
        mixtures[v2.CutMix(alpha=alpha, num_classes=classes)] = settings["cutmix_p"]
    mixtures[v2.Identity()] = 1 - sum(mixtures.values())
    mix = v2.RandomChoice(list(mixtures), p=list(mixtures.values()))
    images = Images(ours.images.cpu(), ours.labels.cpu(), stock_transform(settings))
    return DataLoader(
        images,
        ours.batch_size,
        sampler=RandomSampler(images, num_samples=batches * ours.batch_size),
        num_workers=workers,
        collate_fn=partial(collate, mix),
        pin_memory=ours.images.is_cuda,
        persistent_workers=True,
    )


def stock_instead(settings: Mapping[str, Any]) -> str:
    """The operations that torchvision lacks, and their replacements."""
    instead = []
    if settings["flip_mode"] == "alternating":
        instead.append("flips by chance")
    if settings["mixup_ramp"]:
        instead.append("MixUp without a ramp")
    return ", ".join(instead)
