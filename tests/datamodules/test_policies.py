"""The oracle is torchvision's policies, one image at a time.

Bilinear resampling is compared as in test_operations.py: some bytes may be one level off.
"""

from collections import defaultdict
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torchvision.transforms import InterpolationMode, v2

from datamodules import policies
from datamodules.augmentation import Augmentation
from datamodules.cifar10 import CIFAR10DataModule
from datamodules.policies import (
    AFFINE,
    AUGMIX_OPERATIONS,
    BINS,
    OPERATIONS,
    AugMix,
    Choice,
    RandAugment,
    TrivialAugmentWide,
    apply,
    magnitude_bins,
)
from datamodules.synthetic import synthetic_cifar10

POLICIES = [TrivialAugmentWide(), RandAugment(), AugMix()]
THEIRS = dict(zip(OPERATIONS, v2.TrivialAugmentWide._AUGMENTATION_SPACE, strict=True))
TORCHVISION = v2.TrivialAugmentWide()
#: bilinear resampling may change one byte in this many by one level
APART = 500


def seeded(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def images():
    return synthetic_cifar10("test", per_class=30)[0]


class Applied(NamedTuple):
    choice: Choice
    interpolation: str
    before: torch.Tensor
    after: torch.Tensor


def by_torchvision(image, number, magnitude, interpolation):
    name = THEIRS[OPERATIONS[number]]
    # torchvision's threshold is a share of 255.
    magnitude = float(magnitude) / 255 if name == "Solarize" else float(magnitude)
    no_fill = defaultdict(lambda: None)
    return TORCHVISION._apply_image_or_video_transform(
        image, name, magnitude, InterpolationMode(interpolation), no_fill
    )


def recorded(monkeypatch):
    """Record each choice that a policy applies, with the images before and after it."""
    seen, real = [], policies.apply

    def recording(images, choice, interpolation):
        before, after = images.clone(), real(images, choice, interpolation)
        seen.append(Applied(choice, interpolation, before, after.clone()))
        return after

    monkeypatch.setattr(policies, "apply", recording)
    return seen


# Applied operations


@pytest.mark.parametrize("policy", POLICIES[:2], ids=["TrivialAugmentWide", "RandAugment"])
def test_every_image_equals_torchvisions(monkeypatch, images, policy):
    seen = recorded(monkeypatch)
    got = policy(images, seeded())
    assert got.dtype == torch.uint8
    assert {x.interpolation for x in seen} == {"nearest"}
    assert set(seen[0].choice.operations) == set(range(14))
    for i, (image, result) in enumerate(zip(images, got, strict=True)):
        expected = image
        for choice, interpolation, *_ in seen:
            number, magnitude = choice.operations[i], choice.magnitudes[i]
            expected = by_torchvision(expected, number, magnitude, interpolation)
        assert torch.equal(result, expected), OPERATIONS[seen[0].choice.operations[i]]


def test_augmix_applies_torchvisions_operations_in_chains(monkeypatch, images):
    seen = recorded(monkeypatch)
    AugMix()(images[:40], seeded())
    assert {x.interpolation for x in seen} == {"bilinear"}
    assert len(seen) == 3
    assert torch.equal(seen[0].before, images[:40].repeat_interleave(6, 0))
    resampled = []
    for i, (choice, _, before, after) in enumerate(seen):
        assert i == 0 or torch.equal(before, seen[i - 1].after)
        for number, magnitude, image, got in zip(
            choice.operations, choice.magnitudes, before, after, strict=True
        ):
            expected = by_torchvision(image, number, magnitude, "bilinear")
            if OPERATIONS[number] in AFFINE:
                resampled.append((got.int() - expected.int()).abs())
            else:
                assert torch.equal(got, expected), OPERATIONS[number]
    apart = torch.stack(resampled)
    assert apart.max() <= 1
    assert apart.count_nonzero() * APART <= apart.numel()


def test_augmix_mixes_the_ends_of_its_chains(monkeypatch, images):
    seen, policy = recorded(monkeypatch), AugMix()
    shares = policy.draw_shares(20, seeded(1))
    monkeypatch.setattr(AugMix, "draw_shares", staticmethod(lambda count, rng: shares))
    got = policy(images[:10], seeded())
    assert got.shape == (10, 3, 3, 32, 32)
    assert got.dtype == torch.float32
    ends = seen[-1].after.double()
    for i, image in enumerate(images[:10]):
        assert torch.equal(got[i, 0], image / 255)
        for view in range(2):
            expected = shares[2 * i + view, 0] * image.double()
            for chain in range(3):
                expected += shares[2 * i + view, 1 + chain] * ends[6 * i + 3 * view + chain]
            torch.testing.assert_close(got[i, 1 + view].double(), expected / 255, atol=1e-6, rtol=0)


@pytest.mark.parametrize("number", range(14))
def test_all_images_can_get_the_same_operation_and_a_batch_can_be_empty(images, number):
    choice = Choice(np.full(4, number), np.full(4, 1, np.float32))
    got = apply(images[:4], choice, "nearest")
    expected = [by_torchvision(image, number, 1, "nearest") for image in images[:4]]
    assert torch.equal(got, torch.stack(expected))
    nothing = Choice(np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert apply(images[:0], nothing, "nearest").shape == (0, 3, 32, 32)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda x: type(x).__name__)
def test_the_numbers_drawn_decide_and_autocast_does_not(images, policy):
    before, once = images.clone(), policy(images, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        again = policy(images, seeded())
    assert torch.equal(once, again)
    assert not torch.equal(once, policy(images, seeded(1)))
    assert torch.equal(images, before)


# Random draws


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (magnitude_bins(0.99, 32.0, 32.0, 135.0, 0.99, 6), v2.TrivialAugmentWide),
        (magnitude_bins(0.3, 150 / 331 * 32, 150 / 331 * 20, 30.0, 0.9, 4), v2.RandAugment),
    ],
)
def test_magnitudes_and_signs_are_torchvisions(ours, theirs):
    for number, (name, (function, signed)) in enumerate(theirs._AUGMENTATION_SPACE.items()):
        assert policies.SIGNED[number] == signed, name
        values = function(BINS, 20, 32)
        expected = torch.zeros(BINS) if values is None else values.float()
        expected = expected.trunc() if "Translate" in name else expected
        expected = expected * 255 if name == "Solarize" else expected
        assert np.array_equal(ours[number], expected.numpy()), name


