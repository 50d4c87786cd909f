import colorsys
import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from datamodules.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from datamodules.filters import blur, distance_to, equalise, motion, plasma, zoom_in
from datamodules.shifted import read_cifar10_1, read_cifar10_c
from datamodules.synthetic import synthetic_cifar10

CALM = {  # the same whatever the seed
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
    # Images of one batch get draws of their own.
    twins = corrupt(images[:1].expand(2, -1, -1, -1), name, 3)
    assert torch.equal(twins[0], twins[1]) == (name in CALM)


def test_there_are_the_nineteen_of_cifar10_c() -> None:
    assert len(CORRUPTIONS) == 19


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


@pytest.mark.parametrize("sigma", [0.4, 0.7, 1.0])
def test_blurring_is_torchvisions_inside_and_repeats_the_edge_outside(sigma: float) -> None:
    images = NOISE / 255
    radius = int(4 * sigma + 0.5)
    expected = gaussian_blur(images, [2 * radius + 1] * 2, [sigma, sigma])
    inside = (..., slice(radius, -radius), slice(radius, -radius))
    torch.testing.assert_close(blur(images, sigma)[inside], expected[inside])
    padded = torch.nn.functional.pad(images, (radius,) * 4, mode="replicate")
    expected = gaussian_blur(padded, [2 * radius + 1] * 2, [sigma, sigma])[inside]
    torch.testing.assert_close(blur(images, sigma), expected)


def test_blurring_with_a_mirror_outside_keeps_the_mean() -> None:
    images = NOISE / 255
    blurred = blur(images, 6.4, truncate=3.0, outside="mirror")
    torch.testing.assert_close(blurred.mean((2, 3)), images.mean((2, 3)))
    assert not torch.allclose(blur(images, 6.4).mean((2, 3)), images.mean((2, 3)), atol=1e-4)


def test_glass_moves_pixels_by_one_and_leaves_two_rows_and_columns() -> None:
    moved = corrupt(NOISE, "glass_blur", 1)  # whose blur is too narrow to be seen
    assert torch.equal(moved[..., :2, :], NOISE[..., :2, :])
    assert torch.equal(moved[..., :, :2], NOISE[..., :, :2])
    sources = [NOISE.roll((down, right), (2, 3)) for down in (0, 1) for right in (0, 1)]
    # Whole pixels: all three channels from one place.
    same = torch.stack([(moved == source).all(1) for source in sources])[..., 2:, 2:]
    assert same.any(0).all()
    assert same.float().mean((1, 2, 3)).tolist() == pytest.approx([0.25] * 4, abs=0.02)


def test_motion_smears_along_half_a_gaussian() -> None:
    image = torch.zeros(2, 1, 32, 32)
    image[:, :, 16, 16] = 1
    blurred = motion(image, radius=6, sigma=2.0, degrees=torch.tensor([0.0, -90.0]))
    weights = np.exp(-(np.arange(13) ** 2) / 8)
    weights /= weights.sum()
    np.testing.assert_allclose(blurred[0, 0, 16, 4:17].flip(0), weights, atol=1e-6)
    np.testing.assert_allclose(blurred[1, 0, 16:29, 16], weights, atol=1e-6)
    assert blurred.sum().item() == pytest.approx(2)


@pytest.mark.parametrize("factor", [1.0, 1.1, 1.25, 2.25])
def test_zooming_stretches_a_ramp_about_its_middle(factor: float) -> None:
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    zoomed = zoom_in(ramp, factor)
    assert zoomed.shape == ramp.shape
    crop = -(-32 // factor)
    slope = (crop - 1) / (round(crop * factor) - 1)
    torch.testing.assert_close(zoomed.diff(dim=3), torch.full((1, 1, 32, 31), slope))
    assert zoomed.mean().item() == pytest.approx(15.5, abs=0.6)


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


def test_an_elastic_transform_without_strength_is_none() -> None:
    function = CORRUPTIONS["elastic_transform"].function
    images = NOISE / 255
    still = function(images, torch.Generator().manual_seed(0), 0, 0, 0)
    torch.testing.assert_close(still, images, atol=1e-4, rtol=0)


def test_fog_is_a_fractal_that_leaves_darkness_dark() -> None:
    maps = plasma(3, 2.0, torch.Generator().manual_seed(0))
    assert maps.shape == (3, 1, 32, 32)
    assert maps.amin((1, 2, 3)).tolist() == [0] * 3
    assert maps.amax((1, 2, 3)).tolist() == [1] * 3
    # Near pixels are alike, and less so where the fractal decays more slowly.
    rough = plasma(3, 1.2, torch.Generator().manual_seed(0))
    assert maps.diff(dim=3).abs().mean() < 0.5 * rough.diff(dim=3).abs().mean()
    assert corrupt(grey(0), "fog", 5).max() == 0


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


def test_distances_and_equalised_histograms_are_the_hand_computed() -> None:
    marked = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    marked[0, 0, 3, 4] = marked[0, 0, 30, 30] = True
    rows, columns = np.indices((32, 32))
    expected = np.minimum(np.hypot(rows - 3, columns - 4), np.hypot(rows - 30, columns - 30))
    np.testing.assert_allclose(distance_to(marked)[0, 0], expected, rtol=1e-6)

    steps = torch.tensor([10, 20, 30, 40]).repeat_interleave(256).view(1, 1, 32, 32)
    assert equalise(steps).unique().tolist() == [0, 85, 170, 255]


@pytest.mark.parametrize(
    ("images", "name", "severity", "message"),
    [
        (NOISE, "rain", 1, "name must be one of gaussian_noise, .*, got 'rain'"),
        (NOISE, "snow", 0, "severity must be 1 to 5, got 0"),
        (NOISE / 255, "snow", 1, r"images must be uint8 \(N, 3, 32, 32\), got torch.float32"),
        (NOISE[:, :1], "snow", 1, r"images must be uint8 .+ got torch.uint8 \(4, 1, 32, 32\)"),
    ],
)
def test_what_cannot_be_corrupted_is_named(
    images: Tensor, name: str, severity: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(images, name, severity)


def test_the_published_arrays_are_read_by_severity(tmp_path: Path) -> None:
    pixels = NOISE.permute(0, 2, 3, 1).numpy()
    np.save(tmp_path / "fog.npy", np.concatenate([np.roll(pixels, s, 0)[:2] for s in range(5)]))
    np.save(tmp_path / "labels.npy", np.tile(np.array([3, 9], np.uint8), 5))
    images, labels = read_cifar10_c(tmp_path, "fog", 2)
    assert torch.equal(images, NOISE.roll(1, 0)[:2])
    assert labels.dtype == torch.int64
    assert labels.tolist() == [3, 9]

    np.save(tmp_path / "cifar10.1_v6_data.npy", pixels)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.array([1, 2, 3, 4], np.int32))
    images, labels = read_cifar10_1(tmp_path)
    assert torch.equal(images, NOISE)
    assert labels.tolist() == [1, 2, 3, 4]


def test_arrays_that_are_missing_or_wrong_are_named(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"not as published: .+fog\.npy"):
        read_cifar10_c(tmp_path, "fog", 1)
    np.save(tmp_path / "fog.npy", np.zeros((10, 3072), np.uint8))
    np.save(tmp_path / "labels.npy", np.zeros(10, np.uint8))
    with pytest.raises(MisconfigurationException, match=r"holds uint8 \(10, 3072\) with \(10,\)"):
        read_cifar10_c(tmp_path, "fog", 1)
    np.save(tmp_path / "labels.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(MisconfigurationException, match="not as published"):
        read_cifar10_c(tmp_path, "fog", 1)
