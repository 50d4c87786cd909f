import numpy as np
import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from datamodules.corruptions.filters import blur, distance_to, equalise, motion, plasma, zoom_in

NOISE = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


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


def test_blurring_with_mirrored_borders_keeps_the_mean() -> None:
    images = NOISE / 255
    blurred = blur(images, 6.4, truncate=3.0, outside="mirror")
    torch.testing.assert_close(blurred.mean((2, 3)), images.mean((2, 3)))
    assert not torch.allclose(blur(images, 6.4).mean((2, 3)), images.mean((2, 3)), atol=1e-4)


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


def test_a_plasma_is_a_fractal_from_0_to_1_and_rougher_with_slower_decay() -> None:
    maps = plasma(3, 2.0, torch.Generator().manual_seed(0))
    assert maps.shape == (3, 1, 32, 32)
    assert maps.amin((1, 2, 3)).tolist() == [0] * 3
    assert maps.amax((1, 2, 3)).tolist() == [1] * 3
    # Neighbours are similar; they are less similar if the fractal decays more slowly.
    rough = plasma(3, 1.2, torch.Generator().manual_seed(0))
    assert maps.diff(dim=3).abs().mean() < 0.5 * rough.diff(dim=3).abs().mean()


def test_distances_and_equalised_histograms_equal_hand_computed_values() -> None:
    marked = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    marked[0, 0, 3, 4] = marked[0, 0, 30, 30] = True
    rows, columns = np.indices((32, 32))
    expected = np.minimum(np.hypot(rows - 3, columns - 4), np.hypot(rows - 30, columns - 30))
    np.testing.assert_allclose(distance_to(marked)[0, 0], expected, rtol=1e-6)

    steps = torch.tensor([10, 20, 30, 40]).repeat_interleave(256).view(1, 1, 32, 32)
    assert equalise(steps).unique().tolist() == [0, 85, 170, 255]
