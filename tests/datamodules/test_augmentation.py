from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import RandomPerspective, v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from datamodules import augmentation
from datamodules.augmentation import (
    Augmentation,
    compose,
    crop_and_flip,
    cutout,
    perspective_matrix,
    rotation_matrix,
    warp,
)
from datamodules.colour import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    adjust_hue,
    adjust_tone,
    as_float,
    colour_jitter,
)
from datamodules.normalisation import normalise
from datamodules.policies import AugMix, RandAugment, TrivialAugmentWide

MEAN, STD = (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)
EVERYTHING = Augmentation(
    crop_padding=4,
    crop_mode="reflect",
    flip=0.5,
    rotation=15.0,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.1,
    perspective=0.3,
    perspective_p=0.5,
    cutout=8,
    cutout_fill=MEAN,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bytes_of(count, height=32, width=32):
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=seeded())


def floats_of(count, height=32, width=32):
    """Random images. The first four are black, white, grey, and one of pure colours."""
    images = torch.rand(count, 3, height, width, generator=seeded())
    images[0], images[1], images[2], images[3] = 0, 1, 0.5, images[3].round()
    return images


def uniform(low, high, count):
    return torch.rand(count, generator=seeded(1)) * (high - low) + low


# Crop and flip


@pytest.mark.parametrize(
    ("mode", "torchvision_mode"), [("zero", "constant"), ("reflect", "reflect")]
)
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("images", [bytes_of(64), floats_of(32, 20, 32)], ids=["uint8", "float"])
def test_crop_and_flip_is_torchvisions_on_each_image(images, padding, mode, torchvision_mode):
    top = torch.randint(2 * padding + 1, (len(images),), generator=seeded(1))
    left = torch.randint(2 * padding + 1, (len(images),), generator=seeded(2))
    flip = torch.rand(len(images), generator=seeded(3)) < 0.5
    # The corners of the range are always tested.
    top[:2], left[:2] = torch.tensor([0, 2 * padding]), torch.tensor([2 * padding, 0])

    got = crop_and_flip(images, top, left, flip, padding, mode)

    assert got.dtype == images.dtype
    for image, y, x, mirrored, result in zip(images, top, left, flip, got, strict=True):
        padded = TF.pad(image, [padding], padding_mode=torchvision_mode)
        expected = TF.crop(padded, int(y), int(x), *image.shape[-2:])
        expected = TF.horizontal_flip(expected) if mirrored else expected
        assert torch.equal(result, expected)


def test_reflecting_more_than_the_image_is_rejected():
    zero, no = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)
    with pytest.raises(ValueError, match="padding must be less than 8 to reflect, got 8"):
        crop_and_flip(bytes_of(1, 8, 8), zero, zero, no, 8, "reflect")


# Rotation and perspective


