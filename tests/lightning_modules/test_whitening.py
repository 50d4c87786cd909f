import pytest
import torch
from torch.nn import functional as F

from lightning_modules.layers.whitening import PatchWhitening, patch_covariance, whitening_filters


def images(n: int = 600) -> torch.Tensor:
    """Random images with similar neighbours and channels, as in photographs, and mean 0.5."""
    noise = torch.randn(n, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    return F.avg_pool2d(noise + noise.mean(1, keepdim=True), 3, 1) + 0.5


def patches_of(x: torch.Tensor, size: int) -> torch.Tensor:
    """Patches (patches, dimensions), cut out one by one."""
    places = [(i, j) for i in range(12 - size + 1) for j in range(12 - size + 1)]
    return torch.cat([x[:, :, i : i + size, j : j + size].flatten(1) for i, j in places])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_covariance_is_torchs_of_patches_cut_out_one_by_one(size: int) -> None:
    x = images()
    expected = torch.cov(patches_of(x, size).double().T, correction=0)
    torch.testing.assert_close(patch_covariance(x, size), expected)


def test_whitened_patches_have_identity_covariance() -> None:
    x = images()
    layer = PatchWhitening(3, 2, eps=0.0)
    layer.fit_patches(x)
    responses = layer(x).transpose(0, 1).flatten(1)
    expected = torch.eye(12).repeat(2, 2)
    expected[:12, 12:] *= -1
    expected[12:, :12] *= -1
    torch.testing.assert_close(torch.cov(responses), expected, rtol=0, atol=1e-3)


def test_eps_damps_directions_with_little_variance() -> None:
    variances = torch.tensor([4.0, 1e-6, 1.0], dtype=torch.float64)
    filters = whitening_filters(variances.diag(), eps=1e-2)
    responses = filters @ variances.diag() @ filters.T
    expected = torch.tensor([4 / 4.01, 1 / 1.01, 1e-6 / (1e-6 + 1e-2)], dtype=torch.float64)
    torch.testing.assert_close(responses, expected.diag())


def test_the_second_half_of_the_filters_is_the_negative_of_the_first() -> None:
    layer = PatchWhitening(3, 2)
    layer.fit_patches(images())
    assert layer.weight.shape == (24, 3, 2, 2)
    assert torch.equal(layer.weight[12:], -layer.weight[:12])


def test_only_the_bias_is_trained_and_it_starts_at_zero() -> None:
    layer = PatchWhitening(3, 2)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["bias"]
    assert not layer.bias.any()


def test_the_same_images_give_the_same_filters_for_any_initial_filters() -> None:
    first, second = PatchWhitening(3, 2), PatchWhitening(3, 2)
    assert not torch.equal(first.weight, second.weight)
    for layer in (first, second):
        assert not layer.fitted
        layer.fit_patches(images())
        assert layer.fitted
    assert torch.equal(first.weight, second.weight)


def test_a_negative_eps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^eps must be 0 or more, got -1$"):
        PatchWhitening(3, 2, eps=-1)
