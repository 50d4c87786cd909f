"""Data module of CIFAR-10: splits, device and loaders."""

import os
from dataclasses import fields, replace
from math import ceil, inf
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.augmentation import Augmentation
from datamodules.cifar10_files import MissingDataError, find_cifar10, load_cifar10
from datamodules.mixing import Mixing
from datamodules.normalisation import CIFAR10_CLASSES, MEAN, STD, eval_batch_size, normalise
from datamodules.policies import make_policy
from datamodules.synthetic import SYNTHETIC_CLASSES, synthetic_cifar10
from datamodules.tensor_loader import EvalLoader, TrainLoader, derive_seed, shard

Source = Literal["cifar10", "synthetic", "auto"]


class CIFAR10DataModule(LightningDataModule):
    """CIFAR-10 as uint8 tensors on the training device, which also augments them."""

    def __init__(
        self,
        root: str | None = None,
        source: Source = "cifar10",
        download: bool = True,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        seed: int = 0,
        crop_padding: int = 4,
        crop_mode: Literal["zero", "reflect"] = "zero",
        flip: float = 0.5,
        flip_mode: Literal["random", "alternating"] = "random",
        rotation: float = 0.0,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        perspective: float = 0.0,
        perspective_p: float = 0.5,
        policy: Literal["none", "trivial_augment", "rand_augment", "augmix"] = "none",
        rand_augment_n: int = 2,
        rand_augment_m: int = 9,
        augmix_severity: int = 3,
        cutout: int = 0,
        mixup_alpha: float = 0.0,
        mixup_p: float = 1.0,
        mixup_ramp: bool = False,
        cutmix_alpha: float = 0.0,
        cutmix_p: float = 1.0,
    ) -> None:
        """
        Args:
            root: folder that contains cifar-10-batches-py (default: $CIFAR10_ROOT, else data).
            source: CIFAR-10, synthetic images, or auto: synthetic images if CIFAR-10 is missing.
            download: download CIFAR-10 if it is missing.
            batch_size: training images per step on all devices together.
            eval_batch_size: images per evaluation step; null is 2,500 on a GPU, 250 on a CPU.
            val_fraction: share of the training images for validation, equal in each class.
            split_seed: seed of the split into training and validation images.
            seed: seed of the order, augmentation and mixing of training images.
            crop_padding: padding of the random crop, in pixels.
            crop_mode: pad with zeros or with a reflection.
            flip: probability of a horizontal flip.
            flip_mode: random, or alternating: each image is flipped every second epoch.
            rotation: maximum rotation in both directions, in degrees.
            brightness: brightness factor in 1 +- this.
            contrast: contrast factor in 1 +- this.
            saturation: saturation factor in 1 +- this.
            hue: hue shift within +- this share of the colour circle, up to 0.5.
            perspective: distortion scale of the random perspective, up to 0.6.
            perspective_p: probability of the random perspective.
            policy: strong augmentation before Cutout; augmix needs model.jsd_weight.
            rand_augment_n: number of RandAugment's operations per image.
            rand_augment_m: strength of RandAugment's operations, from 0 to 30.
            augmix_severity: maximum strength of AugMix's operations, from 1 to 10.
            cutout: side of Cutout's square hole, in pixels.
            mixup_alpha: alpha of MixUp's Beta(alpha, alpha); 0 turns MixUp off.
            mixup_p: probability of MixUp per batch.
            mixup_ramp: use alpha / 2 in the first quarter of training and 3/4 alpha in the second.
            cutmix_alpha: alpha of CutMix's Beta(alpha, alpha); 0 turns CutMix off.
            cutmix_p: probability of CutMix per batch; mixup_p + cutmix_p must be at most 1.
        """
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be 1 or more, got {size}")
        if source not in get_args(Source):
            raise ValueError(f"source must be one of {', '.join(get_args(Source))}, got {source!r}")
        if crop_mode == "reflect" and crop_padding >= 32:
            raise ValueError(
                f"crop_padding must be less than 32 if crop_mode is reflect, got {crop_padding}"
            )
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction}")
        if flip_mode not in ("random", "alternating"):
            raise ValueError(f"flip_mode must be random or alternating, got {flip_mode!r}")
        if flip_mode == "alternating" and flip != 0.5:
            raise ValueError(f"flip must be 0.5 if flip_mode is alternating, got {flip}")
        self.save_hyperparameters()
        # All nodes share a file system, so one process downloads for all.
        self.prepare_data_per_node = False
        self.root = Path(root or os.environ.get("CIFAR10_ROOT") or "data")
        self.mean, self.std = torch.tensor(MEAN), torch.tensor(STD)
        flags: dict[str, Any] = {x.name: self.hparams.get(x.name) for x in fields(Augmentation)}
        flags["policy"] = make_policy(policy, rand_augment_n, rand_augment_m, augmix_severity)
        # Zero after normalisation, as in the paper.
        self.augmentation = Augmentation(**flags | {"cutout_fill": MEAN})
        mixing = (mixup_alpha, mixup_p, cutmix_alpha, cutmix_p, mixup_ramp)
        self.mixing = Mixing(*mixing, num_classes=len(CIFAR10_CLASSES))
        if policy == "augmix" and self.mixing.active:
            raise ValueError(
                "policy must not be augmix if MixUp or CutMix is on: AugMix's loss compares "
                "views of one image, got 'augmix'"
            )
        self.source: Literal["cifar10", "synthetic"] | None = None
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}
        self._position: dict[str, int] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their labels."""
        return SYNTHETIC_CLASSES if self.source == "synthetic" else CIFAR10_CLASSES

    def prepare_data(self) -> None:
        """Find, download and verify the files, including the test set; set `self.source`."""
        if self.source is not None:
            return
        source = self.hparams["source"]
        if source != "synthetic":
            try:
                find_cifar10(self.root, self.hparams["download"])
                self.source = "cifar10"
                return
            except MissingDataError as error:
                if source == "cifar10":
                    raise
                rank_zero_info(f"{error}. Source auto: using synthetic images.")
        rank_zero_info("Training on SYNTHETIC images: the results say nothing about CIFAR-10.")
        self.source = "synthetic"

    def setup(self, stage: str) -> None:
        """Read the images: training for "fit" and "validate", test for "test".

        All processes use the source that rank 0 has prepared.
        """
        if self.trainer is not None:
            source = self.trainer.strategy.broadcast(self.source)
            if self.source is None and source == "cifar10":
                find_cifar10(self.root, download=False)
            self.source = source
        if stage in ("fit", "validate") and "train" not in self._splits:
            images, labels = self._load("train")
            train, val = stratified_split(
                labels, self.hparams["val_fraction"], self.hparams["split_seed"]
            )
            self._splits["train"] = images[train], labels[train]
            self._splits["val"] = images[val], labels[val]
        elif stage == "test" and "test" not in self._splits:
            self._splits["test"] = self._load("test")

    def _load(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        if self.source == "synthetic":
            return synthetic_cifar10(split)
        return load_cifar10(self.root, train=split == "train")

    def _on_device(self, split: str) -> tuple[Tensor, Tensor]:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        images, labels = self._splits[split]
        self._splits[split] = images.to(device), labels.to(device)
        return self._splits[split]

    def training_images(self, count: int) -> Tensor:
        """Return the first `count` training images, float32 (count, 3, 32, 32).

        They are normalised and not augmented. Call `setup("fit")` before.
        """
        images, _ = self._on_device("train")
        return normalise(images[:count], self.mean.to(images.device), self.std.to(images.device))

    def clean_train_dataloader(self, count: int) -> EvalLoader:
        """Return the first `count` training images with their labels, not augmented."""
        loader = self._eval_loader("train")
        return replace(loader, images=loader.images[:count], labels=loader.labels[:count])

    def _rank(self) -> dict[str, int]:
        """Return the rank of this process and the number of processes."""
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def train_dataloader(self) -> TrainLoader:
        hparams = self.hparams
        images, labels = self._on_device("train")
        if len(images) < hparams["batch_size"]:
            raise MisconfigurationException(
                f"data.batch_size must be at most the {len(images):,} training images, "
                f"got {hparams['batch_size']}"
            )
        batches = len(images) // hparams["batch_size"]
        epochs = epochs_of_training(self.trainer, batches) if self.trainer else 1
        if hparams["mixup_ramp"] and epochs == inf:
            raise MisconfigurationException(
                "trainer.max_epochs or trainer.max_steps must be 1 or more if data.mixup_ramp is "
                "on, because the ramp depends on the length of training, got -1"
            )
        loader = TrainLoader(
            images,
            labels,
            hparams["batch_size"],
            hparams["seed"],
            self.mean,
            self.std,
            self.augmentation,
            self.mixing,
            epochs=epochs,
            **self._rank(),
            alternating_flip=hparams["flip_mode"] == "alternating",
        )
        # Only the first loader of a resumed run starts within an epoch.
        position, self._position = self._position, {}
        loader.set_epoch(position.get("epoch", 0))
        loader.start = position.get("batch", 0)
        return loader

    def _eval_loader(self, split: str) -> EvalLoader:
        """Return a loader of this process's shard of a split."""
        whole, rank = self._on_device(split), self._rank()
        if 0 < len(whole[0]) < rank["world_size"]:
            raise MisconfigurationException(
                f"data.val_fraction leaves {len(whole[0])} validation images, fewer than the "
                f"{rank['world_size']} devices"
            )
        images, labels = (shard(x, **rank) for x in whole)
        size = self.hparams["eval_batch_size"] or eval_batch_size(images.device)
        return EvalLoader(images, labels, size, self.mean, self.std)

    def val_dataloader(self) -> EvalLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader:
        return self._eval_loader("test")

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of its batches that have been trained on."""
        if self.trainer is None:
            return {}
        loop = self.trainer.fit_loop
        epochs = loop.epoch_progress.state_dict()["current"]
        batches = loop.epoch_loop.batch_progress.state_dict()["current"]
        # Between two epochs Lightning still has the number of batches of the last epoch.
        within = epochs["started"] > epochs["processed"]
        return {"epoch": epochs["processed"], "batch": batches["processed"] if within else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._position = state_dict


def stratified_split(labels: Tensor, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return sorted indices (train, validation) with equal shares of every class."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "split"))
    train, val = [], []
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        held_out = round(len(members) * val_fraction)
        val.append(members[:held_out])
        train.append(members[held_out:])
    return torch.cat(train).sort().values, torch.cat(val).sort().values


def epochs_of_training(trainer: Trainer, batches: int) -> float:
    """Return the length of training in epochs of `batches`; infinite without a limit.

    The length is not a whole number if `max_steps` ends training within an epoch. Lightning's
    `estimated_stepping_batches` gives the same length but needs the training loader.
    """
    limit = trainer.limit_train_batches
    taken = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = max(1, ceil(taken / trainer.accumulate_grad_batches))
    epochs = inf if trainer.max_epochs == -1 else trainer.max_epochs or 1
    return epochs if trainer.max_steps == -1 else min(epochs, trainer.max_steps / steps)
