"""CIFAR-100, SVHN and folders of pictures: reading, checks, cache and synthetic images."""

import hashlib
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

import datamodules.folder
from datamodules.cifar10 import CIFAR10DataModule
from datamodules.datasets import CIFAR10, CIFAR100, SVHN, open_data_set
from datamodules.pictures import read_picture
from datamodules.synthetic import synthetic_cifar10, synthetic_classes

SEVEN = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def fill(root, split="train", classes=SEVEN, count=4):
    """Write pictures of several sizes, modes and formats; each class has its own grey."""
    for label, name in enumerate(classes):
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = noise(40 + i, 50, 3, seed=100 * label + i) // 8 + 30 * label
            mode = ("RGB", "L", "P", "RGBA")[i % 4]
            suffix = (".png", ".JPG", ".gif", ".webp")[i % 4]
            Image.fromarray(pixels).convert(mode).save(folder / f"{i}{suffix}")


@pytest.fixture
def root(tmp_path):
    fill(tmp_path)
    return tmp_path


def module(root, **options):
    data = CIFAR10DataModule(
        root=str(root), **{"dataset": "folder", "source": "folder", "batch_size": 7} | options
    )
    data.prepare_data()
    return data


def refused(root, message, **options):
    with pytest.raises(MisconfigurationException, match=message) as error:
        module(root, **options)
    assert "\n" not in str(error.value)


# CIFAR-100 and SVHN


def test_cifar100_is_read_from_its_official_pickles(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    pixels = {"train": noise(200, 3072), "test": noise(100, 3072, seed=1)}
    labels = {split: [i % 100 for i in range(len(x))] for split, x in pixels.items()}
    for split, x in pixels.items():
        entry = write(split, {"data": x, "fine_labels": labels[split]})
        monkeypatch.setattr(datasets.CIFAR100, f"{split}_list", [entry])
    _, md5 = write("meta", {"fine_label_names": list(CIFAR100.classes)})
    monkeypatch.setattr(datasets.CIFAR100, "meta", datasets.CIFAR100.meta | {"md5": md5})

    data = CIFAR10DataModule(
        root=str(tmp_path), dataset="cifar100", source="cifar100", batch_size=50, val_fraction=0.5,
        mixup_alpha=1.0,
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert data.source == "cifar100"
    assert len(data.classes) == 100
    assert data.classes[23] == "cloud"
    assert data.mean.tolist() == pytest.approx(CIFAR100.mean)
    assert data.train_dataloader().labels.bincount().tolist() == [1] * 100
    _, targets = next(iter(data.train_dataloader()))
    assert targets.shape == (50, 100)
    assert data.test_dataloader().labels.tolist() == labels["test"]
    assert np.array_equal(data.test_dataloader().images[5].flatten(), pixels["test"][5])


def test_svhn_is_read_from_its_official_files(tmp_path, monkeypatch):
    content = {}
    entries = dict(datasets.SVHN.split_list)
    for split, count in (("train", 40), ("test", 20)):
        images = noise(32, 32, 3, count, seed=count)
        labels = np.arange(1, count + 1) % 10
        labels[labels == 0] = 10  # the files' label of the digit 0
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": images, "y": labels[:, None].astype(np.uint8)})
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        entries[split] = [entries[split][0], path.name, md5]
        content[split] = images, labels % 10
    monkeypatch.setattr(datasets.SVHN, "split_list", entries)
    data = CIFAR10DataModule(
        root=str(tmp_path), dataset="svhn", source="svhn", batch_size=10, val_fraction=0.25
    )
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    images, labels = content["test"]
    assert data.classes == tuple("0123456789")
    assert data.test_dataloader().labels.tolist() == labels.tolist()
    assert np.array_equal(data.test_dataloader().images[3], images[..., 3].transpose(2, 0, 1))
    assert len(data.train_dataloader().labels) == 30
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(MisconfigurationException, match=r"SVHN is incomplete .*test_32x32\.mat is"):
        open_data_set("svhn", tmp_path, 32).find(download=False)


def test_the_facts_of_public_sets_agree_with_torchvision():
    assert sum(CIFAR10.counts) == sum(CIFAR100.counts) == 50_000
    assert sum(SVHN.counts) == 73_257
    for data_set in (CIFAR10, CIFAR100, SVHN):
        assert len(data_set.classes) == len(set(data_set.classes)) == len(data_set.counts)
        assert all(len(md5) == 32 for md5 in data_set.md5_sums().values())
    assert len(SVHN.md5_sums()) == 2
    assert len(CIFAR100.md5_sums()) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "mnist"}, "dataset must be one of cifar10, cifar100, svhn, folder, got"),
        ({"image_size": 64}, "image_size must be 32 for the data set cifar10, got 64"),
        ({"dataset": "svhn", "image_size": 48}, "image_size must be 32 or 64, got 48"),
        ({"source": "svhn"}, "source must be one of cifar10, synthetic, auto, got 'svhn'"),
    ],
)
def test_a_wrong_name_or_size_is_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        CIFAR10DataModule(**options)


# Folders of pictures


@pytest.mark.parametrize("side", [32, 64])
def test_a_folder_is_read_split_and_normalised(root, side):
    fill(root, "test", SEVEN[2:4], count=3)
    data = module(root, image_size=side, val_fraction=0.25)
    data.setup("fit")
    data.setup("test")
    train, val, test = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert data.classes == SEVEN
    assert train.labels.bincount().tolist() == [3] * 7
    assert val.labels.bincount().tolist() == [1] * 7
    assert test.labels.tolist() == [2] * 3 + [3] * 3
    assert torch.equal(test.images[1], read_picture(root / "test" / "cat" / "1.JPG", side)[0])
    whole = torch.cat([train.images, val.images]).double() / 255
    assert data.mean.tolist() == pytest.approx(whole.mean((0, 2, 3)).tolist())
    assert data.std.tolist() == pytest.approx(whole.std((0, 2, 3), correction=0).tolist())
    images, _ = next(iter(train))
    assert images.shape == (7, 3, side, side)