def test_trivial_augment_draws_operations_magnitudes_and_signs_uniformly():
    choice = TrivialAugmentWide().draw(140_000, seeded())
    assert chisquare(np.bincount(choice.operations, minlength=14)).pvalue > 1e-3
    bins = magnitude_bins(0.99, 32.0, 32.0, 135.0, 0.99, 6)
    for number, name in enumerate(OPERATIONS):
        found = choice.magnitudes[choice.operations == number]
        values, counts = np.unique(np.abs(found), return_counts=True)
        expected, multiplicity = np.unique(bins[number], return_counts=True)
        assert np.array_equal(values, expected), name
        if len(values) > 1:
            share = multiplicity / BINS * len(found)
            assert chisquare(counts, share).pvalue > 1e-3, name
        negative, positive = (found < 0).sum(), (found > 0).sum()
        if policies.SIGNED[number]:
            assert chisquare([negative, positive]).pvalue > 1e-3, name
        else:
            assert negative == 0, name


def test_rand_augment_draws_operations_uniformly_and_independently_at_one_strength(monkeypatch):
    seen = recorded(monkeypatch)
    RandAugment(n=2, m=12)(torch.zeros(40_000, 3, 2, 2, dtype=torch.uint8), seeded())
    first, second = (x.choice for x in seen)
    pairs = np.bincount(14 * first.operations + second.operations, minlength=196)
    assert chisquare(pairs).pvalue > 1e-3
    choice = RandAugment(m=12).draw(20_000, 32, 32, seeded())
    strength = magnitude_bins(0.3, 150 / 331 * 32, 150 / 331 * 32, 30.0, 0.9, 4)[:, 12]
    assert np.array_equal(np.abs(choice.magnitudes), strength[choice.operations])
    signed = choice.magnitudes[policies.SIGNED[choice.operations]]
    assert chisquare([(signed < 0).sum(), (signed > 0).sum()]).pvalue > 1e-3


def test_augmix_draws_operations_uniformly_and_levels_as_its_authors():
    choice = AugMix(severity=3).draw(90_000, 32, 32, seeded())
    counts = np.bincount(choice.operations, minlength=14)
    of_augmix = [OPERATIONS.index(name) for name in AUGMIX_OPERATIONS]
    assert counts.sum() == counts[of_augmix].sum()
    assert chisquare(counts[of_augmix]).pvalue > 1e-3

    def levels(name):
        return np.abs(choice.magnitudes[choice.operations == OPERATIONS.index(name)])

    for shear in ("shear_x", "shear_y"):
        uniform = (levels(shear) / 0.3 * 10 - 0.1) / 2.9
        assert kstest(uniform, "uniform").pvalue > 1e-3
    # The magnitude is int(level * maximum / 10), with levels in [0.1, 3].
    assert set(levels("rotate")) == set(range(9))
    assert set(levels("translate_x")) == set(levels("translate_y")) == {0, 1, 2, 3}
    assert set(levels("posterize")) == {3, 4}
    assert set(levels("solarize")) == set(range(256 - 76, 255))
    signed = choice.magnitudes[policies.SIGNED[choice.operations] & (choice.magnitudes != 0)]
    assert chisquare([(signed < 0).sum(), (signed > 0).sum()]).pvalue > 1e-3


