import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from datamodules.mixing import Mixing, cutmix, cutmix_box, mixup, ramped_alpha, soft_targets


def batch_of(count, side=32):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (count,), generator=generator)
    return torch.randn(count, 3, side, side, generator=generator), labels


def black_and_white(count=2, side=32):
    """Alternating black and white images: a pixel shows which image it comes from."""
    images = torch.arange(count).remainder(2).float()[:, None, None, None]
    return images.expand(-1, 3, side, side).contiguous(), torch.arange(count) % 2


def own_shares(mixing, batches, progress=0.0):
    """For each batch: the first image's share of its own label, and if it has pixels of both."""
    images, labels = black_and_white()
    shares, cuts = [], []
    for seed in range(batches):
        mixed, targets = mixing(images, labels, np.random.default_rng(seed), progress)
        shares.append(targets[0, 0].item())
        cuts.append(len(mixed[0].unique()) == 2)
    return np.array(shares), np.array(cuts)


def test_soft_targets_are_one_hot_rows():
    _, labels = batch_of(16)
    targets = soft_targets(labels, 10)
    assert targets.dtype == torch.float32
    assert torch.equal(targets, F.one_hot(labels, 10).float())


def test_soft_targets_are_on_the_device_of_the_labels():
    labels = torch.zeros(4, dtype=torch.int64, device="meta")
    assert soft_targets(labels, 10).device == labels.device


def test_targets_have_the_given_number_of_classes():
    images, labels = batch_of(8)
    _, targets = Mixing(num_classes=12, mixup_alpha=1.0)(
        images, labels, np.random.default_rng(0), 0.0
    )
    assert targets.shape == (8, 12)


def test_a_label_beyond_the_classes_is_refused():
    with pytest.raises(RuntimeError, match="out of bounds"):
        soft_targets(torch.tensor([3, 10]), 10)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.9, 1.0])
def test_mixup_is_torchvisions(lam):
    images, labels = batch_of(8)
    oracle = v2.MixUp(num_classes=10)
    params = {"labels": labels, "batch_size": 8, "lam": lam}

    mixed, targets = mixup(images, soft_targets(labels, 10), lam)

    torch.testing.assert_close(mixed, oracle.transform(images, params), atol=1e-6, rtol=0)
    torch.testing.assert_close(targets, oracle.transform(labels, params), atol=1e-6, rtol=0)


def test_cutmix_is_torchvisions_for_the_same_draws():
    images, labels = batch_of(8)
    images = images[..., :20, :]
    oracle = v2.CutMix(num_classes=10)
    clipped = 0
    for seed in range(50):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            params = oracle.make_params([images])
            torch.manual_seed(seed)
            lam = float(oracle._dist.sample(()))
            centre_x, centre_y = (int(torch.randint(side, (1,))) for side in (32, 20))

        box = cutmix_box(lam, centre_y, centre_x, 20, 32)
        mixed, targets = cutmix(images, soft_targets(labels, 10), box)

        left, top, right, bottom = params["box"]
        assert box == (top, bottom, left, right)
        clipped += 0 in (top, left) or bottom == 20 or right == 32
        params |= {"labels": labels, "batch_size": 8}
        assert torch.equal(mixed, oracle.transform(images, params))
        torch.testing.assert_close(targets, oracle.transform(labels, params), atol=1e-6, rtol=0)
    assert clipped > 5


def test_targets_are_the_shares_of_pixels():
    images, labels = black_and_white()
    for mixing in (
        Mixing(num_classes=10, mixup_alpha=1.0),
        Mixing(num_classes=10, cutmix_alpha=1.0),
    ):
        for seed in range(20):
            mixed, targets = mixing(images, labels, np.random.default_rng(seed), 0.0)
            # The share of white pixels is the target of the white class.
            torch.testing.assert_close(mixed.mean((1, 2, 3)), targets[:, 1], atol=1e-5, rtol=0)
            torch.testing.assert_close(targets.sum(1), torch.ones(2))


def test_mixing_before_or_after_normalising_is_the_same():
    images, labels = batch_of(8)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    for mixing in (
        Mixing(num_classes=10, mixup_alpha=1.0),
        Mixing(num_classes=10, cutmix_alpha=1.0),
    ):
        before, _ = mixing(images, labels, np.random.default_rng(0), 0.0)
        after, _ = mixing(TF.normalize(images, mean, std), labels, np.random.default_rng(0), 0.0)
        torch.testing.assert_close(TF.normalize(before, mean, std), after, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("progress", "share"),
    [(0, 0.5), (0.249, 0.5), (0.25, 0.75), (0.499, 0.75), (0.5, 1), (0.99, 1)],
)
def test_alpha_rises_at_a_quarter_and_at_half_of_training(progress, share):
    assert ramped_alpha(0.3, progress) == pytest.approx(0.3 * share)


