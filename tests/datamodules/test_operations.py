"""The oracle is torchvision's policy code, one image and one magnitude at a time.

Everything is equal to the last bit, except bilinear resampling. There the last bit of torchvision's
matrix product decides some roundings, and it depends on the processor.
"""

from collections import defaultdict

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from datamodules import operations
from datamodules.operations import affine, affine_matrices
from datamodules.synthetic import synthetic_cifar10

TORCHVISION = v2.TrivialAugmentWide()
AFFINE = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"]
BLENDS = ["Brightness", "Color", "Contrast", "Sharpness"]
#: Bilinear resampling may change one byte in this many by one level. The largest measured share is
#: one in 939 (all magnitudes of a shear, any order of summation).
APART = 500


def oracle(images, name, magnitude, interpolation="nearest"):
    no_fill = defaultdict(lambda: None)
    apply = TORCHVISION._apply_image_or_video_transform
    mode = InterpolationMode(interpolation)  # torchvision 0.26 takes no string
    return torch.stack([apply(x, name, magnitude, mode, no_fill) for x in images])


def magnitudes(policy, name):
    """All magnitudes of an operation in a policy of torchvision, with both signs if signed."""
    function, signed = policy._AUGMENTATION_SPACE[name]
    values = function(31, 32, 32).tolist()
    return values + [-x for x in values] if signed else values


@pytest.fixture(scope="module")
def images():
    """Four shapes, noise, few levels, low contrast, and constant colours."""
    shapes, _ = synthetic_cifar10("test", per_class=1)
    noise = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    noise[1] = noise[1] // 40 * 40
    noise[2] = noise[2] // 8 + 100
    noise[3] = torch.tensor([0, 7, 255])[:, None, None]
    return torch.cat([shapes[:4], noise.to(torch.uint8)])


def same_on_every_image(images, numbers, function, expected):
    """Compare all magnitudes in one batch: images of a batch must not change each other."""
    batch = images.repeat(len(numbers), 1, 1, 1)
    got = function(batch, torch.tensor(numbers).repeat_interleave(len(images)))
    assert got.dtype == torch.uint8
    assert torch.equal(got, torch.cat([expected(number) for number in numbers]))


def assert_resampled_alike(got, expected, interpolation):
    assert got.dtype == torch.uint8
    apart = (got.int() - expected.int()).abs()
    assert apart.max() <= (interpolation == "bilinear")
    assert apart.count_nonzero() * APART <= apart.numel()


def fused_products(a, b):
    """Multiply (B, N, 3) by (B, 3, 2) with the rounding of fused multiply-add instructions."""
    total = a[..., :1] * b[:, :1]
    for i in (1, 2):  # a product is exact in 64 bits; then one rounding
        term = a[..., i : i + 1].double() * b[:, i : i + 1].double()
        total = (total.double() + term).float()
    return total


@pytest.fixture(params=["this processor", "fused"])
def processor(request, monkeypatch):
    """Test with the matrix product of this processor, and with fused rounding."""
    if request.param == "fused":
        monkeypatch.setattr(torch.Tensor, "bmm", fused_products)
    return request.param


@pytest.mark.parametrize("policy", [v2.TrivialAugmentWide, v2.RandAugment])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.usefixtures("processor")
def test_resampling_is_torchvisions_at_every_magnitude(images, policy, name, interpolation):
    numbers = magnitudes(policy, name)
    amounts = np.zeros((5, len(numbers)))
    amounts[AFFINE.index(name)] = np.trunc(numbers) if "Translate" in name else numbers
    matrices = torch.from_numpy(affine_matrices(amounts, 32, 32)).float()
    batch = images.repeat(len(numbers), 1, 1, 1)
    got = affine(batch, matrices.repeat_interleave(len(images), 0), interpolation)
    expected = [oracle(images, name, x, interpolation) for x in numbers]
    assert_resampled_alike(got, torch.cat(expected), interpolation)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.usefixtures("processor")
def test_images_need_not_be_square(images, name, interpolation):
    amounts = np.zeros((5, 1))
    amounts[AFFINE.index(name)] = 7 if "Translate" in name else 0.37
    matrices = torch.from_numpy(affine_matrices(amounts, 20, 32)).float()
    oblong = images[:, :, 6:26]
    got = affine(oblong, matrices.expand(len(images), -1, -1), interpolation)
    expected = oracle(oblong, name, float(amounts.max()), interpolation)
    assert_resampled_alike(got, expected, interpolation)


@pytest.mark.parametrize("policy", [v2.TrivialAugmentWide, v2.RandAugment])
@pytest.mark.parametrize("name", BLENDS)
def test_blends_are_torchvisions_at_every_magnitude(images, policy, name):
    function = getattr(operations, name.lower())
    same_on_every_image(
        images, magnitudes(policy, name), function, lambda x: oracle(images, name, x)
    )


def test_posterizing_is_torchvisions_with_any_number_of_bits(images):
    numbers = [float(x) for x in range(9)]
    same_on_every_image(
        images, numbers, operations.posterize, lambda x: oracle(images, "Posterize", x)
    )


def test_solarizing_is_torchvisions_at_every_magnitude(images):
    shares = magnitudes(v2.TrivialAugmentWide, "Solarize")
    expected = dict(zip([255 * x for x in shares], shares, strict=True))
    same_on_every_image(
        images,
        list(expected),
        operations.solarize,
        lambda x: oracle(images, "Solarize", expected[x]),
    )


def test_autocontrast_is_torchvisions(images):
    assert torch.equal(operations.autocontrast(images), oracle(images, "AutoContrast", 0.0))


def test_the_arguments_are_left_as_they_were(images):
    before, magnitude = images.clone(), torch.full((len(images),), 0.5)
    for name in BLENDS:
        getattr(operations, name.lower())(images, magnitude)
    operations.posterize(images, magnitude + 3.5)
    operations.solarize(images, magnitude)
    operations.autocontrast(images)
    affine(images, torch.eye(2, 3).expand(len(images), -1, -1), "nearest")
    assert torch.equal(images, before)
    assert torch.equal(magnitude, torch.full((len(images),), 0.5))