def test_augmix_chains_have_one_to_three_operations_equally_often(monkeypatch):
    seen = recorded(monkeypatch)
    AugMix()(torch.zeros(2_000, 3, 2, 2, dtype=torch.uint8), seeded())
    going = np.stack([x.choice.operations != 0 for x in seen])
    assert (going[:-1] >= going[1:]).all()  # a chain does not continue after its end
    lengths = np.bincount(going.sum(0), minlength=4)
    assert lengths.sum() == 12_000
    assert lengths[0] == 0
    assert chisquare(lengths[1:]).pvalue > 1e-3


def test_augmix_shares_are_of_beta_and_dirichlet():
    shares = AugMix().draw_shares(20_000, seeded()).astype(np.float64)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert kstest(shares[:, 0], "beta", args=(1, 1)).pvalue > 1e-3
    for chain in range(1, 4):
        of_mixture = shares[:, chain] / (1 - shares[:, 0])
        of_mixture = of_mixture[shares[:, 0] < 0.99]  # smaller ones lose their precision in float32
        assert kstest(of_mixture, "beta", args=(1, 2)).pvalue > 1e-3


# A policy as a part of the augmentation


@pytest.mark.parametrize("policy", POLICIES, ids=lambda x: type(x).__name__)
def test_a_policy_works_between_flip_and_cutout_whose_hole_all_views_have(images, policy):
    def augmented(images, **flags):
        augmentation = Augmentation(crop_padding=4, flip=0.5, **flags)
        return augmentation(images, torch.Generator().manual_seed(0), rng=seeded())

    white = {"cutout": 12, "cutout_fill": (1.0, 1.0, 1.0)}
    hole = augmented(torch.zeros_like(images), **white)[:, :1] == 255
    expected = policy(augmented(images), seeded())
    if expected.ndim == 5:
        expected = torch.where(hole[:, None], 1.0, expected)
    else:
        expected = torch.where(hole, 255, expected)
    assert torch.equal(augmented(images, policy=policy, **white), expected)


def test_a_policy_gets_colours_and_resampling_rounded_to_bytes(images):
    generator, seen = torch.Generator(), []

    def policy(images, rng):
        seen.append(images)
        return images

    turned = Augmentation(rotation=15, brightness=0.2)(images, generator.manual_seed(0))
    Augmentation(rotation=15, brightness=0.2, policy=policy)(
        images, generator.manual_seed(0), rng=seeded()
    )
    assert seen[0].dtype == torch.uint8
    assert torch.equal(seen[0], (turned * 255).round().to(torch.uint8))


@pytest.fixture
def loader(monkeypatch):
    """The loader of synthetic training images with these flags."""
    monkeypatch.setattr(
        "datamodules.cifar10.synthetic_cifar10", partial(synthetic_cifar10, per_class=10)
    )

    def loader(**flags):
        data = CIFAR10DataModule(source="synthetic", batch_size=30, **flags)
        data.prepare_data()
        data.setup("fit")
        return data.train_dataloader()

    return loader


def test_flags_choose_the_policy(loader):
    assert loader().augmentation.policy is None
    assert loader(policy="trivial_augment").augmentation.policy == TrivialAugmentWide()
    policy = loader(policy="rand_augment", rand_augment_n=3, rand_augment_m=4).augmentation.policy
    assert policy == RandAugment(3, 4)
    assert loader(policy="augmix", augmix_severity=5).augmentation.policy == AugMix(5)


def test_batches_of_a_policy_repeat_and_augmixs_first_view_is_without_it(loader):
    (plain, labels), *_ = loader()
    for policy in ("trivial_augment", "rand_augment", "augmix"):
        batches = loader(policy=policy)
        (images, same_labels), *_ = batches
        (again, _), *_ = batches
        assert torch.equal(images, again)
        assert torch.equal(labels, same_labels)
        shape = (30, 3, 3, 32, 32) if policy == "augmix" else (30, 3, 32, 32)
        assert images.shape == shape
        batches.set_epoch(1)
        assert not torch.equal(next(iter(batches))[0], images)
    torch.testing.assert_close(images[:, 0], plain)


# Wrong use


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"policy": "autoaugment"}, "policy must be one of none, .*, augmix, got 'autoaugment'"),
        ({"rand_augment_n": 0}, "rand_augment_n must be 1 or more, got 0"),
        ({"rand_augment_m": 31}, r"rand_augment_m must be in \[0, 30\], got 31"),
        ({"augmix_severity": 11}, r"augmix_severity must be in \[1, 10\], got 11"),
        (
            {"policy": "augmix", "mixup_alpha": 0.3},
            "not be augmix if MixUp or CutMix is on",
        ),
        ({"policy": "augmix", "cutmix_alpha": 1.0}, "got 'augmix'"),
    ],
)
def test_impossible_settings_are_rejected_at_construction(flags, message):
    with pytest.raises(ValueError, match=message):
        CIFAR10DataModule(**flags)
