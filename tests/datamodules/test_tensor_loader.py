import random

import numpy as np
import pytest
import torch

from datamodules.augmentation import Augmentation
from datamodules.mixing import Mixing
from datamodules.synthetic import synthetic_cifar10
from datamodules.tensor_loader import EvalLoader, TrainLoader, derive_seed

EVERYTHING = Augmentation(
    crop_padding=4,
    crop_mode="reflect",
    flip=0.5,
    rotation=15,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.1,
    perspective=0.2,
    cutout=8,
)
NO_AUGMENTATION, NO_MIXING = Augmentation(), Mixing(num_classes=10)
BOTH_MIXTURES = Mixing(num_classes=10, mixup_alpha=0.3, mixup_p=0.4, cutmix_alpha=1.0, cutmix_p=0.4)
# With these, normalised pixels are the bytes themselves.
NO_MEAN, BYTES = torch.zeros(3), torch.full((3,), 1 / 255)


def train_loader(
    images,
    labels,
    batch_size=5,
    seed=0,
    augmentation=NO_AUGMENTATION,
    mixing=NO_MIXING,
    epochs=8,
    **options,
):
    return TrainLoader(
        images,
        labels,
        batch_size,
        seed,
        NO_MEAN,
        BYTES,
        augmentation,
        mixing,
        epochs,
        **options,
    )


def numbered(count):
    """Images (count, 3, 4, 4) and labels; an image's pixels and label are its index."""
    index = torch.arange(count)
    return index.to(torch.uint8)[:, None, None, None].repeat(1, 3, 4, 4), index


def indices(batches):
    """The indices of the numbered images in these batches, in order."""
    return torch.cat([images[:, 0, 0, 0] for images, _ in batches]).round().int().tolist()


def equal(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(a, b)
        for batch, other in zip(batches, others, strict=True)
        for a, b in zip(batch, other, strict=True)
    )


@pytest.fixture(scope="module")
def stand_in():
    return synthetic_cifar10("train", per_class=3)


@pytest.fixture(scope="module")
def same_image():
    """Thirty copies of one image: batches differ only by augmentation."""
    image, label = synthetic_cifar10("train", per_class=1)
    return image[:1].repeat(30, 1, 1, 1), label[:1].repeat(30)


@pytest.mark.parametrize("mixing", [NO_MIXING, BOTH_MIXTURES])
def test_iterating_an_epoch_again_gives_the_same_batches(stand_in, mixing):
    loader = train_loader(*stand_in, augmentation=EVERYTHING, mixing=mixing)
    first = list(loader)
    assert equal(list(loader), first)
    loader.set_epoch(1)
    list(loader)
    loader.set_epoch(0)
    assert equal(list(loader), first)


@pytest.mark.parametrize("mixing", [NO_MIXING, BOTH_MIXTURES])
def test_a_batch_is_independent_of_earlier_batches(stand_in, mixing):
    whole = list(train_loader(*stand_in, augmentation=EVERYTHING, mixing=mixing))
    for position in range(6):
        loader = train_loader(*stand_in, augmentation=EVERYTHING, mixing=mixing)
        loader.start = position
        torch.manual_seed(position)
        assert equal(list(loader), whole[position:])


def test_two_iterators_at_once_do_not_disturb_each_other(stand_in):
    loader = train_loader(*stand_in, augmentation=EVERYTHING)
    expected = list(loader)
    pairs = list(zip(loader, loader, strict=True))
    assert equal([one for one, _ in pairs], expected)
    assert equal([other for _, other in pairs], expected)


def test_every_epoch_and_every_seed_has_a_different_order():
    orders = []
    for seed in range(3):
        loader = train_loader(*numbered(200), seed=seed)
        for epoch in range(3):
            loader.set_epoch(epoch)
            orders.append(indices(loader))
    assert len(set(map(tuple, orders))) == 9
    assert sorted(orders[0]) != orders[0]


def test_every_epoch_seed_and_position_has_a_different_augmentation(same_image):
    batches = []
    for seed in range(2):
        loader = train_loader(*same_image, seed=seed, augmentation=EVERYTHING)
        for epoch in range(2):
            loader.set_epoch(epoch)
            batches += [images.numpy().tobytes() for images, _ in loader]
    assert len(set(batches)) == len(batches) == 24


def test_an_epoch_has_every_image_at_most_once_and_no_incomplete_batch():
    loader = train_loader(*numbered(23), batch_size=5)
    seen = set()
    for epoch in range(20):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [5] * len(loader) == [5] * 4
        assert len(set(indices(batches))) == 20
        seen.update(indices(batches))
    # Each epoch omits three other random images.
    assert seen == set(range(23))


def test_an_epoch_has_every_image_exactly_once_if_batches_divide_it():
    assert sorted(indices(train_loader(*numbered(20), batch_size=5))) == list(range(20))


def test_labels_stay_with_their_images():
    loader = train_loader(*numbered(100), batch_size=7)
    assert indices(loader) == torch.cat([labels for _, labels in loader]).tolist()


def test_start_skips_the_first_batches_once_when_the_iterator_advances():
    loader = train_loader(*numbered(30), batch_size=5)
    whole = list(loader)
    loader.start = 4
    never_advanced = iter(loader)
    assert equal(list(loader), whole[4:])
    assert equal(list(never_advanced), whole)
    assert equal(list(loader), whole)


