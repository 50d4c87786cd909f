"""Data module of CIFAR-10 and of other data sets: splits, device and loaders."""

import os
from dataclasses import fields, replace
from math import inf
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.augmentation import Augmentation
from datamodules.datasets import MissingDataError, Name, open_data_set
from datamodules.mixing import Mixing
from datamodules.normalisation import eval_batch_size, normalise
from datamodules.policies import make_policy
from datamodules.synthetic import synthetic_cifar10, synthetic_classes
from datamodules.tensor_loader import (
    EvalLoader,
    TrainLoader,
    epochs_of_training,
    shard,
    stratified_split,
)

Source = Literal["cifar10", "cifar100", "svhn", "folder", "synthetic", "auto"]


class CIFAR10DataModule(LightningDataModule):
    """A data set as uint8 tensors on the training device, which also augments them."""

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
        dataset: Name = "cifar10",
        image_size: int = 32,
    ) -> None:
        """
        Args:
            root: folder of the data set's files (default: $CIFAR10_ROOT, else data).
            source: the data set, synthetic images, or auto: synthetic if the data set is missing.
            download: download the data set if it is missing.
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
            dataset: images and classes; folder is root/train/CLASS/*.jpg and perhaps root/test.
            image_size: side of the images in pixels, 32 or 64; only folder takes 64.
        """
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be 1 or more, got {size}")
        if source not in (dataset, "cifar10", "synthetic", "auto"):
            raise ValueError(f"source must be one of {dataset}, synthetic, auto, got {source!r}")
        if crop_mode == "reflect" and crop_padding >= image_size:
            raise ValueError(
                f"crop_padding must be less than {image_size} if crop_mode is reflect, got "
                f"{crop_padding}"
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
        self.data_set = open_data_set(
            dataset, root if dataset == "folder" else self.root, image_size
        )
        names = (x.name for x in fields(Augmentation) if x.name in self.hparams)
        flags: dict[str, Any] = {name: self.hparams[name] for name in names}
        flags["policy"] = make_policy(policy, rand_augment_n, rand_augment_m, augmix_severity)
        self.augmentation = Augmentation(**flags)
        mixing = (mixup_alpha, mixup_p, cutmix_alpha, cutmix_p, mixup_ramp)
        self.mixing = Mixing(*mixing, num_classes=len(self.data_set.classes))
        if policy == "augmix" and self.mixing.active:
            raise ValueError(
                "policy must not be augmix if MixUp or CutMix is on: AugMix's loss compares "
                "views of one image, got 'augmix'"
            )
        self.source: Name | Literal["synthetic"] | None = None
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}
        self._position: dict[str, int] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their labels."""
        names = self.data_set.classes
        return synthetic_classes(len(names)) if self.source == "synthetic" else names

    @property
    def mean(self) -> Tensor:
        """Mean of each channel, float32 (3,); a folder needs `prepare_data` or `setup`."""
        return torch.tensor(self.data_set.mean)

    @property
    def std(self) -> Tensor:
        return torch.tensor(self.data_set.std)

    def prepare_data(self) -> None:
        """Find, download and verify the files, including the test set; set `self.source`."""
        if self.source is not None:
            return
        source, title = self.hparams["source"], self.data_set.title
        if self._needs_files(source):
            try:
                self.data_set.find(self.hparams["download"])
            except MissingDataError as error:
                if source != "auto":
                    raise
                rank_zero_info(f"{error}. Source auto: using synthetic images.")
            else:
                if source != "synthetic":
                    self.source = self.data_set.name
                    return
        rank_zero_info(f"Training on SYNTHETIC images: the results say nothing about {title}.")
        self.source = "synthetic"

    def _needs_files(self, source: str | None) -> bool:
        # Synthetic images have the data set's normalisation, which a folder must compute.
        return source != "synthetic" or self.data_set.name == "folder"

    def setup(self, stage: str) -> None:
        """Read the images: training for "fit" and "validate", test for "test".

        All processes use the source that rank 0 has prepared.
        """
        if self.trainer is not None:
            source = self.trainer.strategy.broadcast(self.source)
            if self.source is None and self._needs_files(source):
                self.data_set.find(download=False)
            self.source = source
        if stage in ("fit", "validate") and "train" not in self._splits:
            images, labels = self._load("train")
            train, val = stratified_split(
                labels, self.hparams["val_fraction"], self.hparams["split_seed"]
            )
            self._splits["train"] = images[train], labels[train]
            self._splits["val"] = images[val], labels[val]
        elif stage == "test" and "test" not in self._splits and self.data_set.has_test:
            self._splits["test"] = self._load("test")

    def _load(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        if self.source != "synthetic":
            return self.data_set.load(split)
        classes = len(self.data_set.classes)
        return synthetic_cifar10(split, classes=classes, side=self.data_set.side)

    def _on_device(self, split: str) -> tuple[Tensor, Tensor]:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        images, labels = self._splits[split]
        self._splits[split] = images.to(device), labels.to(device)
        return self._splits[split]

    def training_images(self, count: int) -> Tensor:
        """Return the first training images normalised, float32; after `setup("fit")`."""
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
            # Cutout's hole is zero after normalisation, as in the paper.
            replace(self.augmentation, cutout_fill=self.data_set.mean),
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
        """Return the epoch, its trained batches, and the digest of a folder's images."""
        if self.trainer is None:
            return {}
        loop = self.trainer.fit_loop
        epochs = loop.epoch_progress.state_dict()["current"]
        batches = loop.epoch_loop.batch_progress.state_dict()["current"]
        # Between two epochs Lightning still has the number of batches of the last epoch.
        within = epochs["started"] > epochs["processed"]
        state = {"epoch": epochs["processed"], "batch": batches["processed"] if within else 0}
        return state if self.data_set.digest is None else state | {"images": self.data_set.digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("images") != self.data_set.digest:
            raise MisconfigurationException(
                f"the pictures in --data.root {self.root} have changed since this training began: "
                "restore them, or begin a new run"
            )
        self._position = state_dict