def test_the_cache_replaces_the_decoder_until_a_file_changes(root, monkeypatch):
    decoded = []

    def count(path, side):
        decoded.append(path)
        return read_picture(path, side)

    monkeypatch.setattr("datamodules.folder.read_picture", count)
    first = module(root)
    assert len(decoded) == 28
    assert module(root).data_set.digest == first.data_set.digest
    assert len(decoded) == 28
    changed = root / "train" / "ant" / "0.png"
    Image.fromarray(noise(40, 50, 3, seed=999)).save(changed)
    os.utime(changed, ns=(0, 0))
    changed_module = module(root)
    assert len(decoded) == 56
    assert changed_module.data_set.digest != first.data_set.digest
    (root / "train" / "ant" / "1.JPG").unlink()
    assert module(root).data_set.counts == (3, *[4] * 6)
    assert len(decoded) == 83
    with pytest.raises(MisconfigurationException, match="have changed since this training began"):
        changed_module.load_state_dict({"images": first.data_set.digest, "epoch": 1, "batch": 0})


@pytest.mark.parametrize("damage", ["byte", "half", "nothing"])
def test_a_damaged_cache_is_replaced(root, damage):
    expected = module(root).data_set
    cache = root / ".pictures-32.npz"
    content = bytearray(cache.read_bytes())
    content[4_000] ^= 1
    cache.write_bytes(
        {"byte": content, "half": content[: len(content) // 2], "nothing": b""}[damage]
    )
    again = module(root).data_set
    assert again.digest == expected.digest
    assert torch.equal(again.load("train")[0], expected.load("train")[0])
    with np.load(cache) as arrays:
        assert str(arrays["digest"]) == expected.digest


def test_a_cache_that_cannot_be_written_is_not_needed(root):
    (root / ".pictures-32.npz").mkdir()
    data = module(root)
    data.setup("fit")
    assert len(data.train_dataloader().images) == 28
    assert not list(root.glob("*.partial"))


def test_decoding_shows_its_progress(root, monkeypatch):
    lines = []
    monkeypatch.setattr(datamodules.folder, "LINE_EVERY", 0)
    monkeypatch.setattr(datamodules.folder, "rank_zero_info", lines.append)
    module(root)
    assert lines[-1] == "27 of 28 pictures"


def test_unreadable_pictures_are_skipped_and_listed(root):
    (root / "train" / "bee" / "0.png").write_bytes(b"no picture")
    (root / "train" / "bee" / "._0.png").write_bytes(b"hidden")
    (root / "train" / ".thumbnails").mkdir()
    (root / "train" / "bee" / ".thumbnails").mkdir()
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "bee" / ".thumbnails")
    for _ in range(2):  # first decoded, then from the cache
        data = module(root)
        data.setup("fit")
        (skipped,) = data.data_set.skipped
        assert f"{Path('train', 'bee', '0.png')} is not a picture" in skipped
        labels = torch.cat([data.train_dataloader().labels, data.val_dataloader().labels])
        assert labels.bincount().tolist() == [4, 3, 4, 4, 4, 4, 4]


def test_a_class_whose_pictures_are_all_unreadable_is_an_error(root):
    for path in (root / "train" / "cat").iterdir():
        path.write_bytes(b"no picture")
    refused(root, "no picture of the class cat in .*train is readable: .*0.png is not a picture")


def test_mistakes_in_the_structure_of_a_folder_are_named(root):
    (root / "train" / "hen").mkdir()
    refused(root, "train/hen contains no pictures")
    (root / "train" / "hen").rmdir()
    (root / "test" / "hen").mkdir(parents=True)
    refused(root, "the class hen in .*/test is not in .*/train, which has ant, bee")
    (root / "test" / "hen").rmdir()
    refused(root, "test has no class folders")
    refused(root / "train", "train has no folder train: put the training pictures of each class")
    fill(root / "one", classes=("ant",))
    refused(root / "one", "must have two or more classes, got ant in")
    with pytest.raises(MisconfigurationException, match=r"--data.dataset folder needs --data.root"):
        CIFAR10DataModule(dataset="folder", source="folder")


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS rejects such a name")
def test_a_class_whose_name_no_file_could_contain_is_an_error(root):
    os.mkdir(os.fsencode(root / "train") + b"/b\xe4r")
    refused(root, "the name of the class folder b\ufffdr in .*/train is not UTF-8: rename it")


# Synthetic images


@pytest.mark.parametrize(("classes", "side"), [(7, 32), (100, 32), (12, 64)])
def test_synthetic_images_have_the_classes_and_the_size_of_the_data_set(classes, side):
    images, labels = synthetic_cifar10("test", per_class=3, classes=classes, side=side)
    assert images.shape == (3 * classes, 3, side, side)
    assert labels.bincount().tolist() == [3] * classes
    assert len(set(synthetic_classes(classes))) == classes
    whole, _ = synthetic_cifar10("test", classes=classes)
    assert len(whole) == 10_000 // classes * classes


def test_hues_tell_apart_classes_of_the_same_shape():
    images, labels = synthetic_cifar10("train", per_class=40, classes=30)
    # The mean colour in the middle of each shape.
    colour = images[:, :, 12:20, 12:20].double().mean((2, 3))
    hue = torch.stack([colour[labels == label].mean(0) for label in (0, 10, 20)])
    assert hue.argmax(1).tolist() == [0, 1, 2]