def test_start_counts_only_for_its_epoch():
    loader = train_loader(*numbered(30), batch_size=5)
    loader.set_epoch(3)
    whole = list(loader)
    loader.start = 4
    loader.set_epoch(3)
    assert equal(list(loader), whole[4:])
    loader.start = 6
    loader.set_epoch(4)
    assert len(list(loader)) == 6


def test_global_random_generators_do_not_change(stand_in):
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    list(train_loader(*stand_in, augmentation=EVERYTHING, mixing=BOTH_MIXTURES))
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    assert torch.equal(after[0], before[0])
    assert np.array_equal(after[1][1], before[1][1])
    assert after[1][2:] == before[1][2:]
    assert after[2] == before[2]


def test_without_mixing_targets_are_labels():
    for images, labels in train_loader(*numbered(20)):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert labels.shape == (5,)


def test_with_mixing_every_target_is_soft_even_of_batches_left_alone(stand_in):
    mixing = Mixing(num_classes=10, mixup_alpha=1.0, mixup_p=0.5)
    targets = [targets for _, targets in train_loader(*stand_in, batch_size=2, mixing=mixing)]
    for target in targets:
        assert target.dtype == torch.float32
        assert target.shape == (2, 10)
        torch.testing.assert_close(target.sum(1), torch.ones(2))
    unmixed = [bool(((target == 0) | (target == 1)).all()) for target in targets]
    assert any(unmixed)
    assert not all(unmixed)


@pytest.mark.parametrize(
    ("epoch", "alpha"), [(0, 0.5), (1, 0.5), (2, 0.75), (3, 0.75), (4, 1.0), (7, 1.0)]
)
def test_the_ramp_of_mixup_follows_the_share_of_epochs_done(stand_in, epoch, alpha):
    ramped = train_loader(
        *stand_in, mixing=Mixing(num_classes=10, mixup_alpha=1.0, ramp=True), epochs=8
    )
    constant = train_loader(*stand_in, mixing=Mixing(num_classes=10, mixup_alpha=alpha), epochs=8)
    ramped.set_epoch(epoch)
    constant.set_epoch(epoch)
    assert equal(list(ramped), list(constant))


def test_evaluation_keeps_the_order_and_returns_every_image_once():
    images, labels = numbered(23)
    loader = EvalLoader(images, labels, 5, NO_MEAN, BYTES)
    batches = list(loader)
    assert len(loader) == len(batches) == 5
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3]
    assert indices(batches) == list(range(23))
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(23))
    assert equal(list(loader), batches)


def test_evaluation_of_nothing_is_no_batch():
    images, labels = numbered(0)
    loader = EvalLoader(images, labels, 5, NO_MEAN, BYTES)
    assert len(loader) == 0
    assert list(loader) == []


@pytest.mark.parametrize("evaluate", [True, False])
def test_batches_are_normalised_by_channel(evaluate):
    # By hand for a black and a white image: (0 - mean) / std and (1 - mean) / std.
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 2, 2)
    labels = torch.tensor([0, 1])
    mean, std = torch.tensor([0.5, 0.25, 0.75]), torch.tensor([0.5, 0.25, 0.125])
    if evaluate:
        loader = EvalLoader(images, labels, 2, mean, std)
    else:
        loader = TrainLoader(images, labels, 2, 0, mean, std, NO_AUGMENTATION, NO_MIXING, 1)
    [(batch, batch_labels)] = loader
    expected = torch.tensor([[-1.0, -1.0, -6.0], [1.0, 3.0, 2.0]])[batch_labels]
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch, expected[:, :, None, None].expand(-1, -1, 2, 2))


def test_a_derived_seed_depends_on_every_part_and_on_their_order():
    parts = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 10), (1, 0, "order"), (0, "order")]
    seeds = [derive_seed(*each) for each in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def mirrored(epoch, seed=0, ranks=1, augmentation=NO_AUGMENTATION):
    """Whether each of 400 images is mirrored in an epoch; their pixels rise from left to right."""
    images = torch.arange(16, dtype=torch.uint8).expand(400, 3, 16, 16)
    index = torch.arange(400)
    result = torch.zeros(400, dtype=torch.bool)
    for rank in range(ranks):
        options = {"rank": rank, "world_size": ranks, "alternating_flip": True}
        loader = train_loader(images, index, 40, seed, augmentation, **options)
        loader.set_epoch(epoch)
        for batch, labels in loader:
            result[labels] = batch[:, 0, 8, 0] > batch[:, 0, 8, 15]
    return result


def test_alternating_flips_show_each_image_once_either_way_in_two_epochs():
    first, second, third = (mirrored(epoch) for epoch in range(3))
    assert torch.equal(second, ~first)
    assert torch.equal(third, first)
    # A random half, within four standard deviations.
    assert abs(first.sum() - 200) <= 40


def test_which_images_are_flipped_first_follows_the_seed_alone():
    first = mirrored(0)
    assert torch.equal(mirrored(0), first)
    assert torch.equal(mirrored(0, ranks=4), first)
    assert 120 < (mirrored(0, seed=1) != first).sum() < 280
    cropped = Augmentation(crop_padding=2, crop_mode="reflect", flip=0.5)
    assert torch.equal(mirrored(0, augmentation=cropped), first)