def test_a_batch_is_mixed_one_way_or_not_at_all_with_the_given_probabilities():
    mixing = Mixing(num_classes=10, mixup_alpha=1.0, mixup_p=0.2, cutmix_alpha=1.0, cutmix_p=0.5)
    shares, cuts = own_shares(mixing, 2_000)
    whole = shares == 1
    # Less than 1% of the boxes are empty.
    assert abs(cuts.mean() - 0.5) < 0.05
    assert abs(whole.mean() - 0.3) < 0.05
    assert abs((~cuts & ~whole).mean() - 0.2) < 0.04


@pytest.mark.parametrize(
    ("mixing", "progress", "alpha"),
    [
        (Mixing(num_classes=10, mixup_alpha=0.3), 0.0, 0.3),
        (Mixing(num_classes=10, mixup_alpha=0.3, ramp=True), 0.0, 0.15),
        (Mixing(num_classes=10, mixup_alpha=0.3, ramp=True), 0.5, 0.3),
        (Mixing(num_classes=10, mixup_alpha=2.0), 0.0, 2.0),
    ],
)
def test_mixups_share_follows_beta(mixing, progress, alpha):
    shares, _ = own_shares(mixing, 3_000, progress)
    assert abs(shares.mean() - 0.5) < 0.04
    # Beta(a, a) has E[x (1 - x)] = 1/4 - 1 / (4 (2 a + 1)).
    assert abs((shares * (1 - shares)).mean() - alpha / (4 * alpha + 2)) < 0.008


def test_the_ramp_leaves_cutmix_alone():
    plain = own_shares(Mixing(num_classes=10, cutmix_alpha=1.0), 20)[0]
    ramped = own_shares(Mixing(num_classes=10, cutmix_alpha=1.0, ramp=True), 20)[0]
    assert (plain == ramped).all()


def test_cutmix_cuts_anywhere_in_the_image():
    images, labels = black_and_white()
    seen = torch.zeros(32, 32)
    for seed in range(200):
        mixed, _ = Mixing(num_classes=10, cutmix_alpha=1.0)(
            images, labels, np.random.default_rng(seed), 0.0
        )
        seen += mixed[0, 0]
    assert seen.min() > 10


def test_a_batch_depends_on_the_given_generator_alone():
    images, labels = batch_of(8)
    before, state = images.clone(), torch.get_rng_state()
    mixing = Mixing(num_classes=10, mixup_alpha=1.0, mixup_p=0.5, cutmix_alpha=1.0, cutmix_p=0.5)
    draws = [mixing(images, labels, np.random.default_rng(seed), 0.0) for seed in (1, 1, 2)]
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][1], draws[2][1])
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "active"),
    [
        ({}, False),
        ({"mixup_alpha": 0.3, "mixup_p": 0.0}, False),
        ({"cutmix_alpha": 1.0, "cutmix_p": 0.0}, False),
        ({"mixup_alpha": 0.3}, True),
        ({"cutmix_alpha": 1.0, "cutmix_p": 0.3}, True),
    ],
)
def test_active_says_whether_anything_is_ever_mixed(arguments, active):
    images, labels = batch_of(4)
    mixing = Mixing(num_classes=10, **arguments)
    assert mixing.active is active
    kept = [
        torch.equal(mixing(images, labels, np.random.default_rng(seed), 0.0)[0], images)
        for seed in range(20)
    ]
    assert all(kept) is not active


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixup_alpha": -0.3}, "mixup_alpha must be 0 or more, got -0.3"),
        ({"cutmix_alpha": float("nan")}, "cutmix_alpha must be 0 or more, got nan"),
        ({"mixup_p": 1.2}, r"mixup_p must be in \[0, 1\], got 1.2"),
        ({"cutmix_p": -1}, r"cutmix_p must be in \[0, 1\], got -1"),
        (
            {"mixup_alpha": 0.3, "mixup_p": 0.7, "cutmix_alpha": 1.0, "cutmix_p": 0.4},
            r"mixup_p \+ cutmix_p must be 1 or less if both are on, got 0.7 \+ 0.4",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mixing(num_classes=10, **arguments)
