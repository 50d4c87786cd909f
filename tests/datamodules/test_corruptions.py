import colorsys
import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.corruptions import BENCHMARK, CORRUPTIONS, SEVERITIES, corrupt
from datamodules.synthetic import synthetic_cifar10

CALM = {  # the same for all seeds
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression",
    "gaussian_blur", "saturate",
}  # fmt: skip
NOISE = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return synthetic_cifar10("test", per_class=1)[0]


def grey(value: int, count: int = 20) -> Tensor:
    return torch.full((count, 3, 32, 32), value, dtype=torch.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_a_pure_function_of_images_severity_and_seed(
    name: str, images: Tensor
) -> None:
    before = images.clone()
    state = torch.get_rng_state()
    severities = [corrupt(images, name, severity) for severity in SEVERITIES]
    for result in severities:
        assert result.dtype == torch.uint8
        assert result.shape == images.shape
        assert not torch.equal(result, images)
    assert all(not torch.equal(a, b) for a, b in pairwise(severities))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(corrupt(images, name, 3), severities[2])
    assert torch.equal(corrupt(images, name, 3, seed=1), severities[2]) == (name in CALM)
    # Each image of a batch has its own random draws.
    twins = corrupt(images[:1].expand(2, -1, -1, -1), name, 3)
    assert torch.equal(twins[0], twins[1]) == (name in CALM)


def test_cifar10_cs_nineteen_corruptions_and_the_fifteen_of_its_benchmark() -> None:
    apart = {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
    assert len(CORRUPTIONS) == 19
    assert len(BENCHMARK) == 15
    assert set(CORRUPTIONS) - set(BENCHMARK) == apart


@pytest.mark.parametrize(
    ("name", "stds"),
    [
        ("gaussian_noise", [0.04, 0.06, 0.08, 0.09, 0.10]),
        ("shot_noise", [(0.5 / photons) ** 0.5 for photons in (500, 250, 100, 75, 50)]),
        ("speckle_noise", [0.5 * scale for scale in (0.06, 0.1, 0.12, 0.16, 0.2)]),
    ],
)
def test_noise_is_as_strong_as_published(name: str, stds: list[float]) -> None:
    for severity, std in zip(SEVERITIES, stds, strict=True):
        noisy = corrupt(grey(128), name, severity).double() / 255
        assert noisy.std().item() == pytest.approx(std, rel=0.02)
        assert noisy.mean().item() == pytest.approx(0.5, abs=0.003)


def test_impulse_noise_turns_channels_black_or_white_as_often_as_published() -> None:
    for severity, amount in zip(SEVERITIES, (0.01, 0.02, 0.03, 0.05, 0.07), strict=True):
        noisy = corrupt(grey(100), "impulse_noise", severity)
        assert set(noisy.unique().tolist()) == {0, 100, 255}
        assert (noisy != 100).double().mean().item() == pytest.approx(amount, rel=0.1)
        assert (noisy == 255).double().mean().item() == pytest.approx(amount / 2, rel=0.15)


def test_glass_moves_pixels_by_one_and_leaves_two_rows_and_columns() -> None:
    moved = corrupt(NOISE, "glass_blur", 1)  # its blur is too narrow to change a byte
    assert torch.equal(moved[..., :2, :], NOISE[..., :2, :])
    assert torch.equal(moved[..., :, :2], NOISE[..., :, :2])
    sources = [NOISE.roll((down, right), (2, 3)) for down in (0, 1) for right in (0, 1)]
    # A pixel moves with all three channels.
    same = torch.stack([(moved == source).all(1) for source in sources])[..., 2:, 2:]
    assert same.any(0).all()
    assert same.float().mean((1, 2, 3)).tolist() == pytest.approx([0.25] * 4, abs=0.02)


@pytest.mark.parametrize("name", ["brightness", "saturate", "contrast"])
def test_colours_change_as_the_standard_library_has_hsv(name: str) -> None:
    images = NOISE.clone()
    images[0, :, 0] = 77  # grey
    images[0, :, 1] = 0
    for severity in SEVERITIES:
        found = corrupt(images, name, severity)
        for row, column in [(0, 0), (1, 0), (5, 5), (20, 31)]:
            red, green, blue = (images[0, :, row, column] / 255).tolist()
            hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
            if name == "brightness":
                value = min(value + (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1], 1)
            factor, more = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
            if name == "saturate":
                saturation = min(saturation * factor + more, 1)
            expected = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
            if name == "contrast":
                mean = images[0].double().mean((1, 2)).numpy() / 255
                factor = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
                expected = (np.array([red, green, blue]) - mean) * factor + mean
            np.testing.assert_allclose(found[0, :, row, column], expected * 255, atol=1.01)


def test_compression_and_pixelation_are_pillows(images: Tensor) -> None:
    box = Image.Resampling.BOX
    for severity, quality, side in zip(
        SEVERITIES, (80, 65, 58, 50, 40), (30, 28, 27, 24, 20), strict=True
    ):
        picture = Image.fromarray(images[3].permute(1, 2, 0).numpy())
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        found = corrupt(images, "jpeg_compression", severity)[3].permute(1, 2, 0)
        np.testing.assert_array_equal(found, np.asarray(Image.open(file)))
        found = corrupt(images, "pixelate", severity)[3].permute(1, 2, 0)
        expected = picture.resize((side, side), box).resize((32, 32), box)
        np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_geometry_leaves_a_plain_image_plain(severity: int) -> None:
    for name in ("elastic_transform", "glass_blur", "motion_blur", "zoom_blur", "defocus_blur"):
        result = corrupt(grey(90), name, severity)
        assert (result.int() - 90).abs().max() <= 1, name


def test_an_elastic_transform_of_strength_zero_changes_nothing() -> None:
    function, _ = CORRUPTIONS["elastic_transform"]
    images = NOISE / 255
    still = function(images, torch.Generator().manual_seed(0), 0, 0, 0)
    torch.testing.assert_close(still, images, atol=1e-4, rtol=0)


def test_fog_leaves_darkness_dark() -> None:
    assert corrupt(grey(0), "fog", 5).max() == 0
    assert corrupt(grey(90), "fog", 5).float().std() > 10


def test_weather_covers_more_with_severity(images: Tensor) -> None:
    for name in ("snow", "fog"):
        change = [(corrupt(images, name, s).float() - images).abs().mean() for s in SEVERITIES]
        assert change == sorted(change), name
    assert (corrupt(images, "snow", 1) >= images).float().mean() > 0.99


def test_drops_are_turquoise_and_mud_is_brown() -> None:
    water = corrupt(grey(0), "spatter", 3).permute(1, 0, 2, 3).flatten(1)
    wet = water[:, water.amax(0) > 20].float()
    assert wet.shape[1] > 100
    assert (wet[0] / wet[1]).mean().item() == pytest.approx(175 / 238, abs=0.02)
    assert (wet[2] / wet[1]).mean().item() == pytest.approx(1, abs=0.01)
    mud = corrupt(grey(255), "spatter", 5)
    darkest = mud[mud.sum(1).flatten().argmin() // 1024].permute(1, 2, 0).reshape(-1, 3)
    assert darkest[darkest.sum(1).argmin()].tolist() == [63, 42, 20]
    assert 0.01 < (mud[:, 0] < 255).float().mean() < 0.3


@pytest.mark.parametrize(
    ("images", "name", "severity", "message"),
    [
        (NOISE, "rain", 1, "name must be one of gaussian_noise, .*, got 'rain'"),
        (NOISE, "snow", 0, "severity must be 1 to 5, got 0"),
        (NOISE / 255, "snow", 1, r"images must be uint8 \(N, 3, 32, 32\), got torch.float32"),
        (NOISE[:, :1], "snow", 1, r"images must be uint8 .+ got torch.uint8 \(4, 1, 32, 32\)"),
    ],
)
def test_an_unknown_corruption_is_named(
    images: Tensor, name: str, severity: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(images, name, severity)
