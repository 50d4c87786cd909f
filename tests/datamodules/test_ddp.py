"""Several processes together get the same batches as one process alone."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import cifar10
from datamodules.augmentation import Augmentation
from datamodules.cifar10 import CIFAR10DataModule
from datamodules.mixing import Mixing
from datamodules.synthetic import synthetic_cifar10
from datamodules.tensor_loader import TrainLoader, shard

AUGMENTATION = Augmentation(crop_padding=4, flip=0.5, rotation=15, brightness=0.2, cutout=8)
MIXING = Mixing(num_classes=10, mixup_alpha=0.3, mixup_p=0.5, cutmix_alpha=1.0, cutmix_p=0.5)
EVERYTHING = {"augmentation": AUGMENTATION, "mixing": MIXING}


NONE = Augmentation(), Mixing(num_classes=10)


def train_loader(images, labels, augmentation=NONE[0], mixing=NONE[1], seed=0, **place):
    mean, std = torch.zeros(3), torch.full((3,), 1 / 255)
    return TrainLoader(images, labels, 12, seed, mean, std, augmentation, mixing, 8, **place)


def numbered(count):
    """Images (count, 3, 4, 4) and labels; an image's pixels and label are its index."""
    index = torch.arange(count)
    return index.to(torch.uint8)[:, None, None, None].repeat(1, 3, 4, 4), index


def joined(loaders):
    """The batches of several processes, joined step by step."""
    return [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*loaders, strict=True)]


def equal(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(a, b)
        for batch, other in zip(batches, others, strict=True)
        for a, b in zip(batch, other, strict=True)
    )


@pytest.fixture(scope="module")
def same_image():
    """Thirty copies of one image: batches differ only by augmentation."""
    image, label = synthetic_cifar10("train", per_class=1)
    return image[:1].repeat(30, 1, 1, 1), label[:1].repeat(30)


@pytest.fixture
def data(monkeypatch):
    """Set up the data module of one of several processes: 180 and 20 images."""
    monkeypatch.setattr(cifar10, "synthetic_cifar10", partial(synthetic_cifar10, per_class=20))

    def data(rank, processes, **options):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setattr(rank_zero_only, "rank", rank)  # the Trainer sets it too; this undoes it
        module = CIFAR10DataModule(source="synthetic", eval_batch_size=4, **options)
        module.trainer = Trainer(
            accelerator="cpu", devices=processes, strategy="ddp", logger=False, max_epochs=1
        )
        module.prepare_data()
        module.setup("fit")
        return module

    return data


@pytest.mark.parametrize("count", [0, 1, 7, 12, 5_000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_shards_are_the_whole_in_order_and_differ_by_one_at_most(count, world_size):
    items = torch.arange(count)
    shards = [shard(items, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat(shards), items)
    lengths = [len(x) for x in shards]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("world_size", [1, 2, 3, 12])
def test_the_batches_of_all_processes_equal_one_processs(world_size):
    alone = train_loader(*numbered(100))
    loaders = [
        train_loader(*numbered(100), rank=r, world_size=world_size) for r in range(world_size)
    ]
    for epoch in range(3):
        for loader in (alone, *loaders):
            loader.set_epoch(epoch)
        assert [len(loader) for loader in loaders] == [len(alone)] * world_size == [8] * world_size
        for loader in loaders:
            assert [len(labels) for _, labels in loader] == [12 // world_size] * 8
        assert equal(joined(loaders), list(alone))


def test_a_shard_is_independent_of_earlier_shards():
    images, labels = synthetic_cifar10("train", per_class=6)
    for rank in range(2):
        place = {"rank": rank, "world_size": 2}
        whole = list(train_loader(images, labels, **EVERYTHING, **place))
        for position in range(5):
            loader = train_loader(images, labels, **EVERYTHING, **place)
            loader.start = position
            assert equal(list(loader), whole[position:])


def test_every_process_has_a_different_augmentation(same_image):
    shards = []
    for rank in range(3):
        loader = train_loader(*same_image, augmentation=AUGMENTATION, rank=rank, world_size=3)
        shards += [images.numpy().tobytes() for images, _ in loader]
    assert len(set(shards)) == len(shards) == 6


def test_a_batch_that_processes_cannot_share_evenly_is_rejected():
    with pytest.raises(
        ValueError, match=r"^batch_size must be a multiple of world_size 5, got 12$"
    ):
        train_loader(*numbered(30), rank=0, world_size=5)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_process_gets_its_part_from_its_trainer(data, processes):
    whole = torch.cat([images for images, _ in data(0, 1).val_dataloader()])
    parts = []
    for rank in range(processes):
        module = data(rank, processes, batch_size=12)
        parts.append(torch.cat([images for images, _ in module.val_dataloader()]))
        sizes = [len(labels) for _, labels in module.train_dataloader()]
        assert sizes == [12 // processes] * 15
    assert torch.equal(torch.cat(parts), whole)
    assert [len(part) for part in parts] == [len(x) for x in whole.tensor_split(processes)]


def test_fewer_images_to_validate_than_processes_are_refused(data):
    module = data(0, 21)
    message = r"^data\.val_fraction leaves 20 validation images, fewer than the 21 devices$"
    with pytest.raises(MisconfigurationException, match=message):
        module.val_dataloader()


def test_without_images_to_validate_no_process_has_any(data):
    assert len(data(1, 2, val_fraction=0.0).val_dataloader()) == 0