@pytest.mark.parametrize("size", [(32, 32), (20, 32)])
def test_rotation_is_torchvisions_on_each_image(size):
    images, degrees = floats_of(32, *size), uniform(-180, 180, 32)
    degrees[0] = 0
    got = warp(images, rotation_matrix(degrees, *size))
    for image, angle, result in zip(images, degrees, got, strict=True):
        expected = TF.rotate(image, float(angle), interpolation=InterpolationMode.BILINEAR)
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (20, 32)])
@pytest.mark.parametrize("scale", [0.0, 0.2, 0.6])
def test_perspective_is_torchvisions_on_each_image(size, scale):
    height, width = size
    images = floats_of(32, *size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [RandomPerspective.get_params(width, height, scale) for _ in images]
    corners = torch.tensor([end for _, end in drawn], dtype=torch.float32)
    got = warp(images, perspective_matrix(corners, height, width))
    for image, (start, end), result in zip(images, drawn, got, strict=True):
        torch.testing.assert_close(result, TF.perspective(image, start, end), atol=1e-4, rtol=0)


def test_composed_matrices_warp_like_one_after_the_other():
    # The blob is smooth: interpolating once or twice differs by at most 0.02 of 1. It fades out
    # before the border, which would otherwise be cut twice.
    grid = torch.linspace(-2.2, 2.2, 32)
    blob = torch.exp(-(grid**2)[:, None] * 1.5 - (grid - 0.3) ** 2).expand(16, 3, 32, 32)
    degrees = uniform(-30, 30, 16)
    corners = torch.tensor([[2.0, 1.0], [28.0, 3.0], [30.0, 27.0], [0.0, 31.0]]).expand(16, 4, 2)
    rotation, perspective = rotation_matrix(degrees, 32, 32), perspective_matrix(corners, 32, 32)

    composed = compose(rotation, perspective)

    by_hand = (rotation.double() @ perspective.double()).float()
    torch.testing.assert_close(composed, by_hand, atol=1e-5, rtol=1e-5)
    start = [[0, 0], [31, 0], [31, 31], [0, 31]]
    for image, angle, end, result in zip(blob, degrees, corners, warp(blob, composed), strict=True):
        expected = TF.rotate(image, float(angle), interpolation=InterpolationMode.BILINEAR)
        expected = TF.perspective(expected, start, end.tolist())
        torch.testing.assert_close(result, expected, atol=0.02, rtol=0)


# Colour


@pytest.mark.parametrize(
    ("operation", "oracle"),
    [
        (BRIGHTNESS, TF.adjust_brightness),
        (CONTRAST, TF.adjust_contrast),
        (SATURATION, TF.adjust_saturation),
    ],
)
def test_tone_is_torchvisions_on_each_image(operation, oracle):
    images, factors = floats_of(32), uniform(0, 2, 32)
    factors[4], factors[5] = 0, 1
    got = adjust_tone(images, torch.full((32,), operation), factors)
    for image, factor, result in zip(images, factors, got, strict=True):
        torch.testing.assert_close(result, oracle(image, float(factor)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION, HUE])
def test_factor_one_returns_the_image_bit_for_bit(operation):
    images = floats_of(8)
    assert torch.equal(adjust_tone(images, torch.full((8,), operation), torch.ones(8)), images)


def test_hue_is_torchvisions_on_each_image():
    images, shifts = floats_of(32), uniform(-0.5, 0.5, 32)
    shifts[4], shifts[5], shifts[6] = -0.5, 0, 0.5
    for image, shift, result in zip(images, shifts, adjust_hue(images, shifts), strict=True):
        torch.testing.assert_close(result, TF.adjust_hue(image, float(shift)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("with_hue", [True, False])
def test_colour_jitter_is_torchvisions_in_every_order(with_hue):
    operations = (BRIGHTNESS, CONTRAST, SATURATION, HUE) if with_hue else (BRIGHTNESS, CONTRAST)
    orders = torch.tensor(list(permutations(operations)))
    images = floats_of(24)[-len(orders) :]
    tone = torch.rand(len(orders), 3, generator=seeded(2)) + 0.5
    hue = uniform(-0.3, 0.3, len(orders)) if with_hue else None

    got = colour_jitter(images, tone, hue, orders)

    for i, order in enumerate(orders):
        params = {
            "fn_idx": order,
            "brightness_factor": float(tone[i, BRIGHTNESS]),
            "contrast_factor": float(tone[i, CONTRAST]),
            "saturation_factor": float(tone[i, SATURATION]),
            "hue_factor": float(hue[i]) if with_hue else None,
        }
        expected = v2.ColorJitter().transform(images[i], params)
        torch.testing.assert_close(got[i], expected, atol=1e-5, rtol=0)


# Cutout and normalisation


@pytest.mark.parametrize("size", [1, 7, 16, 40])
@pytest.mark.parametrize("images", [bytes_of(40), floats_of(40, 20, 32)], ids=["uint8", "float"])
def test_cutout_erases_a_square_clipped_at_the_borders(images, size):
    height, width = images.shape[-2:]
    fill = (1, 2, 3) if images.dtype == torch.uint8 else (0.1, 0.2, 0.3)
    centre_y = torch.randint(height, (40,), generator=seeded(1))
    centre_x = torch.randint(width, (40,), generator=seeded(2))
    centre_y[:2], centre_x[:2] = torch.tensor([0, height - 1]), torch.tensor([width - 1, 0])

    got = cutout(images, centre_y, centre_x, size, fill)

    assert got.dtype == images.dtype
    value = torch.tensor(fill, dtype=images.dtype)[:, None, None]
    for image, y, x, result in zip(images, centre_y.tolist(), centre_x.tolist(), got, strict=True):
        top, left = max(y - size // 2, 0), max(x - size // 2, 0)
        bottom, right = min(y - size // 2 + size, height), min(x - size // 2 + size, width)
        assert torch.equal(result, TF.erase(image, top, left, bottom - top, right - left, value))


@pytest.mark.parametrize("images", [bytes_of(4), floats_of(4)], ids=["uint8", "float"])
def test_normalise_is_torchvisions_and_leaves_its_input_alone(images):
    before = images.clone()
    got = normalise(images, torch.tensor(MEAN), torch.tensor(STD))
    expected = TF.normalize(TF.to_dtype(images, torch.float32, scale=True), MEAN, STD)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("also", "tolerance"), [({}, 0.5 / 255 / min(STD)), ({"hue": 0.1}, 1e-6)])
def test_a_hole_of_the_mean_colour_is_zero_once_normalised(also, tolerance):
    covering = Augmentation(cutout=64, cutout_fill=MEAN, **also)
    hole = covering(bytes_of(4), seeded())
    assert normalise(hole, torch.tensor(MEAN), torch.tensor(STD)).abs().max() <= tolerance


# Random draws of the class


def test_with_everything_off_images_are_unchanged_and_nothing_is_drawn():
    images, generator = bytes_of(4), seeded()
    before = generator.get_state()
    assert Augmentation()(images, generator) is images
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("name", ["crop_padding", "flip", "cutout"])
def test_bytes_stay_bytes_if_no_float_is_needed(name):
    assert Augmentation(**{name: 1})(bytes_of(4), seeded()).dtype == torch.uint8


@pytest.mark.parametrize(
    "name", ["rotation", "brightness", "contrast", "saturation", "hue", "perspective"]
)
def test_other_operations_give_floats_in_the_unit_range(name):
    augmented = Augmentation(**{name: 0.5})(bytes_of(64), seeded())
    assert augmented.dtype == torch.float32
    assert augmented.min() >= 0
    assert augmented.max() <= 1
    assert not torch.equal(augmented, as_float(bytes_of(64)))


def test_a_batch_depends_on_the_generator_alone():
    images = bytes_of(32)
    before, state = images.clone(), torch.get_rng_state()
    first = EVERYTHING(images, seeded(5))
    assert torch.equal(EVERYTHING(images, seeded(5)), first)
    assert not torch.equal(EVERYTHING(images, seeded(6)), first)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_image_is_augmented_differently_within_a_batch():
    for name in ("crop_padding", "rotation", "brightness", "contrast", "saturation", "cutout"):
        strength = 4 if name in ("crop_padding", "rotation", "cutout") else 0.4
        batch = Augmentation(**{name: strength})(bytes_of(1).expand(50, -1, -1, -1), seeded())
        assert len(batch.unique(dim=0)) > 25, name


def test_autocast_changes_no_augmented_pixel():
    images = bytes_of(32)
    expected = EVERYTHING(images, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(EVERYTHING(images, seeded()), expected)


def test_crop_offsets_are_uniform_and_flips_have_their_probability():
    # Each pixel's value is its own position. The middle pixels never come from the padding.
    places = torch.stack(torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij"))
    image = torch.cat([places, places[:1]]).to(torch.uint8)
    batch = Augmentation(crop_padding=4, crop_mode="reflect", flip=0.3)(
        image.expand(20_000, -1, -1, -1), seeded()
    ).int()
    flipped = batch[:, 1, 6, 6] < batch[:, 1, 6, 5]
    top = batch[:, 0, 6, 6] - 2
    left = batch[:, 1, 6, 6] - torch.where(flipped, 1, 2)
    assert abs(flipped.float().mean() - 0.3) < 0.02
    for offset in (top, left):
        share = offset.bincount(minlength=9) / 20_000
        assert len(share) == 9
        assert (share - 1 / 9).abs().max() < 0.012


def test_angles_are_uniform_to_both_sides():
    # Bilinear sampling is exact on linear ramps; the slope of the ramps is the angle.
    places = torch.stack(torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij"))
    image = torch.cat([places, places[:1]]).to(torch.uint8).expand(5_000, -1, -1, -1)
    batch = Augmentation(rotation=15)(image, seeded())
    down, across = (batch[:, c, 6, 6] - batch[:, c, 6, 5] for c in (0, 1))
    degrees = torch.atan2(down, across).rad2deg()
    assert degrees.abs().max() <= 15.01
    assert abs(degrees.mean()) < 0.6
    assert abs(degrees.abs().mean() - 7.5) < 0.3


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_tone_factors_are_uniform_about_one(name):
    image = torch.tensor([100, 140, 120], dtype=torch.uint8)[:, None, None].repeat(1, 2, 2)
    image[:, 0] += 20
    batch = Augmentation(**{name: 0.4})(image.expand(5_000, -1, -1, -1), seeded())
    # Each of the three operations scales the distance between channels by its factor.
    factors = (batch[:, 1, 1, 1] - batch[:, 0, 1, 1]) * 255 / 40
    assert factors.min() >= 0.6 - 1e-4
    assert factors.max() <= 1.4 + 1e-4
    assert abs(factors.mean() - 1) < 0.02
    assert abs((factors < 0.8).float().mean() - 0.25) < 0.03


def test_a_strength_beyond_one_never_makes_a_factor_negative():
    image = torch.full((2_000, 3, 2, 2), 50, dtype=torch.uint8)
    batch = Augmentation(brightness=2)(image, seeded())
    factors = batch[:, 0, 0, 0] * 255 / 50
    assert (factors == 0).float().mean() < 0.01
    assert abs(factors.mean() - 1.5) < 0.1


def test_hue_shifts_are_uniform_to_both_sides():
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(5_000, 3, 1, 1)
    # Near red, green or blue rises by six times the shift.
    batch = Augmentation(hue=0.1)(red, seeded()).flatten(1)
    shift = (batch[:, 1] - batch[:, 2]) / 6
    assert shift.abs().max() <= 0.1 + 1e-5
    assert abs(shift.mean()) < 0.005
    assert abs(shift.abs().mean() - 0.05) < 0.003


def spy(monkeypatch, name, argument):
    """Record an argument that `augmentation` passes to one of its functions."""
    seen, real = [], getattr(augmentation, name)

    def recording(*args):
        seen.append(args[argument])
        return real(*args)

    monkeypatch.setattr(augmentation, name, recording)
    return seen


def test_orders_of_colour_operations_are_uniform(monkeypatch):
    seen = spy(monkeypatch, "colour_jitter", -1)
    jitter = Augmentation(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1)
    jitter(bytes_of(24_000, 1, 1), seeded())
    orders, counts = seen[0].unique(dim=0, return_counts=True)
    assert {tuple(order) for order in orders.tolist()} == set(permutations(range(4)))
    assert (counts - 1_000).abs().max() < 150


def test_colour_operations_that_are_off_draw_no_order(monkeypatch):
    seen = spy(monkeypatch, "colour_jitter", -1)
    Augmentation(contrast=0.1, hue=0.1)(bytes_of(2_000, 1, 1), seeded())
    orders, counts = seen[0].unique(dim=0, return_counts=True)
    assert orders.tolist() == [[CONTRAST, HUE], [HUE, CONTRAST]]
    assert (counts - 1_000).abs().max() < 120


def test_corners_are_drawn_as_in_torchvision(monkeypatch):
    seen = spy(monkeypatch, "perspective_matrix", 0)
    Augmentation(perspective=0.5, perspective_p=1.0)(bytes_of(2_000, 20, 32), seeded())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [RandomPerspective.get_params(32, 20, 0.5)[1] for _ in range(2_000)]
    expected = torch.tensor(drawn)
    for corner in range(4):
        for axis in range(2):
            mine, theirs = seen[0][:, corner, axis].long(), expected[:, corner, axis]
            assert mine.unique().tolist() == theirs.unique().tolist()
            assert abs(mine.float().mean() - theirs.float().mean()) < 0.4


def test_perspective_has_its_probability():
    images = bytes_of(2_000, 16, 16)
    batch = Augmentation(perspective=0.5, perspective_p=0.3)(images, seeded())
    moved = (batch - as_float(images)).abs().amax((1, 2, 3)) > 1e-3
    assert abs(moved.float().mean() - 0.3) < 0.05


def test_holes_are_centred_anywhere_in_the_image():
    batch = Augmentation(cutout=1)(torch.ones(20_000, 3, 8, 8, dtype=torch.uint8), seeded())
    counts = (batch[:, 0] == 0).sum(0)
    assert counts.sum() == 20_000
    assert (counts - 20_000 / 64).abs().max() < 90


# Synchronisation and compilation


class NothingThatWaits(TorchDispatchMode):
    """Refuses operations that make the host wait for a GPU.

    They read a value, return a size that depends on values (such as `index` with booleans), or copy
    a constant from the host.
    """

    refused = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "index",
        "index_put",
        "lift_fresh",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__.rstrip("_") not in self.refused, func
        return func(*args, **(kwargs or {}))


def test_the_guard_against_waiting_detects_synchronisations():
    for waiting in (
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x * torch.tensor([2.0]),
        lambda x: x.nonzero(),
    ):
        with pytest.raises(AssertionError), NothingThatWaits():
            waiting(torch.ones(3))


def test_a_batch_makes_the_host_wait_for_nothing():
    images, mean, std = bytes_of(4), torch.tensor(MEAN), torch.tensor(STD)
    with NothingThatWaits():
        normalise(EVERYTHING(images, seeded()), mean, std)
        normalise(Augmentation(crop_padding=4, cutout=8)(images, seeded()), mean, std)


@pytest.mark.parametrize("policy", [TrivialAugmentWide(), RandAugment(), AugMix()])
def test_a_policy_makes_the_host_wait_for_nothing(policy):
    class NothingThatWaitsButNumbersSent(NothingThatWaits):
        refused = tuple(name for name in NothingThatWaits.refused if name != "lift_fresh")

    augmentation = replace(EVERYTHING, policy=policy)
    with NothingThatWaitsButNumbersSent():
        augmentation(bytes_of(64), seeded(), rng=np.random.default_rng(0))


def test_the_functions_compile_whole():
    def batch(images, integers, mask, numbers, corners, order):
        images = crop_and_flip(images, integers, integers, mask, 4, "zero")
        images = as_float(crop_and_flip(images, integers, integers, mask, 4, "reflect"))
        tone = numbers[:, None].expand(-1, 3)
        images = colour_jitter(images, tone, numbers / 4, order)
        matrices = compose(rotation_matrix(numbers, 32, 32), perspective_matrix(corners, 32, 32))
        images = cutout(warp(images, matrices), integers, integers, 8, MEAN)
        return normalise(images, numbers[:3], numbers[:3])

    integers, numbers = torch.arange(8), torch.rand(8, generator=seeded()) + 0.5
    corners = torch.tensor([[1.0, 2.0], [30.0, 0.0], [29.0, 31.0], [2.0, 28.0]]).expand(8, 4, 2)
    order = torch.rand(8, 4, generator=seeded()).argsort(1)
    arguments = (bytes_of(8), integers, integers > 3, numbers, corners, order)
    compiled = torch.compile(batch, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), batch(*arguments))


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_padding": -1}, "crop_padding must be 0 or more, got -1"),
        ({"crop_mode": "edge"}, "crop_mode must be zero or reflect, got 'edge'"),
        ({"flip": 1.5}, r"flip must be in \[0, 1\], got 1.5"),
        ({"rotation": -15.0}, r"rotation must be in \[0, 180\], got -15.0"),
        ({"brightness": -0.1}, "brightness must be 0 or more, got -0.1"),
        ({"contrast": float("nan")}, "contrast must be 0 or more, got nan"),
        ({"saturation": -1}, "saturation must be 0 or more, got -1"),
        ({"hue": 0.6}, r"hue must be in \[0, 0.5\], got 0.6"),
        ({"perspective": 0.7}, r"perspective must be in \[0, 0.6\], got 0.7"),
        ({"perspective_p": 2}, r"perspective_p must be in \[0, 1\], got 2"),
        ({"cutout": -16}, "cutout must be 0 or more, got -16"),
        ({"cutout_fill": (125.0, 0.0, 0.0)}, r"cutout_fill must be in \[0, 1\], got \(125.0"),
    ],
)
def test_a_value_out_of_range_is_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**arguments)
