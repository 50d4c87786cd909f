"""Attention layers against torchvision, or against their formula written out by hand."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

from lightning_modules.layers.attention import (
    CBAM,
    ChannelAttention,
    CoordinateAttention,
    SpatialAttention,
    SqueezeExcitation,
)
from lightning_modules.networks import count_parameters


def feature_maps(channels: int) -> Tensor:
    return torch.randn(2, channels, 6, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "activation"), [("relu", nn.ReLU), ("silu", nn.SiLU)])
def test_squeeze_excitation_is_torchvisions(name: str, activation: type[nn.Module]) -> None:
    ours = SqueezeExcitation(32, reduction=4, activation=name)
    theirs = ops.SqueezeExcitation(32, 8, activation=activation)
    theirs.load_state_dict(ours.state_dict())
    x = feature_maps(32)
    torch.testing.assert_close(ours(x), theirs(x))


def test_channel_attention_weights_channels_by_one_mlp_of_mean_and_maximum() -> None:
    attention = ChannelAttention(32, reduction=4)
    first, second = attention.parameters()
    x = feature_maps(32)
    for image, weighted in zip(x, attention(x), strict=True):
        mean = torch.stack([channel.sum() / 30 for channel in image])
        maximum = torch.stack([channel.flatten().sort().values[-1] for channel in image])
        score = sum(second @ (first @ pooled).clamp(min=0) for pooled in (mean, maximum))
        weights = 1 / (1 + torch.exp(-score))
        torch.testing.assert_close(weighted, torch.einsum("c,chw->chw", weights, image))


def test_spatial_attention_weights_positions_by_a_7x7_window_of_mean_and_maximum() -> None:
    attention = SpatialAttention()
    (filters,) = attention.parameters()
    x = feature_maps(3)
    mean = x.sum(1) / 3
    maximum = torch.maximum(torch.maximum(x[:, 0], x[:, 1]), x[:, 2])
    pooled = F.pad(torch.stack((mean, maximum), dim=1), (3, 3, 3, 3))
    score = torch.zeros(2, 6, 5)
    for row in range(6):
        for column in range(5):
            window = pooled[:, :, row : row + 7, column : column + 7]
            score[:, row, column] = (window * filters).sum((1, 2, 3))
    weights = 1 / (1 + torch.exp(-score))
    torch.testing.assert_close(attention(x), x * weights[:, None])


def test_cbam_attends_to_channels_before_positions() -> None:
    cbam = CBAM(16)
    channel, spatial = cbam
    x = feature_maps(16)
    torch.testing.assert_close(cbam(x), spatial(channel(x)))
    assert isinstance(channel, ChannelAttention)
    assert isinstance(spatial, SpatialAttention)
    assert not torch.allclose(cbam(x), channel(spatial(x)))


def test_coordinate_attention_weighs_a_position_by_its_row_and_its_column() -> None:
    torch.manual_seed(0)
    attention = CoordinateAttention(16).eval()
    convolution, norm, _ = attention.squeeze
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    x = feature_maps(16)

    def weights(mean: Tensor, last: nn.Conv2d) -> Tensor:
        """Attention of one row or column, from its mean (N, C)."""
        hidden = mean @ convolution.weight.flatten(1).T + convolution.bias
        hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        hidden = hidden * (hidden + 3).clamp(0, 6) / 6
        return (hidden @ last.weight.flatten(1).T + last.bias).sigmoid()

    for row in range(6):
        for column in range(5):
            of_row = weights(x[:, :, row].mean(2), attention.rows)
            of_column = weights(x[:, :, :, column].mean(2), attention.columns)
            expected = x[:, :, row, column] * of_row * of_column
            torch.testing.assert_close(attention(x)[:, :, row, column], expected)


@pytest.mark.parametrize(
    ("layer", "parameters"),
    [
        (partial(ChannelAttention, 248), 2 * 248 * 15),
        (partial(ChannelAttention, 62), 2 * 62 * 4),  # 62 // 16 = 3, but the minimum is 4
        (partial(ChannelAttention, 64, reduction=8), 2 * 64 * 8),
        (SpatialAttention, 2 * 7 * 7),
        (partial(CBAM, 64), 2 * 64 * 4 + 2 * 7 * 7),
        (partial(SqueezeExcitation, 64), 2 * 64 * 4 + 4 + 64),
        (partial(SqueezeExcitation, 8), 2 * 8 * 1 + 1 + 8),  # 8 // 16 = 0, but the minimum is 1
    ],
)
def test_parameter_counts(layer: type[nn.Module], parameters: int) -> None:
    assert count_parameters(layer()) == parameters


@pytest.mark.parametrize("layer", [SqueezeExcitation, CBAM, CoordinateAttention])
def test_attention_and_its_gradient_keep_channels_last(layer: type[nn.Module]) -> None:
    x = feature_maps(16).to(memory_format=torch.channels_last)
    convolution = nn.Conv2d(16, 16, 3, padding=1).to(memory_format=torch.channels_last)
    features = convolution(x)
    gradients: list[Tensor] = []
    features.register_hook(gradients.append)
    weighted = layer(16)(features)
    weighted.square().sum().backward()
    for tensor in (weighted, *gradients):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert gradients
